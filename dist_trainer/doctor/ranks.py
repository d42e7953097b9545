"""Real ranks that all-reduce a little over each interface, and GPU to GPU: python -m dist_trainer.doctor.ranks.

It is given a `Plan` as JSON and writes each finding to standard output as a line of JSON, as soon as it has it:
who waits for them can end it at any time. Torch is imported once; the ranks are forked from there.
"""

import json
import os
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

from dist_trainer.adapters.interfaces import listen_on
from dist_trainer.adapters.interpreter import importing, leave
from dist_trainer.adapters.parent_death import kill_me_with_my_parent
from dist_trainer.adapters.privacy import keep_private
from dist_trainer.adapters.records import read_record
from dist_trainer.doctor.findings import Finding
from dist_trainer.doctor.gpus import count_gpus, driver_version, judge_cuda

if TYPE_CHECKING:
    from dist_trainer.adapters.all_reduce_times import Store

_HERE = "127.0.0.1"
_TIMEOUT_S = 3.0  # on one machine; nothing there takes a tenth of it
_NCCL_S, _ACROSS_S = 20.0, 8.0
_NCCL_ADVICE = (
    "NCCL_DEBUG=INFO before the command tells more; fewer launch.workers_per_node may do without a GPU"
)


@dataclass(frozen=True)
class Meeting:
    """Where ranks meet, and which this one is; the first one serves it, by an inherited listening socket."""

    address: str
    port: int
    rank: int
    size: int
    listens_by: int | None = None

    def open(self, *, timeout_s: float) -> "Store":
        """The store that they share. RuntimeError where the first rank cannot be reached."""
        from dist_trainer.adapters.all_reduce_times import store_at

        return store_at(self.address, self.port, self.size, listens_by=self.listens_by, timeout_s=timeout_s)

    def leave(self, store: "Store", *, timeout_s: float) -> None:
        """The first rank is the store: it stays until the others have done with it."""
        deadline = time.monotonic() + timeout_s
        store.add("done", 1)
        while (
            self.listens_by is not None and store.add("done", 0) < self.size and time.monotonic() < deadline
        ):
            time.sleep(0.01)


@dataclass(frozen=True)
class Plan:
    """What is to be tried; `across` is the meeting with other nodes, over the interfaces that all of them have."""

    interfaces: tuple[str, ...]
    has_to_have_gpus: bool = False
    uses_gpus: bool = True
    across: Meeting | None = None
    common: tuple[str, ...] = ()


def main(plan: Plan) -> None:
    """One after the other, so that none disturbs another's times."""
    with importing():
        import torch
    _tell(Finding("torch", "fine", f"{torch.__version__}, imported"))
    if any(codes := _fork(2, lambda meeting: _gloo(meeting, "gloo on", plan.interfaces, _TIMEOUT_S))):
        advice = 'python -m dist_trainer.doctor.ranks \'{"interfaces": ["lo"]}\' shows the error'
        _tell(Finding("gloo", "broken", f"two ranks ended with {codes[0]} and {codes[1]}", advice))
    gpus = _gpus_by_cuda() if plan.uses_gpus else 0
    _tell(_cuda(plan, gpus))
    if not gpus:
        _tell(Finding("NCCL", "skipped", "no GPU to try it on"))
    elif any(codes := _fork(gpus, _nccl)):
        _tell(
            Finding("NCCL", "broken", f"a rank ended with {min(codes)}, on {count_gpus(gpus)}", _NCCL_ADVICE)
        )
    if (across := plan.across) is not None:
        _forked(across, lambda meeting: _between_nodes(meeting, plan.common))
        os.wait()


def _gpus_by_cuda() -> int:
    """Those that CUDA gives; asked in a process of its own, since who has asked can fork no more users of CUDA."""
    import torch

    if not (pid := os.fork()):
        os._exit(min(torch.cuda.device_count(), 127) if torch.cuda.is_available() else 0)
    return max(0, os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))


def _cuda(plan: Plan, gpus: int) -> Finding:
    import torch

    if not plan.uses_gpus:
        return Finding("CUDA", "skipped", "launch.device is cpu")
    build, cuda, wanted = torch.__version__, torch.version.cuda, plan.has_to_have_gpus
    return judge_cuda(gpus, is_wanted=wanted, build=build, cuda=cuda, driver=driver_version())


def _gloo(meeting: Meeting, label: str, interfaces: Sequence[str], timeout_s: float) -> Iterator[Finding]:
    from dist_trainer.adapters.all_reduce_times import gloo_times

    store = meeting.open(timeout_s=timeout_s)
    for interface in interfaces:
        name = f"{label} {interface}"
        try:
            times = gloo_times(store, meeting.rank, meeting.size, interface=interface, timeout_s=timeout_s)
        except RuntimeError as error:
            advice = f"launch.env: {{GLOO_SOCKET_IFNAME: ...}} names another interface than {interface}"
            yield Finding(name, "warning", f"no way: {_first_line(error)}", advice)
        else:
            yield Finding(name, "fine", measured=asdict(times))
    meeting.leave(store, timeout_s=timeout_s)


def _nccl(meeting: Meeting) -> Iterator[Finding]:
    from dist_trainer.adapters.all_reduce_times import nccl_times, nccl_version

    version = f"{nccl_version()} on {count_gpus(meeting.size)}"
    store = meeting.open(timeout_s=_NCCL_S)
    try:
        times = nccl_times(store, meeting.rank, meeting.size, timeout_s=_NCCL_S)
    except RuntimeError as error:
        yield Finding("NCCL", "broken", f"{version}: {_first_line(error)}", _NCCL_ADVICE)
    else:
        yield Finding("NCCL", "fine", version, measured=asdict(times))
    meeting.leave(store, timeout_s=_NCCL_S)


def _between_nodes(meeting: Meeting, interfaces: Sequence[str]) -> Iterator[Finding]:
    try:
        yield from _gloo(meeting, "nodes over", interfaces, _ACROSS_S)
    except RuntimeError as error:
        words = f"no way to the first node at {meeting.address}:{meeting.port}: {_first_line(error)}"
        advice = "its name must lead to it from every node, and no firewall may keep the nodes' ports from each other"
        yield Finding("between nodes", "broken", words, advice)


def _first_line(error: BaseException) -> str:
    """What torch says, without the place in its source."""
    line = (str(error).splitlines() or [type(error).__name__])[0]
    return line.rpartition("] ")[2][:200]


def _fork(size: int, act: Callable[[Meeting], Iterator[Finding]]) -> list[int]:
    """Ranks on this machine, that have torch already, to their end; their exit codes."""
    port, descriptor = listen_on(_HERE)
    first = Meeting(_HERE, port, 0, size, descriptor)
    others = [Meeting(_HERE, port, rank, size) for rank in range(1, size)]
    pids = [_forked(meeting, act) for meeting in (first, *others)]
    os.close(descriptor)
    return [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in pids]


def _forked(meeting: Meeting, act: Callable[[Meeting], Iterator[Finding]]) -> int:
    """A rank; what the first one on this machine finds is told."""
    if pid := os.fork():
        return pid
    code = 1
    try:
        kill_me_with_my_parent()
        for finding in act(meeting):
            if meeting.rank == 0 or meeting.address != _HERE:
                _tell(finding)
        code = 0
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(code)


def _tell(finding: Finding) -> None:
    os.write(1, json.dumps(finding.as_json()).encode() + b"\n")


def _main(arguments: Sequence[str]) -> None:
    main(read_record(Plan, arguments[0].encode()))


if __name__ == "__main__":
    kill_me_with_my_parent()
    keep_private()
    _main(sys.argv[1:])
    leave(0)
