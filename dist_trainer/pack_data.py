"""`dist-trainer data pack`: from a data set's import path, or a folder of pictures, to one .npz file."""

import json
from pathlib import Path
from typing import Any

from dist_trainer.config.arguments import parameters_of
from dist_trainer.config.layers import override_layer
from dist_trainer.config.targets import build, import_target
from dist_trainer.config.yaml_rules import Problem
from dist_trainer.errors import ConfigError, UsageError

IMAGE_FOLDER = "torchvision.datasets.ImageFolder"
SPLIT_ARGUMENTS: dict[str, tuple[Any, Any]] = {"train": (True, False), "split": ("train", "test")}


def pack_source(source: str, output: Path, arguments: list[str], *, as_json: bool) -> int:
    """Open the data set, training and test part where it has both, and write them."""
    if output.suffix != ".npz":
        raise UsageError(f"the file to write must end in .npz, got {str(output)!r}")
    train, test = _open(source, _parsed(arguments))
    from dist_trainer.data.pack import pack

    shapes = pack(train, test, output)
    if as_json:
        print(
            json.dumps({"file": str(output), "arrays": {name: list(shape) for name, shape in shapes.items()}})
        )
    else:
        for name, shape in shapes.items():
            print(f"{name}: {' x '.join(map(str, shape))}")
        print(f"written to {output}")
    return 0


def _parsed(arguments: list[str]) -> dict[str, Any]:
    problems: list[Problem] = []
    values = override_layer(arguments, problems).plain()
    if problems:
        raise ConfigError("\n".join(f"{problem.where}: {problem.message}" for problem in problems))
    assert isinstance(values, dict)
    return values


def _open(source: str, arguments: dict[str, Any]) -> tuple[Any, Any | None]:
    if Path(source).is_dir():
        return _open_folder(Path(source), arguments)
    if "." not in source or "/" in source:
        raise UsageError(
            f"no folder {source!r}, and it is not an import path such as torchvision.datasets.MNIST"
        )
    parameters = parameters_of(import_target(source)) or {}
    for name, (train, test) in SPLIT_ARGUMENTS.items():
        if name in parameters and name not in arguments:
            target = {"target": source, **arguments}
            return build({**target, name: train}), build({**target, name: test})
    return build({"target": source, **arguments}), None


def _open_folder(folder: Path, arguments: dict[str, Any]) -> tuple[Any, Any | None]:
    """`train/` and `test/` (or `val/`) inside are the two parts; else every folder is a class."""
    train = folder / "train"
    if not train.is_dir():
        return build({"target": IMAGE_FOLDER, "root": str(folder), **arguments}), None
    tests = [folder / name for name in ("test", "val") if (folder / name).is_dir()]
    roots = [train, *tests[:1]]
    sets = [build({"target": IMAGE_FOLDER, "root": str(root), **arguments}) for root in roots]
    return sets[0], sets[1] if len(sets) > 1 else None
