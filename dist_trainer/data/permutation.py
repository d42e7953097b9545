"""A random order of n things in O(1) memory: any stretch of it can be had without the rest.

From 4,096 on it is a Feistel network on the least power of two that holds n, keyed, with cycle walking: an
output outside [0, n) goes through again until it is inside (Black and Rogaway: Ciphers with arbitrary finite
domains, 2002). Below that, the halves of a Feistel network are too narrow to mix well, so the order is that
of n sorted hashes.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from dist_trainer.data.draws import mix, mix_array

Indices = NDArray[np.int64]

ROUNDS = 6
TABLE_BELOW = 4096
_CHUNK = 16384  # four arrays of this many stay in a core's cache
_MULTIPLIERS = (np.uint64(0x9E3779B97F4A7C15), np.uint64(0xD6E8FEB86659FD93))


class Permutation:
    """A bijection on [0, n), n below 2**62, chosen by the key: call it with positions."""

    def __init__(self, n: int, key: int) -> None:
        if not 1 <= n < 2**62:
            raise ValueError(f"n must be from 1 to 2**62 - 1, got {n}")
        self.n = n
        self._round_keys = [np.uint64(mix(mix(key) + number)) for number in range(ROUNDS)]
        bits = max(2, (n - 1).bit_length())
        self._low_bits, self._high_bits = bits // 2, bits - bits // 2
        self._table: Indices | None = None
        if n < TABLE_BELOW:
            self._table = np.argsort(mix_array(np.arange(n), mix(key)), kind="stable").astype(np.int64)

    def __call__(self, positions: NDArray[Any]) -> Indices:
        """The elements at these positions, each in [0, n), as int64."""
        if self._table is not None:
            found: Indices = self._table[positions]
            return found
        result = np.empty(len(positions), dtype=np.int64)
        for first in range(0, len(positions), _CHUNK):
            chunk = positions[first : first + _CHUNK].astype(np.uint64)
            result[first : first + _CHUNK] = self._walk(chunk).view(np.int64)
        return result

    def _walk(self, values: NDArray[np.uint64]) -> NDArray[np.uint64]:
        values = self._feistel(values)
        outside = np.flatnonzero(values >= self.n)
        while outside.size:
            again = self._feistel(values[outside])
            values[outside] = again
            outside = outside[again >= self.n]
        return values

    def _feistel(self, values: NDArray[np.uint64]) -> NDArray[np.uint64]:
        # After an even number of rounds the halves of odd widths are back where they were.
        low_bits, high_bits = self._low_bits, self._high_bits
        high = values >> np.uint64(low_bits)
        low = values & np.uint64((1 << low_bits) - 1)
        for number in range(0, ROUNDS, 2):
            high ^= self._round(low, number, high_bits)
            low ^= self._round(high, number + 1, low_bits)
        high <<= np.uint64(low_bits)
        high |= low
        return high

    def _round(self, half: NDArray[np.uint64], number: int, bits: int) -> NDArray[np.uint64]:
        hashed = half + self._round_keys[number]
        hashed *= _MULTIPLIERS[0]
        hashed ^= hashed >> np.uint64(32)
        hashed *= _MULTIPLIERS[1]
        hashed >>= np.uint64(64 - bits)  # the high bits of a product depend on all bits below
        return hashed


def permute(positions: NDArray[Any], n: int, key: int) -> Indices:
    """What lies at these positions in the order of [0, n) that `key` chooses."""
    return Permutation(n, key)(positions)
