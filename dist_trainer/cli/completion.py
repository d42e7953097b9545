"""What a shell offers at the Tab key: runs, sweeps, configuration files and keys, and the words of some options.

A shell falls back on files where nothing is offered. Keys are offered whole, `train.epochs=`; where one is left alone
it is offered with its value as well, so that bash, which takes what both have in common, puts no blank behind it.
"""

import json
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import typer

Offers = list[tuple[str, str]]  # what is put in, and a word on it where a shell shows one
_FILES = (".yaml", ".yml")


def complete_run(ctx: typer.Context, incomplete: str) -> Offers:
    """The names of runs."""
    return [(name, "run") for name in _named(ctx, "run.json") if name.startswith(incomplete)]


def complete_sweep(ctx: typer.Context, incomplete: str) -> Offers:
    """The names of sweeps."""
    return [(name, "sweep") for name in _named(ctx, "sweep.json") if name.startswith(incomplete)]


def complete_run_or_sweep(ctx: typer.Context, incomplete: str) -> Offers:
    """Either."""
    return complete_run(ctx, incomplete) + complete_sweep(ctx, incomplete)


def complete_config(ctx: typer.Context, incomplete: str) -> Offers:
    """YAML files, and once something was typed the keys that begin so: the schema's and those of the files given."""
    given = [Path(text) for text in ctx.params.get("arguments") or () if text.endswith(_FILES)]
    return list(_files(incomplete)) + (_keys(incomplete, given) if incomplete else [])


def complete_run_or_config(ctx: typer.Context, incomplete: str) -> Offers:
    """What `drill` takes."""
    return complete_run(ctx, incomplete) + complete_config(ctx, incomplete)


def complete_checkpoint(incomplete: str) -> list[str]:
    """The words for one."""
    return [word for word in ("last", "best") if word.startswith(incomplete)]


def complete_split(incomplete: str) -> list[str]:
    """The parts of the data."""
    return [word for word in ("train", "val", "test") if word.startswith(incomplete)]


def complete_example(incomplete: str) -> Offers:
    """The examples of `init`."""
    from dist_trainer.new_project.examples import examples

    return [(each.name, each.about) for each in examples() if each.name.startswith(incomplete)]


def complete_fault(incomplete: str) -> Offers:
    """The faults of `drill`."""
    from dist_trainer.diagnose.faults import FAULTS

    return [(name, fault.says) for name, fault in FAULTS.items() if name.startswith(incomplete)]


def _named(ctx: typer.Context, file: str) -> list[str]:
    runs = Path(ctx.params.get("runs") or "runs")
    with suppress(OSError):
        return sorted(path.parent.name for path in runs.glob(f"*/{file}"))
    return []


def _files(incomplete: str) -> Iterator[tuple[str, str]]:
    found = _entries(incomplete)
    while len(found) == 1 and found[0].endswith("/"):  # bash would put a blank behind a folder that is alone
        inner = _entries(found[0])
        if not inner:
            break
        found = inner
    yield from ((name, "folder" if name.endswith("/") else "configuration") for name in found)


def _entries(incomplete: str) -> list[str]:
    """The YAML files and folders that begin so, as they are typed."""
    name = incomplete.rpartition("/")[2]
    before = incomplete[: len(incomplete) - len(name)]
    found = []
    with suppress(OSError, RuntimeError):  # no such folder, or in ~name/ no such user
        for path in sorted(Path(before or ".").expanduser().iterdir()):
            if path.name.startswith(name) and (name or not path.name.startswith(".")):
                if path.is_dir():
                    found.append(f"{before}{path.name}/")
                elif path.suffix in _FILES:
                    found.append(f"{before}{path.name}")
    return found


def _keys(incomplete: str, given: Sequence[Path]) -> Offers:
    from dist_trainer.config.editor_schema import settable_keys

    known = {each.name: (each.default, each.meaning) for each in settable_keys()}
    for path in given:
        for name, value in _values_in(path):
            known[name] = (value, known[name][1] if name in known else f"in {path.name}")
    found = {name: each for name, each in known.items() if name.startswith(incomplete)}
    if len(found) == 1:
        ((name, (value, meaning)),) = found.items()
        return [(f"{name}=", meaning), (f"{name}={value}", "as it is now")]
    return [(f"{name}=", meaning) for name, (_, meaning) in found.items()]


def _values_in(path: Path) -> Iterator[tuple[str, str]]:
    """The keys that a file gives a single value, and that value as it is typed."""
    from dist_trainer.config.yaml_rules import read_yaml

    text = ""
    with suppress(OSError, UnicodeDecodeError):
        text = path.read_text(encoding="utf-8")
    tree, _ = read_yaml(text, str(path))
    yield from _leaves("", tree.plain() if tree is not None else None)


def _leaves(prefix: str, value: Any) -> Iterator[tuple[str, str]]:
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from _leaves(f"{prefix}.{key}" if prefix else str(key), inner)
    elif prefix and isinstance(value, str | int | float | None):
        yield prefix, value if isinstance(value, str) else json.dumps(value)
