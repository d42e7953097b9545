"""Random numbers as a pure function of a sample's key: the same in every worker, rank and attempt.

A key is a 64-bit hash of (seed, epoch, position). Every draw hashes it again with the number of a stream,
so that two augmentations of one sample are independent. The hash is SplitMix64's output function
(Steele, Lea, Flood: Fast splittable pseudorandom number generators, 2014).
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

Keys = NDArray[np.uint64]

_MASK = 2**64 - 1
_GOLDEN = 0x9E3779B97F4A7C15
_FIRST, _SECOND = 0xBF58476D1CE4E5B9, 0x94D049BB133111EB


def mix(value: int) -> int:
    """Hash one integer (taken modulo 2**64) to 64 bits."""
    value = (value + _GOLDEN) & _MASK
    value = ((value ^ (value >> 30)) * _FIRST) & _MASK
    value = ((value ^ (value >> 27)) * _SECOND) & _MASK
    return value ^ (value >> 31)


def mix_array(values: NDArray[Any], salt: int) -> Keys:
    """Hash every integer of an array with a salt: the outputs from `salt` on of a SplitMix64 generator."""
    hashed = values.astype(np.uint64)
    hashed *= np.uint64(_GOLDEN)
    hashed += np.uint64((salt + _GOLDEN) & _MASK)
    hashed ^= hashed >> np.uint64(30)
    hashed *= np.uint64(_FIRST)
    hashed ^= hashed >> np.uint64(27)
    hashed *= np.uint64(_SECOND)
    hashed ^= hashed >> np.uint64(31)
    return hashed


def sample_keys(seed: int, epoch: int, positions: NDArray[Any]) -> Keys:
    """One key for each position of an epoch: what all randomness of that sample is drawn from."""
    return mix_array(positions, mix(mix(seed) + epoch))


def uniform(keys: Keys, stream: int) -> NDArray[np.float64]:
    """One number in [0, 1) for each key; different streams of one key are independent."""
    return (mix_array(keys, mix(~stream)) >> np.uint64(11)).astype(np.float64) * np.float64(2.0**-53)


def integers(keys: Keys, stream: int, high: int) -> NDArray[np.int64]:
    """One integer in [0, high) for each key."""
    drawn: NDArray[np.int64] = (uniform(keys, stream) * high).astype(np.int64)
    return drawn
