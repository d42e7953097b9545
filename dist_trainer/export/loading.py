"""Loads an exported file as anybody would, in a process without this package, and compares what it gives:
python -P loading.py JOB.json ...

A job names the file, its sha256, the calls and the outputs that they must give. compared.json beside it says how they
compare: {"calls": [{"rows", "difference", "problem"}]}, or {"problem"} where the file cannot be used at all; what
libraries print is no part of it. This module imports nothing of the package: run as a program it makes that
impossible.
"""

import ctypes
import hashlib
import json
import signal
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]
Model = Callable[[dict[str, Any]], list[Array]]  # a call of the job -> the outputs


def compared(path: str, sha256: str) -> str:
    """The path, once its bytes are those that were written a moment ago."""
    with Path(path).open("rb") as file:
        if hashlib.file_digest(file, "sha256").hexdigest() != sha256:
            raise ValueError(f"{path}: its bytes are not those that were written")
    return path


def compare(expected: Sequence[Array], got: Sequence[Array], tolerance: float) -> tuple[float, str | None]:
    """The largest difference as a share of the output's largest value, and what is wrong if it is too much.

    Of each output max|got - expected| / max|expected| is at most the tolerance (where all of it is 0, max|got|).
    Whole numbers and truth values have to be equal, and so have types, shapes and the places of what is not finite.
    """
    if len(expected) != len(got):
        return np.inf, f"{len(got)} outputs, the run's model gives {len(expected)}"
    largest = 0.0
    for place, (wanted, found) in enumerate(zip(expected, got, strict=True)):
        if wanted.shape != found.shape:
            return np.inf, f"output {place} has the shape {found.shape}, the run's model gives {wanted.shape}"
        if wanted.dtype != found.dtype:
            return np.inf, f"output {place} is {found.dtype}, the run's model gives {wanted.dtype}"
        difference, size = _difference(wanted, found)
        share = difference / size if size else difference
        largest = max(largest, share)
        limit = 0.0 if wanted.dtype.kind in "biu" else tolerance
        if not share <= limit:
            return (
                share,
                f"output {place} differs by up to {difference:.3g} where its largest value is {size:.3g}",
            )
    return largest, None


def _difference(wanted: Array, found: Array) -> tuple[float, float]:
    """The largest difference, and the largest finite value that was wanted."""
    a, b = wanted.astype(np.float64), found.astype(np.float64)
    finite = np.isfinite(a)
    if not np.array_equal(finite, np.isfinite(b)) or not np.array_equal(
        a[~finite], b[~finite], equal_nan=True
    ):
        return np.inf, 1.0
    a, b = a[finite], b[finite]
    return (float(np.abs(a - b).max()), float(np.abs(a).max())) if a.size else (0.0, 0.0)


def check(job: Mapping[str, Any], load: Callable[[Mapping[str, Any]], Model]) -> dict[str, Any]:
    """Each call's rows, largest difference and problem; or the one problem of a file that cannot be used."""
    try:
        model = load(job)
    except Exception as error:  # its loader's own, of any kind
        return {"problem": f"cannot be loaded in a fresh process: {_first_line(error)}"}
    calls = []
    for call in job["calls"]:
        try:
            got = model(call)
        except Exception as error:
            what = f"is loaded in a fresh process and fails there for a batch of {call['rows']}"
            return {"problem": f"{what}: {_first_line(error)}"}
        difference, problem = compare(call["expected"], got, job["tolerance"])
        calls.append({"rows": call["rows"], "difference": difference, "problem": problem})
    return {"calls": calls}


def _first_line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[0] if lines else 'no message'}"


def answer(path: Path, found: Mapping[str, Any]) -> None:
    """Leave what was found beside the job."""
    path.with_name("compared.json").write_text(json.dumps(found))


def read_job(path: Path) -> dict[str, Any]:
    """The job; in each call the arguments are built, where it has them, and `expected` holds the outputs."""
    job: dict[str, Any] = json.loads(path.read_text())
    tensors = tensors_in(path.with_name("calls.safetensors"), as_numpy=job["format"] == "onnx")
    for call in job["calls"]:
        for name in call.keys() & {"args", "keywords", "named"}:
            call[name] = _unpacked(call[name], tensors)
        call["expected"] = as_arrays([tensors[name] for name in call["outputs"]])
    return job


def tensors_in(path: Path, *, as_numpy: bool = False) -> dict[str, Any]:
    """The tensors or arrays in a file, by the reader that everybody has."""
    if as_numpy:  # ONNX needs no torch
        import safetensors.numpy

        return dict(safetensors.numpy.load_file(path))
    import safetensors.torch

    return dict(safetensors.torch.load_file(path))


def _unpacked(packed: dict[str, Any], tensors: Mapping[str, Any]) -> Any:
    ((kind, value),) = packed.items()
    if kind == "tensor":
        return tensors[value]
    if kind == "dict":
        return {key: _unpacked(item, tensors) for key, item in value.items()}
    if kind in ("tuple", "list"):
        items = [_unpacked(item, tensors) for item in value]
        return tuple(items) if kind == "tuple" else items
    return value


def leaves(value: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    """The tensors or arrays in a value, with the names of example.py."""
    if hasattr(value, "shape"):
        yield name, value
    elif isinstance(value, Mapping):
        for key, item in value.items():
            yield from leaves(item, f"{name}_{key}" if name else str(key))
    elif isinstance(value, (tuple, list)):
        for index, item in enumerate(value):
            yield from leaves(item, f"{name}_{index}" if name else str(index))


def as_arrays(value: Any) -> list[Array]:
    """The outputs as NumPy arrays; what NumPy has no type for as float32, complex numbers as pairs."""
    found = []
    for _, each in leaves(value):
        if not isinstance(each, np.ndarray):
            import torch

            each = torch.view_as_real(each) if each.is_complex() else each
            is_known = not each.is_floating_point() or each.dtype in (
                torch.float16,
                torch.float32,
                torch.float64,
            )
            each = (each if is_known else each.float()).numpy()
        found.append(each)
    return found


def as_model(module: Any) -> Model:
    """A module of torch, to be called with a call of the job."""
    import torch

    def run(call: dict[str, Any]) -> list[Array]:
        with torch.no_grad():
            return as_arrays(module(*call["args"], **call["keywords"]))

    return run


def load(job: Mapping[str, Any]) -> Model:
    """The model of a file that needs no class of its own."""
    path, sha256 = job["path"], job["sha256"]
    if job["format"] == "onnx":
        return _onnx_model(compared(path, sha256))
    import torch

    if job["format"] == "torch-export":
        return as_model(torch.export.load(compared(path, sha256)).module())
    return as_model(torch.jit.load(compared(path, sha256), map_location="cpu"))  # type: ignore[no-untyped-call]


def _onnx_model(path: str) -> Model:
    import onnxruntime

    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    names = [entry.name for entry in session.get_inputs()]

    def run(call: dict[str, Any]) -> list[Array]:
        given = dict(leaves(call["named"]))
        return [np.asarray(each) for each in session.run(None, {name: given[name] for name in names})]

    return run


def end_with_parent() -> None:
    """What parent_death.py of the package does, which cannot be imported here."""
    ctypes.CDLL(None).prctl(1, int(signal.SIGKILL), 0, 0, 0)  # PR_SET_PDEATHSIG


def main(*paths: str) -> None:
    """Check each job; the package cannot be imported from here on, wherever it is installed."""
    end_with_parent()
    sys.modules["dist_trainer"] = None  # type: ignore[assignment]
    warnings.simplefilter("ignore")  # torch says again what was said when the file was written
    for path in map(Path, paths):
        answer(path, check(read_job(path), load))


if __name__ == "__main__":
    main(*sys.argv[1:])
