"""A model as a file of each format, by torch's own means; what torch cannot do is said with what works instead."""

import errno
import io
import os
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import wraps
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.jit._trace import TracerWarning

from dist_trainer.adapters.files import new_private_file
from dist_trainer.errors import ExportError
from dist_trainer.export.example import Call
from dist_trainer.export.request import FILES, WEIGHTS_ALONE, Request
from dist_trainer.export.shapes import described_inputs, described_outputs, dynamic_shapes
from dist_trainer.training.batch import field_names, is_record, tensors_of

_ONE_FILE_BYTES = 1_900_000_000  # protobuf's limit is 2 GiB, graph and all

_GRAPH_BYTES = 100_000  # of a small model; larger ones have weights that are more
_NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_FULL = (
    "No space left on device",
    "Disk quota exceeded",
    "file write failed",
    "unexpected pos",
    "can't allocate memory",
)


class _TakesOneWay(Exception):
    """A trace would keep the one way that the example took."""


def convert(request: Request, model: nn.Module, calls: list[Call], folder: Path) -> None:
    """Write the model's files into `folder`. Raises ExportError with torch's first line and what works instead, or
    with what the machine refuses: a disk or a memory that is full is no fault of the format."""
    _check_room(model, folder)
    writers: dict[str, Callable[[Path], None]] = {
        "state_dict": lambda path: _write_state_dict(model, path),
        "safetensors": lambda path: _write_safetensors(model, path),
        "torch-export": lambda path: torch.export.save(_exported(model, calls), path),
        "onnx": lambda path: _write_onnx(model, calls, path),
        "torchscript": lambda path: _scripted(model, calls, request.method).save(str(path)),
    }
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # what torch says of its own parts; nobody can act on it
            writers[request.format](folder / FILES[request.format])
    except Exception as error:  # torch and its exporters raise anything
        if is_of_the_machine(error):
            raise ExportError(
                f"this machine cannot export the model as {request.words}: {first_line(error)}; make room, or give "
                "an --output on another disk"
            ) from error
        raise ExportError(
            f"the model cannot be exported as {request.words}: {first_line(error)}; "
            f"{_works_instead(request, model, calls)}"
        ) from error


def _check_room(model: nn.Module, folder: Path) -> None:
    """ExportError where the disk has no room for the weights: some of torch's writers abort the process then."""
    size = _weights_bytes(model) + _GRAPH_BYTES
    path = new_private_file(folder / "room")
    try:
        with path.open("r+b") as file:
            os.posix_fallocate(file.fileno(), 0, size)
    except OSError as error:
        if error.errno not in _NO_ROOM:  # a file system that reserves nothing
            return
        raise ExportError(
            f"the model's file takes about {size:,} bytes, and the disk does not: {error.strerror}; make room, or "
            "give an --output on another one"
        ) from error
    finally:
        path.unlink()


def _weights_bytes(model: nn.Module) -> int:
    return sum(value.nbytes for value in model.state_dict().values() if isinstance(value, Tensor))


def is_of_the_machine(error: BaseException) -> bool:
    """Whether a full disk or memory is behind it; torch's and safetensors' writers say so in words of their own."""
    # torch.jit has an OSError of another kind, without a number: a source that is not there
    numbered = isinstance(error, OSError) and error.errno is not None
    return numbered or isinstance(error, MemoryError) or any(words in str(error) for words in _FULL)


def first_line(error: BaseException) -> str:
    """The first line of an error that says something, with its kind; of the ONNX exporter's the one behind it."""
    while type(error).__module__.startswith("torch.onnx") and error.__cause__ is not None:
        error = error.__cause__  # its own says in three steps and in colour that there was one
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    said = lines[0].rstrip(".") if lines else "no message"
    return said if isinstance(error, _TakesOneWay) else f"{type(error).__name__}: {said}"


def _write_state_dict(model: nn.Module, path: Path) -> None:
    torch.save(model.state_dict(), path)


def _write_safetensors(model: nn.Module, path: Path) -> None:
    from safetensors.torch import save_file

    state = _tensors_alone(model)
    # each name with memory of its own: a tied tensor would be refused, and left out it would be missed
    plain = {
        name: value.detach().clone(memory_format=torch.contiguous_format) for name, value in state.items()
    }
    save_file(plain, path, metadata={"format": "pt"})


def _tensors_alone(model: nn.Module) -> dict[str, Tensor]:
    state = model.state_dict()
    if others := [name for name, value in state.items() if not isinstance(value, Tensor)]:
        raise ValueError(f"{', '.join(others)} is no tensor, and the format holds nothing else")
    return state


def _exported(model: nn.Module, calls: list[Call]) -> Any:
    seven = calls[-1]
    with _plain_outputs(model):
        return torch.export.export(model, seven.args, seven.keywords, dynamic_shapes=dynamic_shapes(calls))


@contextmanager
def _plain_outputs(model: nn.Module) -> Iterator[None]:
    """In this block the model gives a dict for a mapping or a dataclass of a class of its own: a program that names
    the class could be loaded only where that is installed."""
    own, replaced = model.forward, vars(model).get("forward")

    @wraps(own)
    def forward(*args: Any, **keywords: Any) -> Any:
        output = own(*args, **keywords)
        if is_record(output) and not isinstance(output, Mapping):
            parts = {name: getattr(output, name) for name in field_names(output)}
            return {name: part for name, part in parts.items() if any(True for _ in tensors_of(part))}
        return dict(output) if isinstance(output, Mapping) else output

    model.forward = forward
    try:
        yield
    finally:
        if replaced is None:
            del model.forward
        else:
            model.forward = replaced


def _write_onnx(model: nn.Module, calls: list[Call], path: Path) -> None:
    with _plain_outputs(model):
        program = torch.onnx.export(
            model,
            calls[-1].args,
            kwargs=calls[-1].keywords,
            dynamic_shapes=dynamic_shapes(calls),
            input_names=[entry["name"] for entry in described_inputs(calls)],
            output_names=[entry["name"] for entry in described_outputs(calls)],
            dynamo=True,
            verbose=False,
        )
    assert program is not None
    program.save(str(path), external_data=_weights_bytes(model) > _ONE_FILE_BYTES)


def _scripted(model: nn.Module, calls: list[Call], method: str) -> Any:
    return torch.jit.script(model) if method == "script" else _traced(model, calls)


def _traced(model: nn.Module, calls: list[Call]) -> Any:
    """The trace; _TakesOneWay where the model's way depends on the values that it is given."""
    seven = calls[-1]
    named = seven.named if seven.args and seven.keywords else seven.keywords  # it takes one kind or the other
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        traced = torch.jit.trace(  # type: ignore[no-untyped-call]
            model,
            None if named else seven.args,
            example_kwarg_inputs=named or None,
            check_trace=False,
            strict=False,
        )
    # torch warns of each size that is looked at too: torch.export tells those apart
    if any(issubclass(each.category, TracerWarning) for each in seen):
        _refuse_decisions(model, calls)
    return traced


def _refuse_decisions(model: nn.Module, calls: list[Call]) -> None:
    try:
        _exported(model, calls)
    except Exception as error:
        if "data-dependent" in str(error) or "DataDependent" in type(error).__name__:
            raise _TakesOneWay(
                f"what it does depends on the values it is given, and a trace would keep the one way that the "
                f"example took ({first_line(error)})"
            ) from error


def _works_instead(request: Request, model: nn.Module, calls: list[Call]) -> str:
    """The first other way that was tried and worked; weights first for who wanted no more."""
    weights: dict[str, Callable[[], Any]] = {
        "--format safetensors": lambda: _tensors_alone(model),
        "--format state_dict": lambda: torch.save(model.state_dict(), io.BytesIO()),
    }
    programs: dict[str, Callable[[], Any]] = {
        "--format torch-export": lambda: torch.export.save(_exported(model, calls), io.BytesIO()),
        "--format torchscript --method script": lambda: _scripted(model, calls, "script").save_to_buffer(),
        "--format torchscript --method trace": lambda: _traced(model, calls).save_to_buffer(),
    }
    failed = f"--format {request.words.replace(' by', '')}"
    ways = weights | programs if request.format in WEIGHTS_ALONE else programs | weights
    for way, attempt in ways.items():
        if way == failed:
            continue
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                attempt()
        except Exception:  # that one does not work either
            continue
        return f"instead, {way} works"
    return "no other format works either"
