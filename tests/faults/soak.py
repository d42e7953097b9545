"""Every fault as often as the issue of reliability asks, then random ones with fresh seeds until the time is up.

    python -m tests.faults.soak --minutes 30 [--write]

Prints one table of what was tried and lost, and one of what random faults cost; ends with 1 where anything was
lost or a test failed. `--write` puts both into docs/reliability.md, between its two pairs of markers, where all
of it was tried and passed. The raw lines stay in .cache/soak/, and so do the folders of tests that failed.
"""

import argparse
import os
import random
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from tests.faults import table
from tests.page_tables import PAGE, put_into

ROOT = Path(__file__).parents[2]
LEDGERS = ROOT / ".cache" / "soak"
SEEDS_AT_A_TIME = 24
TRIALS = "tests/faults/test_random_faults.py"
ALL = ["tests/faults"]


def run_tests(ledger: Path, *paths: str, **variables: str) -> bool:
    """Whether the tests passed, tried whole; their rows go to the ledger."""
    kept = [
        "-o",
        "tmp_path_retention_policy=failed",
        f"--basetemp={ledger.with_suffix('')}-{time.time():.0f}",
    ]
    arguments = ["-q", "-n", "3", "-p", "no:cacheprovider", "-m", "not examples and not slurm", *kept, *paths]
    environment = {**os.environ, "FAULTS": "whole", "FAULTS_LEDGER": str(ledger), **variables}
    done = subprocess.run(
        [sys.executable, "-m", "pytest", *arguments], cwd=ROOT, env=environment, check=False
    )
    return done.returncode == 0


def soak(ledger: Path, paths: Sequence[str], *, until: float) -> bool:
    """Try everything once, then random faults while there is time; whether all tests passed."""
    passed = run_tests(ledger, *paths)
    while time.monotonic() < until:
        first = random.SystemRandom().randrange(10**9)
        print(f"FAULT_SEED={first}-{first + SEEDS_AT_A_TIME - 1}", flush=True)
        passed &= run_tests(ledger, TRIALS, FAULT_SEED=f"{first}-{first + SEEDS_AT_A_TIME - 1}")
    return passed


def main(arguments: Sequence[str] | None = None) -> int:
    """The command."""
    parser = argparse.ArgumentParser(prog="python -m tests.faults.soak", description=__doc__.splitlines()[0])
    parser.add_argument("--minutes", type=float, default=0.0, help="at least once everything, however long")
    parser.add_argument("--write", action="store_true", help="put the tables into docs/reliability.md")
    parser.add_argument("paths", nargs="*", default=ALL, help="of tests; default: all faults")
    given = parser.parse_args(arguments)
    LEDGERS.mkdir(parents=True, exist_ok=True)
    ledger = LEDGERS / f"{time.strftime('%Y%m%d-%H%M%S')}.jsonl"
    began, passed = time.monotonic(), False
    try:
        passed = soak(ledger, given.paths, until=began + 60 * given.minutes)
    except KeyboardInterrupt:
        print("interrupted: what was tried until now")
    lines = table.read_lines(ledger)
    tables = {"faults": table.fault_table(lines), "random faults": table.trial_table(lines)}
    for rows in tables.values():
        print("\n" + "\n".join(rows))
    passed = passed and table.lost(lines) == 0
    print(
        f"\n{(time.monotonic() - began) / 60:.0f} minutes; {'all passed' if passed else 'FAILED'}; {ledger}"
    )
    if given.write:
        _write(tables, passed=passed, paths=given.paths)
    return 0 if passed else 1


def _write(tables: Mapping[str, Sequence[str]], *, passed: bool, paths: Sequence[str]) -> None:
    """Put the tables into the page, or say why they are not what it promises."""
    if not passed:
        why = "something was lost, a test failed or the soak was interrupted"
    elif paths != ALL:
        why = f"only {', '.join(paths)} was tried; give no paths"
    elif not all(tables.values()):
        why = "there is an empty table"
    else:
        put_into(PAGE, tables)
        return
    print(f"nothing was written to {PAGE}: {why}")


if __name__ == "__main__":
    sys.exit(main())
