"""64-bit digests of tensors and of nested values.

A tensor's memory is taken as blocks of 64-bit words. In CPU memory a block's sum is its XXH3, which reads as fast
as a copy does, and the digest is the XXH3 of the sums. Elsewhere both are made on the device, in torch's
operations. For a sum each word's upper half is folded into its lower one, lest the highest bits of two words cancel
out; it is multiplied, modulo 2**64, by an odd weight of its position, and the results are added up; the sums are
mixed with their numbers and added up. Each of these is a bijection of one word, so there whatever changes within a
single one, a bit say, is always seen. For two tensors that differ in more places, by swapped elements or turned
signs, the chance of one digest is below 2**-30, and for unrelated values, as for any with XXH3, 2**-64. Small
tensors in CPU memory go through a hash of their bytes.
"""

from collections.abc import Iterable, Mapping
from dataclasses import fields, is_dataclass
from functools import cache
from hashlib import blake2b
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.parameter import is_lazy
from xxhash import xxh3_64_intdigest

_BLOCK_WORDS = {"cpu": 2**16}
_BLOCK_WORDS_ELSEWHERE = 2**18  # fewer launches
_SMALL_BYTES = 4096  # a call of the hash costs less than ten of torch's
_GOLDEN, _FIRST, _SECOND = 0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB


def combined(parts: Iterable[str]) -> int:
    """One digest of several texts in this order, as an integer that an int64 tensor takes."""
    hashed = blake2b(digest_size=8)
    for part in parts:
        hashed.update(f"{len(part)}:{part}".encode(errors="surrogatepass"))
    return int.from_bytes(hashed.digest(), "little", signed=True)


def of_bytes(data: bytes) -> str:
    """A short digest of a file's content, say."""
    return blake2b(data, digest_size=8).hexdigest()


def of_tensors(tensors: Mapping[str, Tensor]) -> dict[str, str]:
    """A digest of each tensor's type, shape and values, however it is laid out in memory."""
    digests = {name: of_bytes(_content(tensor)) for name, tensor in tensors.items() if _is_small(tensor)}
    pending: dict[torch.device, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        if name not in digests:
            pending.setdefault(tensor.device, {})[name] = _digest(tensor)
    for each in pending.values():  # a GPU is waited for once
        read = torch.stack(list(each.values())).tolist()
        digests |= {name: f"{value % 2**64:016x}" for name, value in zip(each, read, strict=True)}
    return {name: f"{describe(tensor)} {digests[name]}" for name, tensor in tensors.items()}


def describe(tensor: Tensor) -> str:
    """Its type and shape: float32[3,4]."""
    if is_lazy(tensor):
        return "not initialized"
    return f"{str(tensor.dtype).removeprefix('torch.')}{list(tensor.shape)}".replace(" ", "")


def of_blocks(tensor: Tensor) -> Tensor:
    """The sums of its blocks, to find where two tensors of one type and shape differ."""
    words, size = _words(tensor), block_words(tensor)
    if words.device.type != "cpu":
        return weighted_sums(words, size)
    memory = words.numpy().data
    hashes = [xxh3_64_intdigest(memory[first : first + size]) for first in range(0, len(memory), size)]
    return torch.from_numpy(np.array(hashes, dtype=np.uint64).view(np.int64))


def weighted_sums(words: Tensor, size: int) -> Tensor:
    """Of each block of so many words, in torch's operations."""
    weights = _weights(size, words.device)
    room = torch.empty_like(words[:size])  # one for all blocks: fresh memory costs more than the work
    sums = []
    for first in range(0, len(words), size):
        part = words[first : first + size]
        folded = torch.bitwise_right_shift(part, 32, out=room[: len(part)])
        folded.bitwise_and_(2**32 - 1).bitwise_xor_(part)  # the shift alone repeats the sign
        sums.append(folded.mul_(weights[: len(part)]).sum())
    return torch.stack(sums) if sums else words


def mixed_sum(sums: Tensor) -> Tensor:
    """One number of all blocks' sums in this order, in torch's operations."""
    numbers = torch.arange(len(sums), device=sums.device)
    total: Tensor = _mixed(_mixed(sums) + _mixed(numbers)).sum()
    return total


def block_words(tensor: Tensor) -> int:
    """How many 64-bit words of it are one block."""
    return _BLOCK_WORDS.get(tensor.device.type, _BLOCK_WORDS_ELSEWHERE)


def in_bytes(tensor: Tensor) -> Tensor:
    """Its elements row by row as bytes; the same memory where it is laid out so."""
    flat = tensor.detach().contiguous().reshape(-1)
    flat = flat.resolve_conj().resolve_neg()
    return flat.view(torch.uint8)


def of_value(value: Any) -> str:
    """A digest of tensors, arrays, numbers and texts, nested in dicts, lists, tuples and data classes.

    Of any other object only its type counts: its text may hold an address.
    """
    return of_bytes("\n".join(_parts(value)).encode(errors="surrogatepass"))


def _parts(value: Any) -> Iterable[str]:
    if isinstance(value, Tensor):
        yield of_tensors({"": value})[""]
    elif isinstance(value, np.ndarray | np.generic) and value.dtype.kind in "biufcSUmM":
        whole = np.ascontiguousarray(value)
        yield f"{whole.dtype}{whole.shape} {of_bytes(whole.tobytes())}"
    elif value is None or isinstance(value, bool | int | float | complex | str | bytes):
        yield f"{type(value).__name__} {value!r}"
    elif isinstance(value, Mapping):
        for key in value:
            yield f"key {key!r}" if isinstance(key, str | int) else type(key).__name__
            yield from _parts(value[key])
    elif isinstance(value, list | tuple):
        yield f"{type(value).__name__} {len(value)}"
        for item in value:
            yield from _parts(item)
    elif is_dataclass(value) and not isinstance(value, type):
        for each in fields(value):
            yield each.name
            yield from _parts(getattr(value, each.name))
    else:
        yield f"{type(value).__module__}.{type(value).__qualname__}"


def _is_small(tensor: Tensor) -> bool:
    if not _has_values(tensor):
        return True
    return tensor.device.type == "cpu" and tensor.numel() * tensor.element_size() <= _SMALL_BYTES


def _content(tensor: Tensor) -> bytes:
    return in_bytes(tensor).numpy().tobytes() if _has_values(tensor) else b""


def _has_values(tensor: Tensor) -> bool:
    """Whether there is memory to look at: not on the meta device, nor before a lazy module's first call."""
    return not (is_lazy(tensor) or tensor.is_meta or tensor.is_quantized or tensor.layout != torch.strided)


@torch.no_grad()
def _digest(tensor: Tensor) -> Tensor:
    sums = of_blocks(tensor)
    if sums.device.type != "cpu":
        return mixed_sum(sums)
    return torch.tensor(_signed(xxh3_64_intdigest(sums.numpy().data)))


def _words(tensor: Tensor) -> Tensor:
    """Its memory as int64, the last word filled up with zeros."""
    data = in_bytes(tensor)
    missing = -len(data) % 8
    if missing and len(data) > 8 * _BLOCK_WORDS["cpu"]:
        return torch.cat([_words(data[: missing - 8]), _words(data[missing - 8 :])])
    if missing:
        data = torch.cat([data, data.new_zeros(missing)])
    elif data.storage_offset() % 8:
        data = data.clone()
    return data.view(torch.int64)


@cache
def _weights(count: int, device: torch.device) -> Tensor:
    return _mixed(torch.arange(1, count + 1, device=device)) | 1


def _mixed(words: Tensor) -> Tensor:
    """SplitMix64's output function, as in data/draws.py, of each word."""
    mixed = words * _signed(_GOLDEN) + _signed(_GOLDEN)
    mixed = (mixed ^ _shifted(mixed, 30)) * _signed(_FIRST)
    mixed = (mixed ^ _shifted(mixed, 27)) * _signed(_SECOND)
    return mixed ^ _shifted(mixed, 31)


def _shifted(words: Tensor, bits: int) -> Tensor:
    """To the right with zeros coming in: torch's own shift of an int64 repeats the sign."""
    shifted: Tensor = (words >> bits) & (2 ** (64 - bits) - 1)
    return shifted


def _signed(value: int) -> int:
    return value - 2**64 if value >= 2**63 else value
