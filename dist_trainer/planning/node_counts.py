"""Numbers of nodes as they are typed: 1,2,4,...,1024 or 8,16,32."""

from itertools import pairwise

from dist_trainer.errors import UsageError

USUAL = "1,2,4,...,1024"
LARGEST, MOST = 1_000_000, 100
_DOTS = ("...", "…")
_FEWEST_BEFORE_DOTS = 3  # 1,2,...,8 could mean doubling as well as counting


def parse_node_counts(text: str) -> list[int]:
    """The numbers, rising; dots go on as the three or more before them do, by the same factor or the same sum.

    Raises UsageError.
    """
    words = [word.strip() for word in text.split(",")]
    dots = [place for place, word in enumerate(words) if word in _DOTS]
    numbers = [_number(text, word) for word in words if word not in _DOTS]
    if dots:
        if dots != [len(words) - 2] or dots[0] < _FEWEST_BEFORE_DOTS:
            raise _error(text, "dots stand between three numbers or more and the last one")
        numbers = _go_on(text, numbers[:-1], numbers[-1])
    if any(before >= after for before, after in pairwise(numbers)):
        raise _error(text, "each number must be larger than the one before")
    if len(numbers) > MOST:
        raise _error(text, f"these are more than {MOST} numbers")
    return numbers


def _number(text: str, word: str) -> int:
    if not (word.isascii() and word.isdigit()) or not 1 <= int(word) <= LARGEST:
        raise _error(text, f"{word!r} is no number from 1 to {LARGEST:,}")
    return int(word)


def _go_on(text: str, before: list[int], last: int) -> list[int]:
    """The numbers before the dots and those that the dots stand for, up to the last."""
    sums = {after - first for first, after in pairwise(before)}
    factors = {after / first for first, after in pairwise(before)}
    if len(sums) == 1 and (step := min(sums)) > 0:
        numbers = [*before, *range(before[-1] + step, last + 1, step)][: MOST + 1]
        reaches = (last - before[-1]) % step == 0
    elif len(factors) == 1 and (factor := min(factors)) > 1 and factor == int(factor):
        numbers = list(before)
        while numbers[-1] * int(factor) <= last:
            numbers.append(numbers[-1] * int(factor))
        reaches = numbers[-1] == last
    else:
        raise _error(text, "before the dots numbers must rise by one factor, or by one sum")
    if not reaches or last <= before[-1]:
        raise _error(text, f"going on from {', '.join(map(str, before))} does not come to {last}")
    return numbers


def _error(text: str, why: str) -> UsageError:
    return UsageError(f"--nodes must be numbers of nodes such as {USUAL} or 8,16,32, got {text!r}: {why}")
