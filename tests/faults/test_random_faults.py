"""Random faults in the whole command: whatever dies, freezes or breaks, the run ends as if nothing had been.

FAULT_SEED=n tries the seed n alone, FAULT_SEED=n-m those from n to m. Each trial prints its own.
"""

import os
from dataclasses import asdict
from pathlib import Path

import pytest

from tests.faults.ledger import record, record_trial, times
from tests.faults.trials import References, try_once

pytestmark = pytest.mark.timeout(240)  # a trial may first make the reference of its kind


def seeds() -> range:
    if chosen := os.environ.get("FAULT_SEED"):
        first, _, last = chosen.partition("-")
        return range(int(first), int(last or first) + 1)
    return range(times(10, 225))


@pytest.fixture(scope="module")
def references(tmp_path_factory: pytest.TempPathFactory) -> References:
    return References(tmp_path_factory.mktemp("untouched"))


@pytest.mark.parametrize("seed", seeds())
def test_after_a_random_fault_the_run_is_the_untouched_one(
    seed: int, tmp_path: Path, references: References
) -> None:
    fault = "random faults"
    try:
        trial = try_once(seed, tmp_path, references)
    except BaseException:
        record(fault, tried=1, lost=1, note=f"FAULT_SEED={seed}")
        raise
    record(fault, tried=int(not trial.missed), lost=0, note=f"FAULT_SEED={seed}")
    record_trial(asdict(trial))
