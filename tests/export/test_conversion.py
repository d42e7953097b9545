"""What is said where a file cannot be written: whose fault it is, and what works instead."""

import inspect
import resource
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from dist_trainer.errors import ExportError
from dist_trainer.export.conversion import convert, is_of_the_machine
from dist_trainer.export.example import Call
from dist_trainer.export.request import make_request
from tests.export.models import Counting

INPUTS = {rows: torch.ones(rows, 4) for rows in (1, 7)}


def calls_of(model: nn.Module) -> list[Call]:
    (name,) = inspect.signature(model.forward).parameters
    return [Call(rows, (x,), {}, {name: x}, [model(x)]) for rows, x in INPUTS.items()]


def write(model: nn.Module, folder: Path, format: str) -> None:
    model.requires_grad_(False)
    convert(make_request(folder, format, None, "last"), model, calls_of(model), folder)


@contextmanager
def a_full_disk(room: int) -> Iterator[None]:
    """No file of this process grows beyond `room` bytes: like a full disk, the write fails."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (room, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_disk_that_takes_no_more_is_not_taken_for_a_limit_of_the_format(tmp_path: Path) -> None:
    with a_full_disk(110_000), pytest.raises(ExportError) as raised:
        write(nn.Linear(4, 1000), tmp_path, "torchscript")
    assert str(raised.value).startswith("the model's file takes about 120,000 bytes, and the disk does not: ")
    assert str(raised.value).endswith("; make room, or give an --output on another one")
    assert not list(tmp_path.iterdir())


def test_a_source_that_torch_cannot_find_is_a_limit_of_the_format() -> None:
    assert is_of_the_machine(OSError(28, "No space left on device"))
    assert is_of_the_machine(MemoryError())
    assert is_of_the_machine(
        RuntimeError("[enforce fail at inline_container.cc:672] . unexpected pos 832 vs 726")
    )
    assert not is_of_the_machine(
        OSError("Can't get source for <function>. TorchScript requires source access")
    )


def test_what_is_not_for_safetensors_is_for_a_state_dict(tmp_path: Path) -> None:
    with pytest.raises(
        ExportError, match=r"_extra_state is no tensor.*; instead, --format state_dict works$"
    ):
        write(Counting(4, 2), tmp_path, "safetensors")


def test_a_forward_that_the_model_was_given_is_its_own_again(tmp_path: Path) -> None:
    model = nn.Linear(4, 2)

    def doubled(inputs: Tensor) -> Tensor:
        return 2 * nn.functional.linear(inputs, model.weight, model.bias)

    model.forward = doubled  # type: ignore[method-assign]
    write(model, tmp_path, "torch-export")
    assert model.forward is doubled
    write(nn.Linear(4, 2), tmp_path, "torch-export")
