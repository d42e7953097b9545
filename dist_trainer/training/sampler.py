"""Which rows each rank trains on at each step: a function of (seed, epoch, step), so resuming costs nothing.

Step k of an epoch trains on positions [k*G, (k+1)*G) of the epoch's order, G being the global batch. Rank r
takes every world_size-th of them and cuts them into `accumulate_steps` micro-batches as evenly as it goes.
Nothing is padded: the last batch of an epoch may be short, and a micro-batch may be empty.
"""

from collections.abc import Callable, Iterator, Mapping, Sized
from itertools import pairwise
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray
from torch.utils.data import IterableDataset
from torch.utils.data.distributed import DistributedSampler

from dist_trainer.data.draws import mix, sample_keys, uniform
from dist_trainer.data.permutation import Permutation, permute
from dist_trainer.errors import ConfigError, DataError

__all__ = ["Order", "ResumableSampler", "Rows", "check_map_style", "permute", "sample_keys"]

Order = Literal["shuffled", "sequential", "balanced", "weighted"]
Indices = NDArray[np.int64]

_BLOCK_ROWS = 4096  # rows of this rank that are ordered at a time: one step alone costs as much as hundreds
_ORDER_SALT, _DRAW_STREAM = 0x6F72646572, 0x64726177


class Rows(NamedTuple):
    """One micro-batch of one rank: positions in the epoch's order, and the data set's rows that lie there."""

    epoch: int
    positions: Indices
    indices: Indices


class ResumableSampler(DistributedSampler[int]):
    """A DistributedSampler without padding whose whole state is (epoch, position).

    `order`: shuffled, sequential, balanced (drawn with replacement, each class as often, by the data set's
    `targets`) or weighted (by `weights` or the data set's `sample_weights`). Raises ConfigError for what
    doesn't fit together and DataError for an empty data set or unusable weights.
    """

    def __init__(
        self,
        dataset: Any,
        *,
        global_batch_size: int,
        rank: int,
        world_size: int,
        seed: int = 0,
        order: Order = "shuffled",
        accumulate_steps: int = 1,
        drop_last: bool = False,
        weights: Any = None,
    ) -> None:
        check_map_style(dataset, "data.train")
        super().__init__(
            dataset,
            num_replicas=world_size,
            rank=rank,
            shuffle=order != "sequential",
            seed=seed,
            drop_last=drop_last,
        )
        self.length = len(dataset)
        self.global_batch_size = global_batch_size
        self.accumulate_steps = accumulate_steps
        self.order = order
        self.steps_per_epoch = _steps_per_epoch(self.length, global_batch_size, world_size, drop_last)
        self._cumulative = _cumulative_weights(dataset, order, weights)
        self._position = 0
        self._block_steps = max(1, _BLOCK_ROWS * world_size // global_batch_size)
        self._block: tuple[int, int, list[tuple[Indices, Indices]]] = (-1, -1, [])
        self._epoch_order: tuple[int, Callable[[Indices], Indices]] = (-1, _identity)

    def rows(self, step: int) -> list[Rows]:
        """This rank's micro-batches, `accumulate_steps` of them, at a step counted over all epochs from 0."""
        epoch, step_in_epoch = divmod(step, self.steps_per_epoch)
        block, offset = divmod(step_in_epoch, self._block_steps)
        if self._block[:2] != (epoch, block):
            self._block = (epoch, block, self._order_block(epoch, block))
        positions, indices = self._block[2][offset]
        return [
            Rows(epoch, positions[first:last], indices[first:last])
            for first, last in _even_cuts(len(positions), self.accumulate_steps)
        ]

    def row_at(self, place: int) -> Rows:
        """The row at a place of the first epoch's order, whichever rank it is dealt to."""
        position = np.array([place], dtype=np.int64)
        return Rows(0, position, self._order_of(0)(position))

    def global_rows(self, step: int) -> int:
        """How many rows all ranks together train on at this step."""
        first = step % self.steps_per_epoch * self.global_batch_size
        return min(self.global_batch_size, self.length - first)

    def set_step(self, step: int) -> None:
        """Go to the start of a step counted over all epochs: the next one to train."""
        self.epoch, step_in_epoch = divmod(step, self.steps_per_epoch)
        self._position = step_in_epoch * self.global_batch_size

    def set_epoch(self, epoch: int) -> None:
        """Go to the start of an epoch, unless the sampler is in the midst of that one."""
        if epoch != self.epoch:
            self.epoch, self._position = epoch, 0

    @property
    def step(self) -> int:
        """The next step to train, counted over all epochs."""
        return self.epoch * self.steps_per_epoch + self._position // self.global_batch_size

    def state_dict(self) -> dict[str, Any]:
        """The epoch, how many of its samples all ranks together have trained on, and of what they are part."""
        whole = {"length": self.length, "order": self.order}
        return {"epoch": self.epoch, "position": self._position, **whole}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a state saved at any world size; ConfigError if it lies within a step or in other data.

        Epoch and position alone will do: the length is compared where the state has one.
        """
        if (before := state.get("length", self.length)) != self.length:
            raise ConfigError(
                f"data.train has {self.length} rows, and the checkpoint was trained on {before}: its place in the "
                "epoch means nothing in the new order; go on with the same rows, or start afresh with --fresh"
            )
        epoch, position = int(state["epoch"]), int(state["position"])
        steps, within = divmod(position, self.global_batch_size)
        if within and position < self.length:
            raise ConfigError(
                f"data.global_batch_size is {self.global_batch_size}, and the saved position {position} in "
                f"epoch {epoch} is no multiple of it; go on with the size that the run was started with"
            )
        self.set_step(epoch * self.steps_per_epoch + steps + (within > 0))

    def __iter__(self) -> Iterator[int]:
        """This rank's rows of the current epoch, from the position on; the position stays where it is."""
        for step in range(self.step, (self.epoch + 1) * self.steps_per_epoch):
            for rows in self.rows(step):
                yield from rows.indices.tolist()

    def __len__(self) -> int:
        """How many rows __iter__ yields."""
        first = self._position
        used = min(self.length, self.steps_per_epoch * self.global_batch_size)
        whole, rest = divmod(max(0, used - first), self.global_batch_size)
        return whole * self._share(self.global_batch_size) + self._share(rest)

    def _share(self, rows: int) -> int:
        return len(range(self.rank, rows, self.num_replicas))

    def _order_block(self, epoch: int, block: int) -> list[tuple[Indices, Indices]]:
        """This rank's (positions, indices) of each step of a block of steps."""
        size = self.global_batch_size
        first = block * self._block_steps
        last = min(first + self._block_steps, self.steps_per_epoch)
        starts = np.arange(first * size, last * size, size, dtype=np.int64)
        # this rank's alone: to pick them out of all ranks' costs more the more ranks there are
        positions = (starts[:, None] + np.arange(self.rank, size, self.num_replicas, dtype=np.int64)).ravel()
        positions = positions[: np.searchsorted(positions, self.length)]
        indices = self._rows_at(epoch, positions)
        share = self._share(size)
        cuts = [(number * share, (number + 1) * share) for number in range(last - first)]
        return [(positions[start:end], indices[start:end]) for start, end in cuts]

    def _rows_at(self, epoch: int, positions: Indices) -> Indices:
        if self._epoch_order[0] != epoch:
            self._epoch_order = (epoch, self._order_of(epoch))
        return self._epoch_order[1](positions)

    def _order_of(self, epoch: int) -> Callable[[Indices], Indices]:
        if self.order == "sequential":
            return _identity
        key = mix(mix(self.seed ^ _ORDER_SALT) + epoch)
        if self._cumulative is None:
            return Permutation(self.length, key)
        cumulative = self._cumulative

        def draw(positions: Indices) -> Indices:
            numbers = uniform(sample_keys(key, 0, positions), _DRAW_STREAM) * cumulative[-1]
            # rounding may lift a number to the very end: it belongs to the last row with any weight
            last = np.searchsorted(cumulative, cumulative[-1], side="left")
            drawn: Indices = np.minimum(np.searchsorted(cumulative, numbers, side="right"), last)
            return drawn

        return draw


def check_map_style(dataset: Any, key: str) -> None:
    """Refuse a data set without length and rows by number; ConfigError names `key`."""
    if isinstance(dataset, IterableDataset):
        raise ConfigError(
            f"{key} is an IterableDataset ({type(dataset).__name__}), which has no row numbers, so its order "
            "cannot be shared among ranks or resumed; give it __len__ and __getitem__ (map style), "
            "or write it to one file with `dist-trainer data pack`"
        )
    if not isinstance(dataset, Sized) or not hasattr(dataset, "__getitem__"):
        raise ConfigError(f"{key} must have __len__ and __getitem__, got {type(dataset).__name__}")
    if len(dataset) == 0:
        raise DataError(f"{key} is empty ({type(dataset).__name__} of length 0)")


def _identity(positions: Indices) -> Indices:
    return positions


def _even_cuts(rows: int, parts: int) -> list[tuple[int, int]]:
    size, larger = divmod(rows, parts)
    starts = [number * size + min(number, larger) for number in range(parts + 1)]
    return list(pairwise(starts))


def _steps_per_epoch(length: int, global_batch_size: int, world_size: int, drop_last: bool) -> int:
    if global_batch_size < world_size:
        raise ConfigError(
            f"data.global_batch_size must be at least the world size, {world_size}, got {global_batch_size}"
            "; every rank needs a sample in each step"
        )
    if drop_last and length < global_batch_size:
        raise ConfigError(
            f"data.drop_last leaves nothing to train on: data.train has {length} rows, fewer than "
            f"data.global_batch_size, {global_batch_size}"
        )
    return length // global_batch_size if drop_last else -(-length // global_batch_size)


def _cumulative_weights(dataset: Any, order: Order, weights: Any) -> NDArray[np.float64] | None:
    if order == "balanced":
        classes = _column(dataset, "targets", order, len(dataset))
        _, numbers, counts = np.unique(classes, return_inverse=True, return_counts=True)
        return np.cumsum(1.0 / counts[numbers])
    if order == "weighted":
        given = _column(dataset, "sample_weights", order, len(dataset)) if weights is None else weights
        return np.cumsum(_usable_weights(np.asarray(given, dtype=np.float64), len(dataset)))
    return None


def _usable_weights(weights: NDArray[np.float64], length: int) -> NDArray[np.float64]:
    if weights.shape == (length,) and np.isfinite(weights).all() and weights.min() >= 0 and weights.sum() > 0:
        return weights
    raise DataError(
        f"data.order: weighted needs {length} finite weights, none below 0 and one above, got shape "
        f"{weights.shape} from {weights.min(initial=0):g} to {weights.max(initial=0):g}"
    )


def _column(dataset: Any, name: str, order: str, length: int) -> NDArray[Any]:
    values = getattr(dataset, name, None)
    if values is None:
        raise ConfigError(
            f"data.order: {order} needs data.train to have the attribute `{name}`, one for each row; "
            f"{type(dataset).__name__} has none"
        )
    column = np.asarray(values)
    if column.shape != (length,):
        raise DataError(f"data.train: `{name}` must have the shape ({length},), got {column.shape}")
    return column
