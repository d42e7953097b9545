"""A warm process without threads that forks one victim after another: each saves twice, and may be killed in it.

    python -m tests.faults.victims       reads one order a line, answers each with two lines

order     {"url": where to save, "call": n or null, "bytes": k, "options": of the storage,
           "environment": variables}
answers   {"pid": ...}, then {"ended": whether it got to its end, "committed": [steps], "calls": [[name, size], ...]}

The victim dies at its nth call that changes the disk, a write after k bytes. The calls are told by one that lived.
"""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from dist_trainer.adapters.storage import Storage
from dist_trainer.checkpoint.state import State, decode
from dist_trainer.checkpoint.store import CheckpointStore
from dist_trainer.checkpoint.writer import Checkpointer
from dist_trainer.config.schema import CheckpointConfig

CALLS = ("open", "write", "fsync", "close", "link", "unlink", "mkdir", "rmdir", "rename", "replace")
KEEP_ONE = CheckpointConfig(keep_last=1)


def state(step: int) -> State:
    """A real one of some kB, another for each step: weights, AdamW's moments, and the numbers of a loop."""
    torch.manual_seed(step)
    model = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Linear(8, 2))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    for parameter in model.parameters():
        parameter.grad = torch.randn_like(parameter)
    optimizer.step()
    return State(model.state_dict(), {"progress": {"step": step}, "optimizer": optimizer.state_dict()})


def is_state(files: Mapping[str, Any], step: int) -> bool:
    """Whether these files of a checkpoint hold `state(step)`, tensor for tensor."""
    model, training = decode(files)
    wanted = state(step)
    moments, wanted_moments = training["optimizer"]["state"], wanted.training["optimizer"]["state"]
    return (
        training["progress"] == {"step": step}
        and model.keys() == wanted.model.keys()
        and all(torch.equal(value, wanted.model[name]) for name, value in model.items())
        and all(torch.equal(each["exp_avg"], wanted_moments[key]["exp_avg"]) for key, each in moments.items())
    )


def store_of(storage: Storage, fence: int, reports: list[str] | None = None) -> CheckpointStore:
    """The checkpoints there, for the attempt that holds the highest fence."""
    report = [].append if reports is None else reports.append
    return CheckpointStore(storage, fence=fence, highest_fence=lambda: fence, report=report)


class Victims:
    """The warm process, from outside."""

    def __init__(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.faults.victims"],
            cwd=Path(__file__).parents[2],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def save(
        self,
        url: str,
        *,
        call: int | None = None,
        size: int = 0,
        options: Mapping[str, Any] | None = None,
        started: Callable[[int], object] = lambda pid: None,
    ) -> dict[str, Any]:
        """Have one save twice at `url` and die at a call; `started` hears its pid."""
        assert self._process.stdin is not None and self._process.stdout is not None
        order = {"url": url, "call": call, "bytes": size, "options": dict(options or {})}
        order["environment"] = {name: os.environ[name] for name in os.environ if name.startswith("AWS_")}
        self._process.stdin.write(json.dumps(order) + "\n")
        self._process.stdin.flush()
        started(json.loads(self._process.stdout.readline())["pid"])
        answer: dict[str, Any] = json.loads(self._process.stdout.readline())
        return answer

    def close(self) -> None:
        """End it."""
        self._process.communicate(timeout=30)
        assert self._process.returncode == 0


def die_at(call: int | None, size: int, calls: list[tuple[str, int]]) -> None:
    """From the `call`th of CALLS on this process is dead, a write after `size` bytes; all are noted in `calls`."""

    def counting(name: str, real: Any) -> Any:
        def counted(*arguments: Any, **keywords: Any) -> Any:
            if len(calls) == call:
                if name == "write" and size:
                    real(arguments[0], arguments[1][:size])
                os.kill(os.getpid(), signal.SIGKILL)
            calls.append((name, len(arguments[1]) if name == "write" else 0))
            return real(*arguments, **keywords)

        return counted

    for name in CALLS:
        setattr(os, name, counting(name, getattr(os, name)))


def victim(order: Mapping[str, Any], pipe: int) -> None:
    """Save steps 200 and 300 as training does, and tell of each that is acknowledged."""
    write, calls = os.write, list[tuple[str, int]]()

    def tell(**word: Any) -> None:
        write(pipe, json.dumps(word).encode() + b"\n")

    os.environ.update(order["environment"])
    storage = Storage(order["url"], options=order["options"], retry_delays_s=())
    if "://" not in order["url"]:  # elsewhere whoever stands between it and the store kills it
        die_at(order["call"], order["bytes"], calls)
    saver = Checkpointer(
        KEEP_ONE, store_of(storage, 1), report=print, on_commit=lambda checkpoint: tell(step=checkpoint.step)
    )
    for step in (200, 300):
        saver.save(step, STATES[step])
        saver.wait()
    saver.close()
    tell(calls=calls)


def answer(order: Mapping[str, Any]) -> None:
    """Fork a victim for an order, wait for its end, say what came of it."""
    ours, theirs = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            victim(order, theirs)
            os._exit(0)
        finally:
            os._exit(1)
    os.close(theirs)
    print(json.dumps({"pid": pid}), flush=True)
    status = os.waitpid(pid, 0)[1]
    assert status == 0 or os.WTERMSIG(status) == signal.SIGKILL, f"the victim failed by itself: {status}"
    with os.fdopen(ours) as pipe:
        words = [json.loads(line) for line in pipe]
    committed = [word["step"] for word in words if "step" in word]
    calls = next((word["calls"] for word in words if "calls" in word), [])
    print(json.dumps({"ended": status == 0, "committed": committed, "calls": calls}), flush=True)


if __name__ == "__main__":
    import s3fs  # noqa: F401  imported once, for all victims

    STATES = {step: state(step) for step in (200, 300)}
    for line in sys.stdin:
        answer(json.loads(line))
