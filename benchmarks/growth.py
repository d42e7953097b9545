"""What must not grow with the number of ranks: 1, 2, 4 and 8 gloo ranks of one real training side by side.

The training is the command's, of a small net whose global batch grows with the ranks. What each rank spends is
measured in it: see benchmarks/grown.py. With more ranks than cores a rank finds colder caches at each turn, which
no count of its own work explains: heartbeats, which have nothing to do with other ranks, show by how much.
"""

import json
from collections.abc import Mapping, Sequence
from functools import partial

from benchmarks.compared import middle, ratio
from benchmarks.frame import Sample, in_turns
from benchmarks.goals import Figure
from benchmarks.grown import AT_STEPS
from benchmarks.trained import run, training

RANKS = (1, 2, 4, 8)
GOAL = 1.5
_ROWS_A_RANK = 8
_UNITS = {"memory": ("MB", 1e-6), "start-up": ("ms", 1e3), "checkpoint": ("ms", 1e3)}  # others are in us
_LABELS = {"rank 0": "rank 0", "others": "the other ranks, highest"}

Samples = Mapping[str, Sequence[Sample]]


def measure(rounds: int, *, ranks: Sequence[int] = RANKS) -> list[Figure | str]:
    """By how much each quantity of rank 0 is more with the most ranks than with one; then the lines of a table
    with all of them. A minute a round."""
    samples = _samples(rounds, ranks)
    return [*growth(samples, ranks), *as_table(samples, ranks)]


def _samples(rounds: int, ranks: Sequence[int]) -> Samples:
    return in_turns({str(count): partial(sample, count) for count in ranks}, rounds)


def sample(ranks: int) -> Sample:
    """What rank 0 spent, and the highest of the others, as `rank 0: heartbeat` and `others: heartbeat`."""
    overrides = [
        f"launch.workers_per_node={ranks}",
        f"data.global_batch_size={_ROWS_A_RANK * ranks}",
        "hooks=[{target: benchmarks.grown.Meter}]",
        "checkpoint.every_steps=100000",
    ]
    with training(*overrides, steps=AT_STEPS[-1] + 1) as one:
        run(one)
        found = [json.loads((one.folder / f"rank-{rank}.json").read_text()) for rank in range(ranks)]
    return of_ranks(found)


def of_ranks(found: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """One sample of what each rank wrote, by rank."""
    first, *others = found
    sample = {f"rank 0: {name}": value for name, value in first.items()}
    for name in others[0] if others else ():
        sample[f"others: {name}"] = max(other[name] for other in others)
    return sample


def growth(samples: Samples, ranks: Sequence[int]) -> list[Figure]:
    """Rank 0's, since there is one for each number of ranks."""
    least, most = str(ranks[0]), str(ranks[-1])
    return [
        Figure(
            f"{name.removeprefix('rank 0: ')}, {most} ranks to {least}",
            unit,
            scale * middle(samples[most], name),
            {},
            None,
            ratio(samples, name, of=most, to=least),
            GOAL,
        )
        for name, (unit, scale) in _quantities(samples[least][0]).items()
    ]


def as_table(samples: Samples, ranks: Sequence[int]) -> list[str]:
    """Growth is what it is with the most ranks, times that with the first, and times that with the second number:
    one rank alone compares nothing and waits for nobody."""
    most, bases = str(ranks[-1]), [str(count) for count in ranks[:2]]
    columns = [*map(str, ranks), *(f"{most} to {base}" for base in bases)]
    lines = [
        f"| CPU time or memory of a rank | {' | '.join(columns)} |",
        f"| --- |{' ---: |' * len(columns)}",
    ]
    for name, (unit, scale) in _quantities(samples[str(ranks[-1])][0]).items():
        measured = {str(count) for count in ranks if name in samples[str(count)][0]}
        shown = [
            f"{scale * middle(samples[str(count)], name):.3g} {unit}" if str(count) in measured else ""
            for count in ranks
        ]
        grown = [
            f"{ratio(samples, name, of=most, to=base):.2f}" if base in measured else "" for base in bases
        ]
        who, _, quantity = name.partition(": ")
        lines.append(f"| {quantity}: {_LABELS[who]} | {' | '.join([*shown, *grown])} |")
    return lines


def _quantities(sample: Sample) -> dict[str, tuple[str, float]]:
    """Unit and scale by name."""
    found = {}
    for name in sample:
        quantity = name.partition(": ")[2]
        found[name] = next((unit for word, unit in _UNITS.items() if quantity.startswith(word)), ("us", 1e6))
    return found
