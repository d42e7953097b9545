"""What is saved comes back exactly: every optimizer, scheduler and kind of tensor."""

import collections
import contextlib
import copy
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.optim import lr_scheduler

from dist_trainer.checkpoint.header import read_header
from dist_trainer.checkpoint.state import decode, encode, load_weights
from dist_trainer.checkpoint.tensors import from_buffer, to_buffers
from dist_trainer.errors import CorruptCheckpoint, UsageError


def files(model: dict[str, Any], training: Any = None) -> dict[str, bytes]:
    return {name: b"".join(buffers) for name, buffers in encode(model, training).items()}


def round_trip(model: dict[str, Any], training: Any = None) -> tuple[dict[str, Any], Any]:
    return decode(files(model, training))


def raw(tensor: Tensor) -> bytes:
    return bytes(tensor.resolve_conj().contiguous().reshape(-1).view(torch.uint8).numpy())


def assert_same_tensors(ours: dict[str, Tensor], theirs: dict[str, Tensor]) -> None:
    assert ours.keys() == theirs.keys()
    for name, tensor in ours.items():
        other = theirs[name]
        assert (tensor.dtype, tensor.shape) == (other.dtype, other.shape), name
        assert raw(tensor) == raw(other), name


OPTIMIZERS: dict[str, Callable[[Any], torch.optim.Optimizer]] = {
    "SGD": lambda p: torch.optim.SGD(p, lr=0.05, momentum=0.9, nesterov=True),
    "Adam": lambda p: torch.optim.Adam(p, lr=0.01, amsgrad=True),
    "Adam, a tensor as rate": lambda p: torch.optim.Adam(p, lr=torch.tensor(0.01)),
    "Adam, foreach": lambda p: torch.optim.Adam(p, lr=0.01, foreach=True),
    "Adam, fused": lambda p: torch.optim.Adam(p, lr=0.01, fused=True),
    "AdamW": lambda p: torch.optim.AdamW(p, lr=0.01),
    "RMSprop": lambda p: torch.optim.RMSprop(p, lr=0.01, centered=True, momentum=0.9),
    "Adagrad": lambda p: torch.optim.Adagrad(p, lr=0.01, lr_decay=0.1),
    "Adadelta": lambda p: torch.optim.Adadelta(p),
    "Adamax": lambda p: torch.optim.Adamax(p),
    "NAdam": lambda p: torch.optim.NAdam(p),
    "RAdam": lambda p: torch.optim.RAdam(p),
    "ASGD": lambda p: torch.optim.ASGD(p, t0=2),
    "Rprop": lambda p: torch.optim.Rprop(p),
    "LBFGS": lambda p: torch.optim.LBFGS(p, lr=0.1, max_iter=4, history_size=3),
    "LBFGS, strong Wolfe": lambda p: torch.optim.LBFGS(p, max_iter=4, line_search_fn="strong_wolfe"),
    "Adafactor": lambda p: torch.optim.Adafactor(p),
    "Muon": lambda p: torch.optim.Muon([q for q in p if q.dim() == 2]),
}

SCHEDULERS: dict[str, Callable[[torch.optim.Optimizer], Any]] = {
    "StepLR": lambda o: lr_scheduler.StepLR(o, 2),
    "MultiStepLR": lambda o: lr_scheduler.MultiStepLR(o, [2, 2, 5]),
    "ExponentialLR": lambda o: lr_scheduler.ExponentialLR(o, 0.9),
    "CosineAnnealingLR": lambda o: lr_scheduler.CosineAnnealingLR(o, 7),
    "CosineAnnealingWarmRestarts": lambda o: lr_scheduler.CosineAnnealingWarmRestarts(o, 2, 2),
    "OneCycleLR": lambda o: lr_scheduler.OneCycleLR(o, max_lr=0.1, total_steps=20),
    "CyclicLR": lambda o: lr_scheduler.CyclicLR(o, 0.01, 0.1, step_size_up=3),
    "CyclicLR, own scale": lambda o: lr_scheduler.CyclicLR(
        o, 0.01, 0.1, step_size_up=3, scale_fn=lambda x: 0.9**x
    ),
    "LinearLR": lambda o: lr_scheduler.LinearLR(o, total_iters=6),
    "ConstantLR": lambda o: lr_scheduler.ConstantLR(o, total_iters=3),
    "PolynomialLR": lambda o: lr_scheduler.PolynomialLR(o, total_iters=8, power=2),
    "ReduceLROnPlateau": lambda o: lr_scheduler.ReduceLROnPlateau(o, patience=0),
    "SequentialLR": lambda o: lr_scheduler.SequentialLR(
        o, [lr_scheduler.LinearLR(o, total_iters=3), lr_scheduler.CosineAnnealingLR(o, 10)], [3]
    ),
    "ChainedScheduler": lambda o: lr_scheduler.ChainedScheduler(
        [lr_scheduler.ConstantLR(o, total_iters=3), lr_scheduler.MultiStepLR(o, [2, 6])], optimizer=o
    ),
    "LambdaLR": lambda o: lr_scheduler.LambdaLR(o, lambda step: 1 / (1 + step)),
    "LambdaLR, an object": lambda o: lr_scheduler.LambdaLR(o, Warmup(5)),
    "MultiplicativeLR": lambda o: lr_scheduler.MultiplicativeLR(o, lambda step: 0.9),
}


class Warmup:
    def __init__(self, steps: int) -> None:
        self.steps = steps

    def __call__(self, step: int) -> float:
        return min(1.0, (step + 1) / self.steps)


class Training:
    """A small net with its optimizer and scheduler, and a step that is a function of its number."""

    def __init__(
        self, optimizer: Callable[[Any], Any], scheduler: Callable[[Any], Any] | None = None
    ) -> None:
        torch.manual_seed(1)
        self.model = nn.Sequential(
            nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(144, 5), nn.Tanh(), nn.Linear(5, 1)
        )
        self.optimizer = optimizer(list(self.model.parameters()))
        self.scheduler = scheduler(self.optimizer) if scheduler else None

    def run(self, first: int, last: int) -> None:
        for number in range(first, last):
            torch.manual_seed(number)
            data = torch.randn(6, 1, 8, 8)

            def loss(data: Tensor = data) -> Tensor:
                self.optimizer.zero_grad()
                value = (self.model(data) - 1).square().mean()
                value.backward()
                return value

            value = float(self.optimizer.step(loss).detach())
            if isinstance(self.scheduler, lr_scheduler.ReduceLROnPlateau):
                self.scheduler.step(value)
            elif self.scheduler is not None:
                self.scheduler.step()

    def training(self) -> dict[str, Any]:
        scheduler = self.scheduler.state_dict() if self.scheduler is not None else None
        return {"optimizer": self.optimizer.state_dict(), "scheduler": scheduler}

    def load(self, model: dict[str, Tensor], training: dict[str, Any]) -> None:
        self.model.load_state_dict(model)
        self.optimizer.load_state_dict(training["optimizer"])
        if self.scheduler is not None:
            self.scheduler.load_state_dict(training["scheduler"])


@pytest.fixture(scope="module", autouse=True)
def torch_is_warm() -> None:
    # the first step of an optimizer imports its compiler, which sets environment variables of its own
    Training(OPTIMIZERS["SGD"]).run(0, 1)


def assert_goes_on_the_same(make: Callable[[], Training]) -> None:
    untouched = make()
    untouched.run(0, 4)
    saved = files(untouched.model.state_dict(), untouched.training())
    resumed = make()
    resumed.run(100, 101)  # no state of its own may shine through
    resumed = make()
    resumed.load(*decode(saved))
    assert_same_tensors(resumed.model.state_dict(), untouched.model.state_dict())
    untouched.run(4, 8)
    resumed.run(4, 8)
    assert_same_tensors(resumed.model.state_dict(), untouched.model.state_dict())
    # and what would be saved next is the same, byte for byte
    assert files({}, resumed.training()) == files({}, untouched.training())


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_each_optimizer_goes_on_bit_for_bit(name: str) -> None:
    assert_goes_on_the_same(lambda: Training(OPTIMIZERS[name]))


@pytest.mark.parametrize("name", SCHEDULERS)
def test_each_scheduler_goes_on_bit_for_bit(name: str) -> None:
    assert_goes_on_the_same(
        lambda: Training(lambda p: torch.optim.SGD(p, lr=0.05, momentum=0.9), SCHEDULERS[name])
    )


def test_a_scheduler_over_a_rate_that_is_a_tensor_goes_on_bit_for_bit() -> None:
    assert_goes_on_the_same(
        lambda: Training(OPTIMIZERS["Adam, a tensor as rate"], SCHEDULERS["CosineAnnealingLR"])
    )


def test_sparse_adam_goes_on_bit_for_bit() -> None:
    def make() -> tuple[nn.Embedding, torch.optim.Optimizer]:
        torch.manual_seed(0)
        embedding = nn.Embedding(10, 3, sparse=True)
        return embedding, torch.optim.SparseAdam(list(embedding.parameters()))

    def run(embedding: nn.Embedding, optimizer: torch.optim.Optimizer, rows: list[int]) -> None:
        optimizer.zero_grad()
        embedding(torch.tensor(rows)).square().sum().backward()
        optimizer.step()

    embedding, optimizer = make()
    run(embedding, optimizer, [1, 2])
    model, training = round_trip(embedding.state_dict(), optimizer.state_dict())
    other, other_optimizer = make()
    other.load_state_dict(model)
    other_optimizer.load_state_dict(training)
    for net, net_optimizer in ((embedding, optimizer), (other, other_optimizer)):
        run(net, net_optimizer, [2, 7])
    assert_same_tensors(other.state_dict(), embedding.state_dict())


def test_a_gradient_scaler_comes_back() -> None:
    scaler = torch.amp.GradScaler("cpu", init_scale=3.0, growth_interval=1)
    weight = nn.Parameter(torch.ones(2))
    optimizer = torch.optim.SGD([weight], lr=0.1)
    scaler.scale(weight.sum()).backward()
    scaler.step(optimizer)
    scaler.update()
    _, training = round_trip({}, scaler.state_dict())
    assert training == scaler.state_dict() and training["scale"] == 6.0
    other = torch.amp.GradScaler("cpu")
    other.load_state_dict(training)
    assert other.state_dict() == scaler.state_dict()


KINDS = [
    torch.bool, torch.uint8, torch.int8, torch.int16, torch.uint16, torch.int32, torch.uint32, torch.int64,
    torch.uint64, torch.float16, torch.bfloat16, torch.float32, torch.float64, torch.complex64,
    torch.complex128, torch.float8_e4m3fn, torch.float8_e5m2, torch.float8_e4m3fnuz, torch.float8_e5m2fnuz,
    torch.float8_e8m0fnu,
]  # fmt: skip


@pytest.mark.parametrize("dtype", KINDS, ids=str)
@pytest.mark.parametrize("shape", [(), (0, 3), (3, 5)], ids=str)
def test_each_type_of_tensor_comes_back_bit_for_bit(dtype: torch.dtype, shape: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    tensor = torch.empty(shape, dtype=dtype)
    flat = tensor.reshape(-1).view(torch.uint8)
    flat.copy_(torch.randint(0, 2 if dtype == torch.bool else 256, flat.shape))
    model, training = round_trip({"weight": tensor}, [tensor])
    assert_same_tensors(model, {"weight": tensor})
    assert_same_tensors({"weight": training[0]}, {"weight": tensor})


def test_tied_tensors_are_stored_once_and_come_back_tied() -> None:
    weight = torch.randn(300, 100)
    state = {"encoder": weight, "decoder": weight.view(300, 100), "transposed": weight.T, "part": weight[:5]}
    content = files(state, {"a": weight, "b": [weight]})
    assert len(content["model.safetensors"]) < 2.1 * weight.nbytes
    model, training = decode(content)
    assert_same_tensors(model, {name: tensor.contiguous() for name, tensor in state.items()})
    assert model["encoder"].data_ptr() == model["decoder"].data_ptr()
    assert model["encoder"].data_ptr() not in (model["transposed"].data_ptr(), model["part"].data_ptr())
    assert training["a"] is training["b"][0]


def test_empty_tensors_are_not_taken_for_tied() -> None:
    model, _ = round_trip({"a": torch.empty(0), "b": torch.empty(0), "c": torch.empty(0, 2)})
    assert [tuple(tensor.shape) for tensor in model.values()] == [(0,), (0,), (0, 2)]
    assert model["a"] is not model["b"]


@pytest.mark.parametrize("shape", [(4, 3, 5, 5), (8, 1, 3, 3), (4, 3, 1, 1)], ids=str)
def test_channels_last_stays_channels_last(shape: tuple[int, ...]) -> None:
    weight = torch.randn(shape).to(memory_format=torch.channels_last)
    model, _ = round_trip({"weight": weight, "plain": weight.contiguous()})
    assert torch.equal(model["weight"], weight)
    assert model["weight"].stride() == weight.stride()
    assert model["weight"].is_contiguous(memory_format=torch.channels_last)


def test_views_expanded_and_conjugated_tensors_come_back_by_value() -> None:
    state = {
        "expanded": torch.ones(1).expand(4),
        "slice": torch.arange(25.0).reshape(5, 5)[:, 1:3],
        "transposed": torch.randn(3, 4).T,
        "conjugate": torch.randn(3, dtype=torch.complex64).conj(),
        "volume": torch.randn(2, 3, 4, 5, 6).to(memory_format=torch.channels_last_3d),
    }
    model, _ = round_trip(state)
    for name, tensor in state.items():
        assert torch.equal(model[name], tensor), name
    assert model["transposed"].stride() == (1, 4)
    assert model["volume"].stride() == state["volume"].stride()


def test_what_is_loaded_does_not_share_memory_with_the_file() -> None:
    content = bytearray(b"".join(to_buffers({"a": torch.ones(3), "b": torch.ones(3)})))
    tensors = from_buffer(content)
    content[-12:] = b"\0" * 12
    tensors["a"].zero_()
    assert torch.equal(tensors["b"], torch.ones(3))


def test_any_safetensors_reader_loads_the_model_and_we_load_theirs() -> None:
    tensors = {"a": torch.randn(3, 4), "b": torch.tensor(3), "c": torch.randn(4, 3, 2, 2)}
    ours = {**tensors, "c": tensors["c"].to(memory_format=torch.channels_last)}
    theirs = safetensors.torch.load(files(ours)["model.safetensors"])
    assert_same_tensors(theirs, tensors)
    assert_same_tensors(from_buffer(safetensors.torch.save(tensors)), tensors)


def test_data_is_aligned_to_the_size_of_its_type() -> None:
    content = files({f"{n}": torch.zeros(n, dtype=d) for n, d in enumerate(KINDS, start=1)})
    header = read_header(content["model.safetensors"], len(content["model.safetensors"]))
    assert header.data_start % 8 == 0
    for entry in header.entries.values():
        size = (entry.end - entry.start) // math.prod(entry.shape)
        assert entry.start % size == 0


def test_the_names_keep_their_order() -> None:
    state = {"b": torch.zeros(1, dtype=torch.int8), "a": torch.zeros(2), "c": torch.zeros(1)}
    assert list(round_trip(state)[0]) == ["b", "a", "c"]


Point = collections.namedtuple("Point", "x y")


def test_nested_values_come_back_with_their_types() -> None:
    value = {
        "betas": (0.9, 0.999), "milestones": collections.Counter({5: 2, 7: 1}), 3: "int key", "3": "text key",
        (1, "a"): None, True: [True, 1, 1.0], "inf": [math.inf, -math.inf, -0.0, 1e-320, 0.1], "big": 10**30,
        "set": {1, 2}, "frozen": frozenset("ab"), "bytes": b"\0\xff", "complex": complex(-0.0, math.inf),
        "ordered": collections.OrderedDict(b=1, a=2), "$": {"$": "tuple"}, "text": "ä\u2028\U0001f600\0", "": {},
        "size": torch.Size([2, 3]), "dtype": torch.bfloat16, "device": torch.device("cpu"),
        "tensors": [{"deep": (torch.arange(3),)}, {}], "empty": [[], (), {}, set()],
    }  # fmt: skip
    _, training = round_trip({}, value)
    assert_same_values(training, value)


def test_not_a_number_comes_back() -> None:
    _, training = round_trip({}, [math.nan])
    assert math.isnan(training[0])


def assert_same_values(ours: Any, theirs: Any) -> None:
    assert type(ours) is type(theirs)
    if isinstance(theirs, dict):
        assert [(type(key), key) for key in ours] == [(type(key), key) for key in theirs]
        for key in theirs:
            assert_same_values(ours[key], theirs[key])
    elif isinstance(theirs, list | tuple):
        assert len(ours) == len(theirs)
        for one, other in zip(ours, theirs, strict=True):
            assert_same_values(one, other)
    elif isinstance(theirs, Tensor):
        assert torch.equal(ours, theirs)
    elif isinstance(theirs, float):
        assert ours.hex() == theirs.hex()
    else:
        assert ours == theirs


VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False)
    | st.text()
    | st.binary()
    | st.complex_numbers(allow_nan=False),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.lists(inner, max_size=4).map(tuple)
        | st.dictionaries(st.integers() | st.text() | st.tuples(st.integers()), inner, max_size=4)
    ),
    max_leaves=20,
)


@given(VALUES)
@settings(max_examples=150, deadline=None)
def test_any_nesting_comes_back(value: Any) -> None:
    assert_same_values(round_trip({}, value)[1], value)


def test_numpy_values_come_back() -> None:
    value = {
        "array": np.arange(6, dtype=np.uint16).reshape(2, 3).T,
        "scalar": np.float64(0.1),
        "flag": np.bool_(True),
        "big": np.uint64(2**64 - 1),
    }
    _, training = round_trip({}, value)
    for name, one in value.items():
        assert type(training[name]) is type(one) and training[name].dtype == one.dtype
        assert np.array_equal(training[name], one)


class Remembering(nn.Linear):
    """A module with extra state that is no tensor."""

    def __init__(self) -> None:
        super().__init__(2, 2)
        self.seen: Any = {"names": ["a"], "counts": (1, 2), "table": torch.arange(3)}

    def get_extra_state(self) -> Any:
        return self.seen

    def set_extra_state(self, state: Any) -> None:
        self.seen = state


def test_the_extra_state_of_a_module_comes_back() -> None:
    model = Remembering()
    state, _ = round_trip(model.state_dict())
    other = Remembering()
    other.seen = None
    other.load_state_dict(state)
    assert_same_values(other.seen, model.seen)


@pytest.mark.parametrize(
    ("training", "key"),
    [
        ({"ema": {"decay": object()}}, r"training\.ema\.decay: a builtins\.object"),
        ([1, lambda: None], r"training\.1: a builtins\.function"),
        ({"point": Point(1, 2)}, r"training\.point: a test_state\.Point"),
        ({"default": collections.defaultdict(list)}, r"training\.default: a collections\.defaultdict"),
        ({"sparse": torch.eye(2).to_sparse()}, r"training\.sparse: a Tensor of .*sparse_coo"),
        ({"meta": torch.empty(2, device="meta")}, r"training\.meta: .* on meta"),
        ({object(): 1}, r"training \(a key\): a builtins\.object"),
        ({"names": np.array(["a"])}, r"training\.names: a numpy\.ndarray"),
    ],
    ids=["object", "function", "namedtuple", "defaultdict", "sparse", "meta", "key", "strings"],
)
def test_what_cannot_be_saved_is_named(training: Any, key: str) -> None:
    with pytest.raises(UsageError, match=key):
        encode({}, training)


def test_a_model_value_that_cannot_be_saved_is_named() -> None:
    with pytest.raises(UsageError, match=r"model\.head\._extra_state: a builtins\.object"):
        encode({"head._extra_state": object()})
    with pytest.raises(UsageError, match=r"__metadata__"):
        encode({"__metadata__": torch.zeros(1)})


def test_saving_changes_nothing_of_what_is_saved() -> None:
    training = Training(OPTIMIZERS["Adam"], SCHEDULERS["MultiStepLR"])
    training.run(0, 2)
    before = copy.deepcopy(training.training())
    files(training.model.state_dict(), training.training())
    assert_same_values(training.training(), before)


def test_large_tensors_are_not_copied_on_the_way_to_the_file() -> None:
    weight = torch.zeros(1000, 1000)
    buffers = encode({"weight": weight})["model.safetensors"]
    weight.fill_(1.0)
    assert torch.equal(from_buffer(b"".join(buffers))["weight"], weight)


def test_a_header_that_lies_is_a_corrupt_checkpoint_and_allocates_nothing() -> None:
    good = b"".join(to_buffers({"a": torch.zeros(4), "b": torch.zeros(2, 3)}))
    length = int.from_bytes(good[:8], "little")
    header = json.loads(good[8 : 8 + length])

    def with_header(document: Any) -> bytes:
        text = document if isinstance(document, bytes) else json.dumps(document).encode()
        return len(text).to_bytes(8, "little") + text + good[8 + length :]

    def changed(**changes: Any) -> bytes:
        return with_header({**header, "a": {**header["a"], **changes}})

    bad = [
        b"", good[:7], good[:20], (2**63).to_bytes(8, "little") + good[8:], good + b"x", good[:-1],
        with_header(b"[]"), with_header(b"\xff"), with_header(b"[" * 100_000), with_header({**header, "a": 1}),
        changed(shape=[10**12]), changed(shape=[-4]), changed(shape=[4.0]), changed(shape=["4"]), changed(shape=4),
        changed(dtype="F99"), changed(data_offsets=[0, 15]), changed(data_offsets=[8, 24]),
        changed(data_offsets=[24, 40]), changed(data_offsets=[0]), with_header({**header, "__metadata__": {"x": 1}}),
        with_header({**header, "__metadata__": {"dist_trainer": "{"}}),
        with_header({**header, "__metadata__": {"dist_trainer": '{"aliases": {"c": "nowhere"}}'}}),
        with_header({**header, "__metadata__": {"dist_trainer": '{"strides": {"b": [100000000, 1]}}'}}),
    ]  # fmt: skip
    for content in bad:
        with pytest.raises(CorruptCheckpoint):
            from_buffer(content)


@given(st.integers(0, 10_000), st.binary(min_size=1, max_size=4))
@settings(max_examples=400, deadline=None)
def test_any_damage_gives_tensors_or_a_typed_error(position: int, damage: bytes) -> None:
    content = bytearray(DAMAGED)
    position %= len(content)
    content[position : position + len(damage)] = damage
    with contextlib.suppress(CorruptCheckpoint):
        from_buffer(content)


DAMAGED = b"".join(
    to_buffers({"a": torch.zeros(4), "t": torch.randn(3, 2).T, "c": torch.zeros(2, dtype=torch.complex128)})
)


def test_unknown_values_are_a_corrupt_checkpoint() -> None:
    content = files({}, {"a": 1})
    for document in (b"", b"{}", b"[1]", b'{"format": 2, "training": 1, "model_extra": {}}', b"[" * 100_000):
        with pytest.raises(CorruptCheckpoint):
            decode({**content, "training.json": document})
    for packed in ({"$": "what"}, {"$": "tensor", "name": "nowhere"}, {"$": "dict", "items": [[[], 1]]}):
        document = json.dumps({"format": 1, "training": packed, "model_extra": {}}).encode()
        with pytest.raises(CorruptCheckpoint):
            decode({**content, "training.json": document})
    with pytest.raises(CorruptCheckpoint, match="missing"):
        decode({})


def test_weights_are_loaded_from_each_kind_of_file(tmp_path: Path) -> None:
    model = nn.Linear(3, 2)
    state = dict(model.state_dict())
    torch.save(state, tmp_path / "plain.pt")
    torch.save({"epoch": 3, "state_dict": {f"module.{k}": v for k, v in state.items()}}, tmp_path / "ddp.pth")
    safetensors.torch.save_file(state, tmp_path / "theirs.safetensors")
    (tmp_path / "ours.safetensors").write_bytes(files(state)["model.safetensors"])
    for name in ("plain.pt", "ddp.pth", "theirs.safetensors", "ours.safetensors"):
        assert_same_tensors(load_weights(tmp_path / name), state)


class Payload:
    def __reduce__(self) -> Any:
        return (Path.touch, (Path("canary"),))


def test_foreign_weights_that_carry_code_do_not_run_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save({"weight": Payload()}, tmp_path / "bad.pt")
    torch.save({"lr": 1.0}, tmp_path / "no-tensors.pt")
    (tmp_path / "torn.safetensors").write_bytes(files({"a": torch.ones(9)})["model.safetensors"][:-3])
    (tmp_path / "text.txt").write_text("x")
    for name in ("bad.pt", "no-tensors.pt", "torn.safetensors", "text.txt", "missing.pt"):
        with pytest.raises(UsageError, match=name):
            load_weights(tmp_path / name)
    assert not (tmp_path / "canary").exists()
