"""A Trainer's settings as given in Python, and the run folder that goes with them."""

import copy
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from dist_trainer.adapters.place import Place
from dist_trainer.config.changes import changes, describe
from dist_trainer.config.messages import findings
from dist_trainer.config.schema import Settings
from dist_trainer.config.yaml_rules import read_yaml, write_yaml
from dist_trainer.errors import ConfigError, UsageError
from dist_trainer.run_folder import RunFolder

WORDS = {
    "name": "name",
    "epochs": "train.epochs",
    "steps": "train.steps",
    "global_batch_size": "data.global_batch_size",
}


def make_settings(settings: Settings | Mapping[str, Any] | None, words: Mapping[str, Any]) -> Settings:
    """The settings with the short words laid over them. Raises ConfigError with everything wrong, by dotted key."""
    unknown = [word for word in words if word not in WORDS]
    if unknown:
        raise ConfigError(f"Trainer has no argument {', '.join(unknown)}; short words are {', '.join(WORDS)}")
    data: dict[str, Any] = settings.model_dump(exclude_unset=True) if isinstance(settings, Settings) else {}
    dotted = copy.deepcopy(dict(settings)) if isinstance(settings, Mapping) else {}
    objects = [key for key in dotted if any(f"{key}.".startswith(f"{each}.") for each in OBJECTS)]
    if objects:
        raise ConfigError(
            f"{', '.join(objects)}: no setting in Python; give the object to Trainer as an argument"
        )
    for key, value in {**dotted, **{WORDS[word]: value for word, value in words.items()}}.items():
        _put(data, key.split("."), value)
    return _checked(data)


def _put(tree: dict[str, Any], path: list[str], value: Any) -> None:
    for part in path[:-1]:
        tree = tree.setdefault(part, {})
        if not isinstance(tree, dict):
            raise ConfigError(f"{'.'.join(path)} and {part} are both given; {part} must be a dict for that")
    tree[path[-1]] = value


# what a configuration names by import path is an object here
OBJECTS = [
    *("model", "task", "loss", "metrics", "optimizer", "scheduler", "hooks", "slurm"),
    *(f"data.{name}" for name in ("train", "val", "test", "collate", "split")),
]


def _checked(data: dict[str, Any]) -> Settings:
    try:
        return Settings.model_validate(data)
    except ValidationError as error:
        lines = [f"{'.'.join(each.path)} {each.message}" for each in findings(error, data)]
        raise ConfigError("\n".join(lines)) from None  # pydantic's words are in these


def open_or_create(settings: Settings, runs: Path) -> Callable[[], RunFolder]:
    """A function that opens the settings' run, on rank 0 making it first where it is not there.

    The other ranks call it once they know from rank 0 that it is there. It raises UsageError where the run was
    begun with settings that would give other numbers.
    """

    def open_run() -> RunFolder:
        path = runs.absolute() / settings.name
        if not (path / "run.json").exists():
            return RunFolder.create(path, write_yaml(settings.model_dump()), working_folder=Path.cwd())
        run = RunFolder.open(path)
        if Place.from_environment().rank > 0:  # rank 0 has done what follows, and the ranks compare theirs
            return run
        tree, _ = read_yaml(run.config_path.read_text(), str(run.config_path))
        before = _checked(tree.plain() if tree is not None else {})
        harmful = [change for change in changes(before, settings) if not change.harmless]
        if harmful:
            raise UsageError(
                f"run {settings.name} in {path} was begun with other settings; give it another name, or move the "
                f"folder away:\n{describe(harmful)}"
            )
        return run

    return open_run
