"""The reference nets: shapes, names, and backbones that come with weights."""

import pytest
import torch
import torchvision
from torch import nn

from dist_trainer.errors import ConfigError
from dist_trainer.models import MLP, Logistic, LSTMForecaster, Pretrained, SimpleCNN, SimpleNet


@pytest.mark.parametrize(
    ("model", "shape", "output"),
    [
        (SimpleNet(), (1, 28, 28), (10,)),
        (SimpleCNN(), (3, 32, 32), (10,)),
        (SimpleCNN(num_classes=4, channels=1, image_size=28), (1, 28, 28), (4,)),
        (MLP([12, 8, 8, 2], dropout=0.1), (3, 4), (2,)),
        (LSTMForecaster(hidden=5, horizon=3), (10, 1), (3,)),
        (Logistic(7), (7,), ()),
        (Pretrained("mobilenet_v2", num_classes=4, image_size=64), (3, 32, 32), (4,)),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, nn.Module) else "",
)
@pytest.mark.parametrize("rows", [0, 2])
def test_a_batch_of_any_number_of_rows_goes_through(
    model: nn.Module, shape: tuple[int, ...], output: tuple[int, ...], rows: int
) -> None:
    assert model(torch.zeros(rows, *shape)).shape == (rows, *output)


def test_the_nets_have_the_sizes_they_are_known_for() -> None:
    def size(model: nn.Module) -> int:
        return sum(parameter.numel() for parameter in model.parameters())

    assert size(SimpleNet()) == 784 * 128 + 128 + 128 * 10 + 10
    assert size(SimpleCNN()) == 62_006


@pytest.mark.parametrize(("architecture", "width"), [("mobilenet_v2", 1280), ("resnet18", 512)])
def test_head_and_backbone_have_the_same_names_in_every_architecture(architecture: str, width: int) -> None:
    model = Pretrained(architecture, num_classes=3)
    names = [name for name, _ in model.named_parameters()]
    assert {name.split(".")[0] for name in names} == {"features", "classifier"}
    assert [name for name in names if name.startswith("classifier")] == [
        "classifier.weight",
        "classifier.bias",
    ]
    assert model.classifier.in_features == width


def test_torchvisions_own_state_is_taken_by_name_without_its_head() -> None:
    origin = torchvision.models.resnet18()
    model = Pretrained("resnet18", num_classes=3)
    head = model.classifier.weight.clone()
    model.load_pretrained(origin.state_dict())
    assert torch.equal(model.features.get_parameter("layer4.1.conv2.weight"), origin.layer4[1].conv2.weight)
    assert torch.equal(model.classifier.weight, head)


def test_tensors_with_other_names_are_taken_in_order() -> None:
    origin = torchvision.models.mobilenet_v2().features.state_dict()
    model = Pretrained("mobilenet_v2", num_classes=3)
    model.load_pretrained({f"conv_{number}": value for number, value in enumerate(origin.values())})
    assert torch.equal(model.features.state_dict()["features.18.0.weight"], origin["18.0.weight"])


def test_weights_that_do_not_fit_are_refused() -> None:
    model = Pretrained("mobilenet_v2", num_classes=3)
    state = dict(model.features.state_dict())
    name = next(iter(state))
    with pytest.raises(ConfigError, match=rf"the file's tensor for {name} has the shape \(1,\)"):
        model.load_pretrained(state | {name: torch.zeros(1)})
    with pytest.raises(ConfigError, match=r"the file has 1 tensors, none called .*, and the backbone 312"):
        model.load_pretrained({"weight": torch.zeros(1)})


def test_an_unknown_architecture_is_named_with_near_ones() -> None:
    with pytest.raises(ConfigError, match=r"Unknown model resnet19; near names: .*resnet18"):
        Pretrained("resnet19", num_classes=2)
