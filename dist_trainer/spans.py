"""Runs of consecutive numbers, for whoever names many ranks, attempts or jobs in few words."""

from collections.abc import Iterable


def spans(numbers: Iterable[int]) -> list[tuple[int, int]]:
    """First and last of each run, in order, each number once: 3, 0, 1, 2, 7 give (0, 3) and (7, 7)."""
    found: list[tuple[int, int]] = []
    for number in sorted(set(numbers)):
        if found and number == found[-1][1] + 1:
            found[-1] = (found[-1][0], number)
        else:
            found.append((number, number))
    return found


def ranges(numbers: Iterable[int]) -> str:
    """0, 1, 3-7: two that follow each other are no range."""
    return ", ".join(
        str(first) if first == last else f"{first}-{last}" if last > first + 1 else f"{first}, {last}"
        for first, last in spans(numbers)
    )
