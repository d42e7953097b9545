"""The process group: the only user of torch.distributed."""

import json
import secrets
import time
from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager, nullcontext, suppress
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed import HashStore, PrefixStore, rendezvous  # type: ignore[attr-defined]
from torch.distributed.algorithms.ddp_comm_hooks import default_hooks, powerSGD_hook
from torch.nn.parallel import DistributedDataParallel

from dist_trainer.adapters.place import Place, choose_device, on_loopback_if_alone
from dist_trainer.config.schema import DdpConfig
from dist_trainer.errors import DistTrainerError

# torch runs the buckets' first all-reduce only when PowerSGD has seen this many plain steps
POWERSGD_START = 10
BUSY_POLL_S = 1.0
LAST_WORD_S = 10.0  # how long a failing rank 0 stays to tell the others why


class Group:
    """The ranks of one attempt, with a gloo side group for the few integers that ranks agree on."""

    def __init__(
        self, place: Place, device: torch.device, fence: int, side: dist.ProcessGroup, store: PrefixStore
    ) -> None:
        self.place = place
        self.rank = place.rank
        self.world_size = place.world_size
        self.device = device
        self.fence = fence
        self._side = side
        self._store = store
        self.waiting: Callable[[], AbstractContextManager[None]] = (
            nullcontext  # entered while this rank waits
        )

    @property
    def is_rank_zero(self) -> bool:
        """Whether this rank writes what is written once."""
        return self.rank == 0

    def from_rank_zero(self, produce: Callable[[], Any]) -> Any:
        """What `produce` returns on rank 0, as JSON, on every rank; its error too. Collective."""
        reply: dict[str, Any] = {}
        text = ""
        error: Exception | None = None
        if self.is_rank_zero:
            try:
                reply["value"] = produce()
                text = json.dumps(reply)
            except Exception as problem:  # rank 0's own traceback is raised again below
                error = problem
                text = json.dumps({"error": f"{type(problem).__name__}: {problem}"})
        text = self._broadcast_text(text)
        if error is not None:
            raise error
        reply = json.loads(text)
        if "error" in reply:
            raise PeerFailed(f"rank 0 failed: {reply['error']}")
        return reply["value"]

    def _broadcast_text(self, text: str) -> str:
        data = bytearray(text.encode())
        size = torch.tensor([len(data)], dtype=torch.int64)
        with self.waiting():
            dist.broadcast(size, src=0, group=self._side)
            buffer = torch.frombuffer(data, dtype=torch.uint8) if data else torch.empty(0, dtype=torch.uint8)
            if not self.is_rank_zero:
                buffer = torch.empty(int(size.item()), dtype=torch.uint8)
            dist.broadcast(buffer, src=0, group=self._side)
        return bytes(buffer.numpy().tobytes()).decode()

    def gather_start(self, row: Tensor) -> "PendingGather":
        """Start gathering one int64 row of each rank over gloo; nobody waits yet. Collective."""
        table = torch.empty((self.world_size, row.numel()), dtype=row.dtype)
        rows = list(table.unbind(0))
        work = dist.all_gather(rows, row, group=self._side, async_op=True)
        return PendingGather(table, rows, row, work, self.waiting)

    def gather_bytes(self, data: bytes) -> list[bytes]:
        """Each rank's bytes, on every rank. Collective; for small state only."""
        sizes = self.gather_start(torch.tensor([len(data)], dtype=torch.int64)).wait().flatten().tolist()
        padded = torch.zeros(max([1, *sizes]), dtype=torch.uint8)
        if data:
            padded[: len(data)] = torch.frombuffer(bytearray(data), dtype=torch.uint8)
        table = self.gather_start(padded).wait()
        return [bytes(row[:size].numpy().tobytes()) for row, size in zip(table, sizes, strict=True)]

    def sum_over_ranks(self, values: Tensor) -> Tensor:
        """The element-wise sum of a CPU tensor over all ranks. Collective."""
        with self.waiting():
            dist.all_reduce(values, group=self._side)
        return values

    def sum_on_device(self, values: Tensor) -> Tensor:
        """The element-wise sum of a tensor on the training device, in the training group. Collective."""
        dist.all_reduce(values)
        return values

    def broadcast(self, tensors: Iterable[Tensor]) -> None:
        """Overwrite the tensors with rank 0's. Collective."""
        if self.world_size > 1:
            with self.waiting():
                for tensor in tensors:
                    whole = tensor.contiguous()
                    dist.broadcast(whole, src=0)
                    if whole is not tensor:
                        tensor.copy_(whole)

    def wait_for_rank_zero(
        self, is_busy: Callable[[], bool], *, meanwhile: Callable[[], None] = lambda: None
    ) -> None:
        """Wait while rank 0 is busy, however long: no single wait comes near the group's time-out. Collective.

        `meanwhile` is called on every rank about once a second.
        """
        busy = torch.ones(1, dtype=torch.int64)
        while busy:
            meanwhile()
            until = time.monotonic() + BUSY_POLL_S
            busy.fill_(self.is_rank_zero and is_busy())  # the others only listen
            while busy and time.monotonic() < until:
                time.sleep(0.002)
                busy.fill_(is_busy())
            with self.waiting():
                dist.broadcast(busy, src=0, group=self._side)

    def tell(self, word: str) -> None:
        """Leave a word for the other ranks of this attempt. Not collective."""
        with suppress(RuntimeError):  # the store's host is gone, and with it all need for words
            self._store.set(word, "")

    def is_told(self, word: str) -> bool:
        """Whether a rank has left this word. Not collective; about 0.1 ms."""
        with suppress(RuntimeError):
            return bool(self._store.check([word]))
        return False

    def barrier(self) -> None:
        """Wait for every rank, over gloo. Collective."""
        with self.waiting():
            dist.barrier(group=self._side)

    def leave(self) -> None:
        """End the group after success. A failed rank exits instead: waiting for peers may never end."""
        dist.destroy_process_group()


class PeerFailed(DistTrainerError):
    """Another rank failed first; its error is the one to show."""


@dataclass
class PendingGather:
    """A gather under way; its tensors are kept until it is done."""

    table: Tensor
    rows: list[Tensor]  # of the table
    row: Tensor
    work: Any
    waiting: Callable[[], AbstractContextManager[None]]

    def wait(self) -> Tensor:
        """The (world size, row) table."""
        with self.waiting():
            self.work.wait()
        return self.table


def join(wanted_device: str, *, timeout_s: float, take_fence: Callable[[], int] | None = None) -> Group:
    """Join the other workers of this attempt. Collective.

    Every key in the store is under the attempt's fence number, or under a name for this start alone: after a
    restart in place the store is still the old one, and the addresses of dead peers are in it. `take_fence`
    is called on rank 0 where no agent gave a number; without it the number is 0 and nothing may be committed.
    """
    place = Place.from_environment()
    device = choose_device(wanted_device, place)
    timeout = timedelta(seconds=2 * timeout_s)
    store = _open_store(place, timeout)
    fence, start = _agree_on_start(place, store, take_fence or (lambda: 0), timeout)
    own_store = PrefixStore(start, store)
    with on_loopback_if_alone(place):
        dist.init_process_group(
            "nccl" if device.type == "cuda" else "gloo",
            store=own_store,
            rank=place.rank,
            world_size=place.world_size,
            timeout=timeout,
            device_id=device if device.type == "cuda" else None,
        )
        side = dist.new_group(backend="gloo", timeout=timeout)
    assert isinstance(side, dist.ProcessGroup)
    return Group(place, device, fence, side, own_store)


def _open_store(place: Place, timeout: timedelta) -> Any:
    if not place.launched:
        return HashStore()
    store, _, _ = next(rendezvous("env://", timeout=timeout))
    return store


def _agree_on_start(
    place: Place, store: Any, take_fence: Callable[[], int], timeout: timedelta
) -> tuple[int, str]:
    """The fence, and a prefix for the store that no start before has used."""
    if place.fence is not None:
        return place.fence, f"fence-{place.fence}"
    if place.rank > 0:
        return _ask_for_start(place, store)
    reply: dict[str, Any] = {"start": f"start-{secrets.token_hex(8)}"}
    try:
        reply["fence"] = take_fence()
    except Exception as error:
        reply["error"] = f"{type(error).__name__}: {error}"
        _answer(place, store, reply, timeout_s=LAST_WORD_S)
        raise
    _answer(place, store, reply, timeout_s=timeout.total_seconds())
    return int(reply["fence"]), str(reply["start"])


def _ask_for_start(place: Place, store: Any) -> tuple[int, str]:
    """Rank 0's answer to a question of this very start.

    The store may be that of an earlier start, and torchrun's restart count differs between nodes, so what is
    in the store under a known key can be a dead group's.
    """
    question = secrets.token_hex(8)
    store.set(f"question-{place.rank}", question)
    reply = json.loads(store.get(f"answer-{question}"))
    store.set(f"{reply['start']}-heard-{place.rank}", "")
    if "error" in reply:
        raise PeerFailed(f"rank 0 failed: {reply['error']}")
    return int(reply["fence"]), str(reply["start"])


def _answer(place: Place, store: Any, reply: Mapping[str, Any], *, timeout_s: float) -> None:
    """Answer every question until each rank has heard; those of dead ranks are answered too, to no effect."""
    waiting = set(range(1, place.world_size))
    deadline = time.monotonic() + timeout_s
    while waiting and time.monotonic() < deadline:
        for rank in sorted(waiting):
            if store.check([f"{reply['start']}-heard-{rank}"]):
                waiting.discard(rank)
            elif store.check([f"question-{rank}"]):
                question = store.get(f"question-{rank}").decode()
                store.set(f"answer-{question}", json.dumps(reply))
        if waiting:
            time.sleep(0.01)
    if waiting and "error" not in reply:
        raise DistTrainerError(f"ranks {sorted(waiting)} did not join within {timeout_s:g} s")


def wrap(module: nn.Module, config: DdpConfig, group: Group) -> DistributedDataParallel:
    """The module in DistributedDataParallel with every knob of the `ddp` section. Collective.

    PowerSGD keeps a model-sized error on each rank that is not saved: such a run resumes, but not bit for bit.
    """
    ddp = DistributedDataParallel(
        module,
        bucket_cap_mb=config.bucket_cap_mb,
        gradient_as_bucket_view=config.gradient_as_bucket_view,
        static_graph=config.static_graph,
        find_unused_parameters=config.find_unused_parameters,
    )
    if config.compress == "powersgd":
        state = powerSGD_hook.PowerSGDState(process_group=None, start_powerSGD_iter=POWERSGD_START)
        ddp.register_comm_hook(state, powerSGD_hook.powerSGD_hook)
    elif config.compress != "none":
        hook = {"fp16": default_hooks.fp16_compress_hook, "bf16": default_hooks.bf16_compress_hook}
        ddp.register_comm_hook(None, hook[config.compress])
    return ddp


def when_backward_is_done(parameter: Tensor, call: Callable[[], None]) -> None:
    """Call it at the end of each of this rank's backward passes, before it begins to wait for the others' gradients.

    The engine runs what is queued for its end in the order in which it was queued, and DDP queues its wait when
    the last gradient is there; this is queued as soon as that of `parameter` is, which every pass must reach.
    """

    def queue(gradient: Tensor) -> None:
        torch.autograd.Variable._execution_engine.queue_callback(call)

    parameter.register_hook(queue)  # type: ignore[no-untyped-call]


def without_reduction(ddp: DistributedDataParallel, skip: bool) -> AbstractContextManager[None]:
    """A context in which the gradients stay on this rank, where `skip` says so."""
    return ddp.no_sync() if skip else nullcontext()
