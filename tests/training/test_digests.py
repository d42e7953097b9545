"""What a digest sees: any bit, any swap, and nothing of how a tensor lies in memory."""

import random
import time
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from dist_trainer.training import digests


def digest(tensor: Tensor) -> str:
    return digests.of_tensors({"it": tensor})["it"]


SIZES = [(1, 9), (37, 11), (3, 4000), (5, 7, 9, 31), (100, 1001)]  # by a hash of bytes, and in torch


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64, torch.int64, torch.int8])
def test_any_single_bit_is_seen(dtype: torch.dtype) -> None:
    chance = random.Random(7)
    for _ in range(200):  # 1,000 over all types
        tensor = (torch.randn(chance.choice(SIZES)) * 100).to(dtype)
        changed = tensor.clone()
        flat = changed.reshape(-1).view(torch.uint8)
        place, bit = chance.randrange(len(flat)), chance.randrange(8)
        flat[place] ^= 1 << bit
        assert digest(tensor) != digest(changed), (dtype, tensor.shape, place, bit)


def test_two_swapped_elements_are_seen() -> None:
    chance = random.Random(8)
    for _ in range(1000):
        tensor = torch.randn(chance.choice([50, 5000, 70_000]))
        one, other = chance.sample(range(len(tensor)), 2)
        swapped = tensor.clone()
        swapped[one], swapped[other] = tensor[other], tensor[one]
        assert digest(tensor) != digest(swapped), (len(tensor), one, other)


def test_two_turned_signs_are_seen() -> None:
    chance = random.Random(9)
    tensor = torch.randn(70_000)
    for _ in range(1000):  # the highest bits of two words: their sum alone would be the old one
        turned = tensor.clone()
        turned[chance.sample(range(len(tensor)), 2)] *= -1
        assert digest(tensor) != digest(turned)


def test_what_is_made_on_a_device_sees_any_bit_any_swap_and_turned_signs() -> None:
    chance = random.Random(10)
    words = torch.randint(-(2**63), 2**63 - 1, (5000,))

    def made(words: Tensor) -> int:
        return int(digests.mixed_sum(digests.weighted_sums(words, 1024)))

    digest_of_words = made(words)

    def is_seen(changed: Tensor) -> bool:
        return made(changed) != digest_of_words

    for _ in range(1000):
        one, other = chance.sample(range(len(words)), 2)
        bit, swapped, turned = words.clone(), words.clone(), words.clone()
        place = chance.randrange(64)
        bit[one] ^= 1 << place if place < 63 else -(2**63)
        swapped[one], swapped[other] = words[other], words[one]
        turned[[one, other]] ^= -(2**63)
        assert is_seen(bit), one
        assert is_seen(swapped), (one, other)
        assert is_seen(turned), (one, other)
    assert is_seen(torch.cat([words[1024:2048], words[:1024], words[2048:]])), "two blocks"


def test_swapped_blocks_and_rows_are_seen() -> None:
    words = 2 * digests.block_words(torch.zeros(1))  # of two elements
    tensor = torch.randn(4, words)
    assert digest(tensor) != digest(tensor[[0, 2, 1, 3]])
    small = torch.randn(64, 1000)
    assert digest(small) != digest(small[[1, 0, *range(2, 64)]])


def test_the_layout_in_memory_is_not_seen() -> None:
    images = torch.randn(8, 16, 12, 13)
    assert digest(images) == digest(images.to(memory_format=torch.channels_last))
    assert digest(torch.arange(10_003.0)[1:]) == digest(torch.arange(1.0, 10_003.0))
    assert digest(torch.arange(10_002.0).half()[1:]) == digest(torch.arange(10_002.0).half()[1:].clone())


def test_type_and_shape_are_part_of_it() -> None:
    tensor = torch.zeros(64, 100)
    assert len({digest(each) for each in (tensor, tensor.T, tensor.double(), tensor.int(), tensor[:63])}) == 5
    assert digest(torch.zeros(3, 0)).startswith("float32[3,0] ")
    assert digest(torch.tensor(1.0)) != digest(torch.tensor(2.0))
    assert digest(nn.LazyLinear(3).weight) == digest(nn.LazyLinear(3).weight)
    assert digest(torch.empty(3, device="meta")) != digest(torch.empty(4, device="meta"))


@dataclass
class Sample:
    image: Tensor
    label: int


def test_nested_values_are_seen_and_addresses_are_not() -> None:
    def make(pixel: float = 1.0, label: int = 3) -> Any:
        rows = [Sample(torch.full((3,), pixel), label), (np.arange(3), "word", None, 1.5)]
        return {"rows": rows, "other": object()}

    assert digests.of_value(make()) == digests.of_value(make())
    assert len({digests.of_value(each) for each in (make(), make(pixel=2.0), make(label=4), [make()])}) == 4


def test_it_costs_little_beside_the_copy_that_a_save_makes() -> None:
    """Prints; a time is no reason to fail."""
    state = {str(number): torch.randn(250, 1000) for number in range(100)}
    kept = {name: tensor.clone() for name, tensor in state.items()}
    digests.of_tensors(state)

    def shortest_s(action: Any) -> float:
        times = []
        for _ in range(5):
            began = time.perf_counter()
            action()
            times.append(time.perf_counter() - began)
        return min(times)

    def copy() -> None:
        for name, tensor in state.items():
            kept[name].copy_(tensor)

    digest_s, copy_s = shortest_s(lambda: digests.of_tensors(state)), shortest_s(copy)
    print(
        f"100 MB: digests {digest_s * 1e3:.1f} ms, copy {copy_s * 1e3:.1f} ms, {digest_s / copy_s:.1f} times"
    )
