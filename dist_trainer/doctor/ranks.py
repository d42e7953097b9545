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
from functools import partial
from typing import TYPE_CHECKING

from dist_trainer.adapters.interpreter import importing, leave
from dist_trainer.adapters.listening import listen_on
from dist_trainer.adapters.parent_death import kill_me_with_my_parent
from dist_trainer.adapters.privacy import keep_private
from dist_trainer.adapters.records import read_record
from dist_trainer.doctor.findings import Finding, count
from dist_trainer.doctor.gpus import driver_version, judge_cuda

if TYPE_CHECKING:
    from dist_trainer.adapters.all_reduce_times import Store

_HERE = "127.0.0.1"
_IMPORT_S = 30.0  # from a slow disk torch takes most of it
_TIMEOUT_S = 3.0  # on one machine; nothing there takes a tenth of it
_NCCL_S, _ACROSS_S = 20.0, 8.0
_UNKNOWN = 255  # the exit code of who could not ask CUDA
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

    def meet(self, store: "Store", place: str, *, timeout_s: float) -> int:
        """Wait until all are there, so that nobody's time runs while another is elsewhere; how many came."""
        deadline = time.monotonic() + timeout_s
        store.add(place, 1)
        while (came := store.add(place, 0)) < self.size and time.monotonic() < deadline:
            time.sleep(min(0.5, 0.005 * self.size))  # the first rank answers all of them
        return came

    def leave(self, store: "Store", *, timeout_s: float) -> None:
        """The first rank is the store: it stays until the others have done with it."""
        if self.listens_by is not None:
            self.meet(store, "done", timeout_s=timeout_s)
        else:
            store.add("done", 1)


@dataclass(frozen=True)
class Plan:
    """What is to be tried; `across` is the meeting with other nodes, over the interfaces that all of them have."""

    interfaces: tuple[str, ...]
    has_to_have_gpus: bool = False
    uses_gpus: bool = True
    across: Meeting | None = None
    common: tuple[str, ...] = ()

    @property
    def within_s(self) -> float:
        """How long all of it may take: each interface its time-out, and one more for who is late."""
        found_s = _IMPORT_S + _TIMEOUT_S * (len(self.interfaces) + 1)
        if self.uses_gpus:
            found_s += 2 * _NCCL_S  # to ask CUDA, and to use it
        if self.across is not None:
            found_s += _IMPORT_S + _ACROSS_S * (len(self.common) + 2)  # another node may import it so long
        return found_s


def main(plan: Plan) -> None:
    """One after the other, so that none disturbs another's times."""
    with importing():
        import torch
    _tell(Finding("torch", "fine", f"{torch.__version__}, imported"))
    here = partial(_gloo, label="gloo on", interfaces=plan.interfaces, timeout_s=_TIMEOUT_S)
    if any(codes := _fork(2, partial(here, begin_within_s=_TIMEOUT_S))):
        advice = 'python -m dist_trainer.doctor.ranks \'{"interfaces": ["lo"]}\' shows the error'
        _tell(Finding("gloo", "broken", f"two ranks ended with {codes[0]} and {codes[1]}", advice))
    gpus = _gpus_by_cuda() if plan.uses_gpus else 0
    _tell(_cuda(plan, gpus))
    if not gpus:
        _tell(Finding("NCCL", "skipped", "no GPU to try it on"))
    elif any(codes := _fork(gpus, _nccl)):
        _tell(
            Finding(
                "NCCL", "broken", f"a rank ended with {min(codes)}, on {count(gpus, 'GPU')}", _NCCL_ADVICE
            )
        )
    if (across := plan.across) is not None:
        pid = _forked(across, lambda meeting: _between_nodes(meeting, plan.common))
        if code := _exit_code(pid):
            advice = "torch or gloo below it crashed, or memory ran out: dmesg, or a core file, may tell more"
            _tell(Finding("between nodes", "broken", f"the rank {_how(code)}", advice))


def _gpus_by_cuda() -> int | None:
    """Those that CUDA gives; None where asking fails. Asked by a process of its own: who has asked can fork no more
    users of CUDA."""
    if not (pid := os.fork()):
        code = _UNKNOWN
        try:
            kill_me_with_my_parent()
            code = _visible_gpus()
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(code)
    code = _exit_code(pid)
    return code if 0 <= code < _UNKNOWN else None


def _visible_gpus() -> int:
    import torch

    return min(torch.cuda.device_count(), 127) if torch.cuda.is_available() else 0


def _exit_code(pid: int) -> int:
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def _how(code: int) -> str:
    return f"was ended by signal {-code}" if code < 0 else f"ended with {code}"


def _cuda(plan: Plan, gpus: int | None) -> Finding:
    import torch

    if not plan.uses_gpus:
        return Finding("CUDA", "skipped", "launch.device is cpu")
    if gpus is None:
        advice = "python -c 'import torch; print(torch.cuda.device_count())' shows it; nvidia-smi"
        return Finding("CUDA", "broken", "torch fails to count the GPUs", advice)
    build, cuda, wanted = torch.__version__, torch.version.cuda, plan.has_to_have_gpus
    return judge_cuda(gpus, is_wanted=wanted, build=build, cuda=cuda, driver=driver_version())


def _gloo(
    meeting: Meeting, label: str, interfaces: Sequence[str], timeout_s: float, begin_within_s: float
) -> Iterator[Finding]:
    from dist_trainer.adapters.all_reduce_times import gloo_times

    store = meeting.open(timeout_s=begin_within_s)
    if (came := meeting.meet(store, "begin", timeout_s=begin_within_s)) < meeting.size:
        raise RuntimeError(f"{came} of {meeting.size} ranks came within {begin_within_s:g} s")
    for interface in interfaces:
        name = f"{label} {interface}"
        try:
            times = gloo_times(store, meeting.rank, meeting.size, interface=interface, timeout_s=timeout_s)
        except RuntimeError as error:
            advice = f"launch.env: {{GLOO_SOCKET_IFNAME: ...}} names another interface than {interface}"
            yield Finding(name, "warning", f"no way: {_first_line(error)}", advice)
        else:
            yield Finding(name, "fine", measured=asdict(times))
        if meeting.meet(store, f"after {interface}", timeout_s=timeout_s) < meeting.size:
            return  # who is gone comes over no other one
    meeting.leave(store, timeout_s=timeout_s)


def _nccl(meeting: Meeting) -> Iterator[Finding]:
    from dist_trainer.adapters.all_reduce_times import nccl_times, nccl_version

    version = f"{nccl_version()} on {count(meeting.size, 'GPU')}"
    store = meeting.open(timeout_s=_NCCL_S)
    try:
        times = nccl_times(store, meeting.rank, meeting.size, timeout_s=_NCCL_S)
    except RuntimeError as error:
        yield Finding("NCCL", "broken", f"{version}: {_first_line(error)}", _NCCL_ADVICE)
    else:
        yield Finding("NCCL", "fine", version, measured=asdict(times))
    meeting.leave(store, timeout_s=_NCCL_S)


def _between_nodes(meeting: Meeting, interfaces: Sequence[str]) -> Iterator[Finding]:
    if not interfaces:
        words = "nothing was tried: no interface has the same name on all nodes"
        advice = "gloo then takes the address of each node's name: see that those are on one network"
        yield Finding("between nodes", "warning", words, advice)
    try:
        yield from _gloo(meeting, "nodes over", interfaces, _ACROSS_S, begin_within_s=_IMPORT_S)
    except RuntimeError as error:
        words = f"no meeting with the first node at {meeting.address}:{meeting.port}: {_first_line(error)}"
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
    return [_exit_code(pid) for pid in pids]


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
