"""Files and `key=value` arguments become one checked Config, or one error with everything wrong in them."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from pydantic import ValidationError

from dist_trainer.config.layers import COMMAND_LINE, merge, override_layer
from dist_trainer.config.messages import Finding, findings, is_required, shown
from dist_trainer.config.schema import Config, Section
from dist_trainer.config.yaml_rules import MAX_BYTES, Located, Problem, read_yaml, write_yaml
from dist_trainer.errors import ConfigError

S = TypeVar("S", bound=Section)
KeyPath = tuple[str, ...]
TARGET = {"target": "stand.in"}
STAND_INS = {"name": "run", "match": "*", "steps": [0, 1], "target": "stand.in"} | {
    "model": TARGET,
    "optimizer": TARGET,
    "train": TARGET,
    "data": {"train": TARGET},
}


@dataclass(frozen=True)
class Loaded:
    """A configuration, and where each of its values was written."""

    config: Config
    locate: Callable[[str], str]  # "optimizer.lr" -> "configs/a.yaml:12" or "command line"

    def error(self, problems: Iterable[tuple[str, str]]) -> ConfigError:
        """The error for (dotted key, message) pairs, as those of `check_targets`, one line for each."""
        return ConfigError("\n".join(f"{self.locate(key)}: {key} {message}" for key, message in problems))


def load_config(
    paths: Sequence[str | Path], overrides: Sequence[str] = (), *, under: str | None = None
) -> Loaded:
    """Merge the files left to right, then `key=value` arguments, and check the result as a whole.

    `under` is YAML that lies below all of them, for who can do with a part of a configuration.
    Raises ConfigError with all problems, one per line, each with its file and line or as of the command line.
    """
    tree, problems = _merged([Path(path) for path in paths], overrides, under)
    if any(not problem.path for problem in problems):  # what could not be read would only seem to be missing
        raise _error(problems)
    config, found = _validate(tree.plain(), {problem.path for problem in problems})
    problems += [Problem(tree.find(finding.path), finding.path, finding.message) for finding in found]
    if config is None or problems:
        raise _error(problems)

    def locate(key: str) -> str:
        return tree.find(tuple(key.split(".")))

    return Loaded(config, locate)


def read_config(path: str | Path) -> Config:
    """The configuration in one file, as the resolved one of a run folder."""
    return load_config([path]).config


def read_sections(path: str | Path) -> dict[str, Any]:
    """What is in one file, unchecked: a run that Python began has settings and no whole configuration."""
    problems: list[Problem] = []
    layer = _read_file(Path(path), problems)
    if layer is None:
        raise _error(problems)
    return dict(layer.plain())


def read_section(path: str | Path, name: str, kind: type[S]) -> S:
    """One section of a file, checked alone; what it leaves out has the schema's default. Raises ConfigError."""
    try:
        return kind.model_validate(read_sections(path).get(name) or {})
    except ValidationError as error:
        found = error.errors(include_url=False)[0]
        key = ".".join((name, *map(str, found["loc"])))
        raise ConfigError(f"{path}: {key}: {found['msg'].lower()}") from error


def dump_config(config: Config) -> str:
    """The configuration as YAML with every default written out; `read_config` gives an equal one."""
    return write_yaml(config.model_dump())


def _error(problems: Sequence[Problem]) -> ConfigError:
    sentences = (" ".join(filter(None, (".".join(path), message))) for _, path, message in problems)
    places = (problem.where for problem in problems)
    return ConfigError("\n".join(map(": ".join, zip(places, sentences, strict=True))))


def _merged(
    paths: list[Path], overrides: Sequence[str], under: str | None = None
) -> tuple[Located, list[Problem]]:
    problems: list[Problem] = []
    tree = Located(", ".join(map(str, paths)) or COMMAND_LINE, {})
    if under is not None and (layer := read_yaml(under, tree.where)[0]) is not None:
        tree = layer
    for path in paths:
        layer = _read_file(path, problems)
        if layer is not None:
            tree = Located(tree.where, merge(tree, layer, problems).value)
    layer = override_layer(overrides, problems)
    return Located(tree.where, merge(tree, layer, problems).value), problems


def _read_file(path: Path, problems: list[Problem]) -> Located | None:
    try:
        if path.stat().st_size > MAX_BYTES:
            problems.append(Problem(str(path), (), f"is larger than {MAX_BYTES // 1_000_000} MB"))
            return None
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        reason = (error.strerror or "").lower() if isinstance(error, OSError) else "not UTF-8 text"
        problems.append(Problem(str(path), (), f"cannot be read: {reason}"))
        return None
    layer, found = read_yaml(text, str(path))
    problems += found
    if layer is not None and layer.value is None:
        return Located(layer.where, {})
    if layer is not None and not isinstance(layer.value, dict):
        message = f"must be a section of keys, got {shown(layer.plain())}"
        problems.append(Problem(layer.where, (), message))
        return None
    return layer


def _validate(data: Any, broken: set[KeyPath]) -> tuple[Config | None, list[Finding]]:
    """Check, put stand-ins where something is wrong, and check again: a wrong key hides nothing behind it."""
    found: list[Finding] = []
    for _ in range(4):  # types, conflicts in a section, conflicts between sections, and nothing left
        try:
            config = Config.model_validate(data)
            return (None if found else config), found
        except ValidationError as error:
            new = findings(error, data)
            meant = {path for finding in new for path in finding.meant}
            found += [each for each in new if each.path not in meant and not _rests_on(each, broken)]
            broken = broken | meant | {finding.path for finding in new}
            for finding in new:
                data = _without(data, finding.path)
    return None, found


def _rests_on(finding: Finding, broken: set[KeyPath]) -> bool:
    """Whether the finding may be no more than the echo of an error already shown."""
    keys = (finding.path, *finding.others)
    return any(key[: len(path)] == path or path[: len(key)] == key for key in keys for path in broken)


def _without(data: Any, path: KeyPath, inside: KeyPath = ()) -> Any:
    """`data` with the value at `path` left to its default, or to a stand-in where it has none."""
    first, *rest = path
    if not isinstance(data, dict):
        return data
    if rest and isinstance(data.get(first), dict):
        return {**data, first: _without(data[first], tuple(rest), (*inside, first))}
    kept = {key: value for key, value in data.items() if str(key) != first}
    if is_required((*inside, first)):
        kept[first] = STAND_INS[first]
    return kept
