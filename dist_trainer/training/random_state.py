"""The random generators: what a step draws from them, and how a script finds them after a training."""

import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch

from dist_trainer.data.draws import mix


@contextmanager
def random_state_kept() -> Iterator[None]:
    """After this block the generators are as before it.

    Training seeds them otherwise on each rank, and what a script makes next, another model say, must be the same
    on all of them.
    """
    of_torch, of_python, of_numpy = torch.get_rng_state(), random.getstate(), np.random.get_state()
    of_gpus = torch.cuda.get_rng_state_all() if _uses_gpus() else None
    try:
        yield
    finally:
        torch.set_rng_state(of_torch)
        random.setstate(of_python)
        np.random.set_state(of_numpy)
        if of_gpus is not None:
            torch.cuda.set_rng_state_all(of_gpus)
        elif _uses_gpus():  # since this block: as a seed given before it would have left them
            torch.cuda.manual_seed_all(torch.initial_seed())


def _uses_gpus() -> bool:
    return torch.cuda.is_initialized()  # type: ignore[no-untyped-call,no-any-return]


def seed_step(seed: int, step: int, rank: int, phase: int = 0) -> None:
    """Seed torch, Python and NumPy from (seed, step, rank, phase): no rank has a random state to save."""
    key = mix(mix(mix(~seed) + step) + rank * 64 + phase)
    # torch.manual_seed keeps a formatted stack of each call for devices that are not in use: 100 us, and a leak
    torch.default_generator.manual_seed(key % 2**63)
    if torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
        torch.cuda.manual_seed(key % 2**63)
    random.seed(key)
    np.random.seed(key % 2**32)
