"""Figures out of samples that were taken in turns: medians, and ratios within each round."""

import json
import subprocess
import sys
from collections.abc import Mapping, Sequence
from statistics import median

from benchmarks.frame import Quantity, Sample
from benchmarks.goals import Figure

HERE, FLOOR = "here", "floor"
Samples = Mapping[str, Sequence[Sample]]  # by variant, one a round


def middle(samples: Sequence[Sample], quantity: str) -> float:
    """The median over the rounds."""
    return median(sample[quantity] for sample in samples)


def ratio(samples: Samples, quantity: str, *, of: str = HERE, to: str, quantity_of: str = "") -> float:
    """The median of the ratios within each round; `quantity_of` where the two have other names for it."""
    pairs = zip(samples[of], samples[to], strict=True)
    return median(one[quantity_of or quantity] / other[quantity] for one, other in pairs)


def beside_peer(
    samples: Samples,
    what: str,
    unit: str,
    quantity: str,
    *,
    peer: str,
    goal: float,
    scale: float = 1.0,
    own_name: str = "",
    at_least: bool = False,
) -> Figure:
    """This project beside one peer in the same round; the floor is there where it was measured.

    `scale` is from the samples' unit to the shown one, `own_name` this project's quantity where it is another.
    """
    floors = [sample[quantity] for sample in samples.get(FLOOR, ()) if quantity in sample]
    return Figure(
        what,
        unit,
        here=scale * middle(samples[HERE], own_name or quantity),
        peers={peer: scale * middle(samples[peer], quantity)},
        floor=scale * median(floors) if floors else None,
        ratio=ratio(samples, quantity, to=peer, quantity_of=own_name),
        goal=goal,
        at_least=at_least,
    )


def beside_fastest(
    samples: Samples,
    what: str,
    quantity: Quantity,
    *,
    over: Sequence[str],
    goal: float,
    floor: str | None = None,
) -> Figure:
    """This project over the fastest of `over` in the same round, beside all peers; `floor` names what is none."""
    shown = {name: quantity.scale * middle(found, quantity.name) for name, found in samples.items()}
    rounds = zip(samples[HERE], *(samples[name] for name in over), strict=True)
    ratios = [ours[quantity.name] / min(peer[quantity.name] for peer in peers) for ours, *peers in rounds]
    peers = {name: value for name, value in shown.items() if name not in (HERE, floor)}
    return Figure(what, quantity.unit, shown[HERE], peers, shown.get(floor or ""), median(ratios), goal)


def in_new_process(module: str, *arguments: object, timeout_s: float = 600) -> Sample:
    """What `python -m module arguments` prints as JSON: nothing there is warm, and memory is its own."""
    command = [sys.executable, "-m", module, *map(str, arguments)]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, timeout=timeout_s, check=True)
    sample: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return sample
