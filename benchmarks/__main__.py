"""python -m benchmarks [--only NAME | --write] [--rounds N]: every measurement, in one table."""

import argparse
import os
import platform
import sys
from collections.abc import Callable, Sequence
from importlib import metadata, util
from pathlib import Path

from benchmarks import (
    costs,
    evaluations,
    growth,
    images,
    mlflow_outages,
    order,
    recovery,
    restarts,
    saves,
    scaling,
    starts,
    steps,
)
from benchmarks.frame import Row, as_table
from benchmarks.goals import Figure, as_goals
from benchmarks.peers import missing
from tests.page_tables import PAGE as RELIABILITY
from tests.page_tables import put_into

Measurement = Callable[[int], Sequence[Row | Figure | str]]  # a text is a line of a table of its own
MEASUREMENTS: dict[str, Measurement] = {
    "mlflow": mlflow_outages.measure,
    "recovery": recovery.measure,
    "steps": steps.measure,
    "logged": steps.measure_mlflow,
    "images": images.measure,
    "evaluations": evaluations.measure,
    "starts": starts.measure,
    "saves": saves.measure,
    "order": order.measure,
    "restarts": restarts.measure,
    "costs": costs.measure,
    "growth": growth.measure,
    "scaling": scaling.measure,
}
OF_RELIABILITY = ["mlflow", "recovery"]  # what faults cost; the others are promises about speed, beside peers
PERFORMANCE = Path(__file__).parents[1] / "docs" / "performance.md"
ROUNDS = 5
VERSIONS = ["torch", "torchvision", "mlflow", "lightning", "accelerate"]


def machine() -> str:
    """What the numbers belong to."""
    versions = ", ".join(f"{name} {metadata.version(name)}" for name in VERSIONS if util.find_spec(name))
    cores = len(os.sched_getaffinity(0))
    return f"{cores} cores of {_processor()}, Python {platform.python_version()}, {versions}"


def _processor() -> str:
    with open("/proc/cpuinfo") as lines:  # noqa: PTH123
        names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def main(arguments: Sequence[str] | None = None) -> int:
    """The command."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument(
        "--only", choices=sorted(MEASUREMENTS), action="append", help="this one; may be repeated"
    )
    parser.add_argument("--rounds", type=int, default=ROUNDS, help=f"of each measurement; default {ROUNDS}")
    write_help = "put the tables into docs/performance.md and docs/reliability.md"
    parser.add_argument("--write", action="store_true", help=write_help)
    given = parser.parse_args(arguments)
    if given.only and given.write:
        parser.error("--write replaces the whole tables of both pages; leave out --only")
    names = given.only or list(MEASUREMENTS)
    absent = missing()
    if absent and set(names) - set(OF_RELIABILITY):
        parser.error(absent)
    found = {}
    for name in names:
        found[name] = MEASUREMENTS[name](given.rounds)
        if len(names) > 1:  # the others may take hours, and one of them may fail
            print("\n".join(["", *table(found[name], given.rounds)]), flush=True)
    of_faults = [one for name in OF_RELIABILITY for one in found.pop(name, [])]
    of_speed = [one for measured in found.values() for one in measured]
    pages = {RELIABILITY: table(of_faults, given.rounds), PERFORMANCE: table(of_speed, given.rounds)}
    for page, lines in pages.items():
        if lines:
            print("\n".join(["", *lines]))
        if given.write:
            put_into(page, {"bench": lines})
    return 0


def table(found: Sequence[Row | Figure | str], rounds: int) -> list[str]:
    """Goals first, then every row that they were taken from; nothing where nothing was measured."""
    figures = [one for one in found if isinstance(one, Figure)]
    rows = [one for one in found if isinstance(one, Row)]
    lines = [one for one in found if isinstance(one, str)]
    tables = [each for each in (as_goals(figures), as_table(rows)) if len(each) > 2] + (
        [lines] if lines else []
    )
    written = [f"{machine()}; {rounds} rounds:"] if tables else []
    for each in tables:
        written += ["", *each]
    return written


if __name__ == "__main__":
    sys.exit(main())
