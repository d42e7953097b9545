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
from pathlib import Path

from dist_trainer.adapters.interpreter import importing, leave
from dist_trainer.adapters.privacy import keep_private
from dist_trainer.adapters.records import read_record
from dist_trainer.doctor.findings import Finding
from dist_trainer.launchers.parent_death import kill_me_with_my_parent

_TIMEOUT_S = 3.0  # on one machine; nothing there takes a tenth of it
_ACROSS_S = 8.0
_NAME_WORKERS = "launch.env: {{GLOO_SOCKET_IFNAME: ...}} names another interface than {}"


@dataclass(frozen=True)
class Across:
    """This node among those of a job, and where the first one listens, by an inherited descriptor."""

    address: str
    port: int
    rank: int
    size: int
    interfaces: tuple[str, ...]
    listens_by: int | None = None


@dataclass(frozen=True)
class Plan:
    """What is to be tried."""

    interfaces: tuple[str, ...]
    folder: str  # empty, of this start alone
    has_to_have_gpus: bool = False
    uses_gpus: bool = True
    across: Across | None = None


def main(plan: Plan) -> None:
    """One after the other, so that none disturbs another's times."""
    with importing():
        import torch
    _tell(Finding("torch", "fine", f"{torch.__version__}, imported"))
    _fork(2, lambda rank: _gloo(plan, rank))
    gpus = _count_gpus() if plan.uses_gpus else 0
    _tell(_cuda(plan, gpus))
    if gpus:
        _fork(gpus, lambda rank: _nccl(plan, rank, gpus))
    else:
        _tell(Finding("NCCL", "skipped", "no GPU to try it on"))
    if plan.across is not None:
        across = plan.across
        _fork(1, lambda rank: _between_nodes(across))


def _count_gpus() -> int:
    """Those that CUDA gives; asked in a process of its own, since who has asked can fork no more users of CUDA."""
    import torch

    if not (pid := os.fork()):
        os._exit(min(torch.cuda.device_count(), 127) if torch.cuda.is_available() else 0)
    return max(0, os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))


def _cuda(plan: Plan, gpus: int) -> Finding:
    import torch

    cuda = torch.version.cuda
    if not plan.uses_gpus:
        return Finding("CUDA", "skipped", "launch.device is cpu")
    if gpus:
        return Finding("CUDA", "fine", f"{gpus} GPU{'s' if gpus > 1 else ''}, torch is built for CUDA {cuda}")
    if not plan.has_to_have_gpus:
        return Finding("CUDA", "skipped", "no GPU")
    if cuda is None:
        words, advice = f"torch {torch.__version__} is built for the CPU alone", "install the build for CUDA"
    else:
        words = f"torch, built for CUDA {cuda}, sees no GPU"
        advice = (
            "nvidia-smi says whether the driver works and is new enough; a container needs --gpus all, a job "
            "slurm.options.gpus-per-node; CUDA_VISIBLE_DEVICES may hide them"
        )
    return Finding("CUDA", "broken", words, f"{advice}; launch.device=cpu does without")


def _gloo(plan: Plan, rank: int) -> Iterator[Finding]:
    from dist_trainer.adapters.all_reduce_times import gloo_times, store_in_file

    store = store_in_file(Path(plan.folder) / "gloo", 2)
    for name in plan.interfaces:
        try:
            times = gloo_times(store, rank, 2, interface=name, timeout_s=_TIMEOUT_S)
        except RuntimeError as error:
            yield _no_way(f"gloo on {name}", error, name)
        else:
            yield Finding(f"gloo on {name}", "fine", measured=asdict(times))


def _nccl(plan: Plan, rank: int, size: int) -> Iterator[Finding]:
    from dist_trainer.adapters.all_reduce_times import nccl_times, nccl_version, store_in_file

    version = f"{nccl_version()} on {size} GPU{'s' if size > 1 else ''}"
    try:
        times = nccl_times(store_in_file(Path(plan.folder) / "nccl", size), rank, size, timeout_s=20)
    except RuntimeError as error:
        words = f"{version}: {_first_line(error)}"
        yield Finding("NCCL", "broken", words, "NCCL_DEBUG=INFO dist-trainer train ... tells more")
    else:
        yield Finding("NCCL", "fine", version, measured=asdict(times))


def _between_nodes(across: Across) -> Iterator[Finding]:
    from dist_trainer.adapters.all_reduce_times import gloo_times, store_at

    place = f"{across.address}:{across.port}"
    try:
        store = store_at(
            across.address, across.port, across.size, listens_by=across.listens_by, timeout_s=_ACROSS_S
        )
    except RuntimeError as error:
        words = f"the first node at {place} cannot be reached: {_first_line(error)}"
        advice = "its name must lead to it from every node, and no firewall may keep the nodes' ports from each other"
        yield Finding("between nodes", "broken", words, advice)
        return
    for name in across.interfaces:
        try:
            times = gloo_times(store, across.rank, across.size, interface=name, timeout_s=_ACROSS_S)
        except RuntimeError as error:
            yield _no_way(f"nodes over {name}", error, name)
        else:
            yield Finding(f"nodes over {name}", "fine", measured=asdict(times))
    _wait_for_all(across, store)


def _wait_for_all(across: Across, store: object) -> None:
    """The first node's process is the store: it stays until the others have done with it."""
    add, deadline = getattr(store, "add"), time.monotonic() + _ACROSS_S  # noqa: B009
    add("done", 1)
    while across.listens_by is not None and add("done", 0) < across.size and time.monotonic() < deadline:
        time.sleep(0.02)


def _no_way(name: str, error: RuntimeError, interface: str) -> Finding:
    return Finding(name, "warning", f"no way: {_first_line(error)}", _NAME_WORKERS.format(interface))


def _first_line(error: BaseException) -> str:
    """What torch says, without the place in its source."""
    line = (str(error).splitlines() or [type(error).__name__])[0]
    return line.rpartition("] ")[2][:200]


def _fork(count: int, act: Callable[[int], Iterator[Finding]]) -> None:
    """Processes that have torch already; what the first one finds is told."""
    sys.stdout.flush()
    pids = [_forked(rank, act) for rank in range(count)]
    for pid in pids:
        os.waitpid(pid, 0)


def _forked(rank: int, act: Callable[[int], Iterator[Finding]]) -> int:
    if pid := os.fork():
        return pid
    code = 1
    try:
        kill_me_with_my_parent()
        for finding in act(rank):
            if rank == 0:
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
