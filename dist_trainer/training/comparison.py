"""Finds what the ranks do not have in common, and which of them is the odd one."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from dist_trainer.adapters.distributed import Group
from dist_trainer.training import digests

_SHOWN_CHARACTERS = 200
_ABSENT = "nothing"


class Fact(NamedTuple):
    """What is compared, and how it is shown, which may be less: a password has no place in a message."""

    value: str
    shown: str


@dataclass(frozen=True)
class Difference:
    """A key of a section whose facts differ; None where a rank has no such key. The same on every rank."""

    section: str
    key: str
    facts: tuple[Fact | None, ...]  # by rank

    @property
    def is_absent_somewhere(self) -> bool:
        """Whether a rank has no such key."""
        return None in self.facts

    @property
    def odd_ranks(self) -> list[int]:
        """Those apart from the majority; empty where there is none."""
        return odd_ranks(self.facts)

    def __str__(self) -> str:
        return f"{self.key}: {told_apart(self.facts, [self._shown(fact) for fact in self.facts])}"

    def _shown(self, fact: Fact | None) -> str:
        text = _ABSENT if fact is None else fact.shown
        return text if len(text) <= _SHOWN_CHARACTERS else f"{text[:_SHOWN_CHARACTERS]}..."


def differences(group: Group, sections: Mapping[str, Mapping[str, Fact]]) -> list[Difference]:
    """What differs among the ranks, in the order of the sections, which are the same on all. Collective.

    One small exchange where everything agrees; the facts themselves travel only where a section's digests
    differ, which every rank then knows.
    """
    own = [
        digests.combined(f"{key}={facts[key].value}" for key in sorted(facts)) for facts in sections.values()
    ]
    table = group.gather_start(torch.tensor(own, dtype=torch.int64)).wait()
    differing = [
        name for name, column in zip(sections, table.T.tolist(), strict=True) if len(set(column)) > 1
    ]
    if not differing:
        return []
    told = group.gather_bytes(json.dumps({name: dict(sections[name]) for name in differing}).encode())
    by_rank = [json.loads(text) for text in told]
    return [
        difference
        for name in differing
        for difference in _of_section(name, [facts[name] for facts in by_rank])
    ]


def _of_section(section: str, by_rank: Sequence[Mapping[str, Sequence[str]]]) -> list[Difference]:
    keys = dict.fromkeys(key for facts in by_rank for key in facts)
    found = []
    for key in keys:
        facts = tuple(Fact(*each[key]) if key in each else None for each in by_rank)
        if len({fact.value if fact else None for fact in facts}) > 1:
            found.append(Difference(section, key, facts))
    return found


def odd_ranks(values: Sequence[object]) -> list[int]:
    """The ranks whose value is not that of more than half of them; empty where no value is."""
    common = _majority(values)
    return [] if common is None else [rank for rank, value in enumerate(values) if value != values[common]]


def told_apart(values: Sequence[object], shown: Sequence[str]) -> str:
    """`a on rank 1, b on the others`; without a majority every rank's."""
    common = _majority(values)
    ranks: dict[object, list[int]] = {}
    for rank, value in enumerate(values):
        if common is None or value != values[common]:
            ranks.setdefault(value, []).append(rank)
    parts = [f"{shown[each[0]]} on {named(each)}" for each in ranks.values()]
    return ", ".join(parts if common is None else [*parts, f"{shown[common]} on the others"])


def _majority(values: Sequence[object]) -> int | None:
    """A rank whose value more than half of them have."""
    for rank, value in enumerate(values):
        if 2 * sum(value == other for other in values) > len(values):
            return rank
    return None


def named(ranks: Sequence[int]) -> str:
    """`rank 1`, `ranks 1 and 2`, `ranks 1, 2, 3, ...`."""
    if len(ranks) == 1:
        return f"rank {ranks[0]}"
    if len(ranks) > 8:
        return f"ranks {', '.join(map(str, ranks[:8]))}, ... ({len(ranks)} of them)"
    return f"ranks {', '.join(map(str, ranks[:-1]))} and {ranks[-1]}"


def first_difference(group: Group, name: str, tensor: Tensor) -> str:
    """The first element of a tensor that differs, with its values: `head.bias[3]: 0.5 on rank 1, ...`.

    The tensor has one type and shape on all ranks. Collective; two exchanges, of a part of the tensor.
    """
    sums = digests.of_blocks(tensor).cpu()
    differing = _first_differing_column(group.gather_start(sums).wait())
    if differing is None:
        return ""
    size = 8 * digests.block_words(tensor)
    start = differing * size
    part = digests.in_bytes(tensor)[start : start + size].cpu()
    parts = group.gather_start(part).wait()
    byte = _first_differing_column(parts)
    if byte is None:
        return ""
    width = tensor.element_size()
    first = byte // width * width
    values = [row[first : first + width].clone().view(tensor.dtype).item() for row in parts]
    index = torch.unravel_index(torch.tensor((start + first) // width), tensor.shape)
    place = ",".join(str(int(each)) for each in index)
    bits = [row[first : first + width].numpy().tobytes() for row in parts]
    return f"{name}[{place}]: {told_apart(bits, [repr(value) for value in values])}"


def _first_differing_column(table: Tensor) -> int | None:
    found = (table != table[0]).any(0).nonzero().flatten()
    return int(found[0]) if len(found) else None
