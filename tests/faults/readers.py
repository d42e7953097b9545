"""`python -m tests.faults.readers KIND TIMES SEED FOLDER`: gives mutated files to what reads them, within bounds.

Prints {"tried", "refused", "failures": [...]}. What is neither read nor refused in the project's own words is a
failure, and so is what takes more memory than the bound, which the kernel holds, or a minute.
"""

import json
import random
import resource
import signal
import sys
import traceback
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import yaml
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st

from dist_trainer.errors import DistTrainerError
from tests.faults.mutations import change_bytes, change_tree, change_yaml

REPOSITORY = Path(__file__).parents[2]
MORE_MEMORY = 300 << 20
ONE_MAY_TAKE_S = 60
Trial = Callable[[random.Random], None]


def configurations(folder: Path) -> Trial:
    """Real ones, changed as text, as bytes and as trees, also on the command line."""
    from dist_trainer.config.load import load_config

    sources = [path.read_text() for path in sorted((REPOSITORY / "configs").glob("*.yaml"))]
    path = folder / "config.yaml"

    def one(draw: random.Random) -> None:
        text, values = draw.choice(sources), []
        match draw.randrange(4):
            case 0:
                path.write_bytes(change_bytes(text.encode(), draw))
            case 1:  # JSON is YAML, and has no trouble with what is deep
                path.write_text(json.dumps(change_tree(yaml.safe_load(text), draw)))
            case 2:
                path.write_text(text)
                values = change_yaml("optimizer.lr=0.1\nmodel.args.0=[1, {a: 2}]\n", draw).split("\n")
            case _:
                path.write_text(change_yaml(text, draw))
        load_config([path], values)

    return one


def checkpoints(folder: Path) -> Trial:
    """Manifests, markers, headers, notes and values: as they are, and in a checkpoint whose digests are right."""
    from tests.faults.hostile_checkpoints import make_trial

    return make_trial(folder)


def run_files(folder: Path) -> Trial:
    """The files of a run folder, one at a time, read by whatever reads them."""
    from tests.faults.hostile_runs import make_trial

    return make_trial(folder)


KINDS = {"configurations": configurations, "checkpoints": checkpoints, "run-files": run_files}


@dataclass
class Tally:
    """What came of the trials."""

    trial: Trial
    tried: int = 0
    refused: int = 0
    failures: list[str] = field(default_factory=list)

    def take(self, draw: random.Random) -> None:
        """Try one; what fails is noted, and raised so that hypothesis finds a smaller one."""
        self.tried += 1
        signal.alarm(ONE_MAY_TAKE_S)
        try:
            self.trial(draw)
        except DistTrainerError as error:
            self.refused += 1
            assert str(error), "an error without a word"
        except BaseException:
            self.failures.append(traceback.format_exc()[-1500:])
            raise
        finally:
            signal.alarm(0)


def bound_memory() -> None:
    """As much address space as there is now and a bit more; past that Python raises MemoryError."""
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    limit = pages * resource.getpagesize() + MORE_MEMORY
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))


class TooLong(BaseException):
    """One took longer than a minute."""


def ring(number: int, frame: object) -> None:
    raise TooLong


def main() -> None:
    kind, times, first, folder = sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), Path(sys.argv[4])
    tally = Tally(KINDS[kind](folder))
    signal.signal(signal.SIGALRM, ring)
    try:
        tally.take(random.Random(first))
        bound_memory()  # once everything is imported
        if kind == "configurations":
            by_hypothesis(tally, times, first)
        else:
            for number in range(1, times):
                tally.take(random.Random(f"{first}-{number}"))
    except Exception:
        print(f"seed {first}, number {tally.tried}", file=sys.stderr)
    print(json.dumps({"tried": tally.tried, "refused": tally.refused, "failures": tally.failures[-1:]}))


def by_hypothesis(tally: Tally, times: int, first: int) -> None:
    """Draws by hypothesis, which makes what fails as small as it can."""

    @seed(first)
    @settings(
        max_examples=times - 1,
        deadline=None,
        database=None,
        phases=[Phase.generate, Phase.shrink],
        suppress_health_check=list(HealthCheck),
    )
    @given(st.randoms(use_true_random=False))
    def one(draw: random.Random) -> None:
        tally.take(draw)

    one()


if __name__ == "__main__":
    main()
