"""Carries a run while it trains and some seconds longer, or once: when to try, when to wait, when to leave."""

import os
import sys
import threading
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING

from dist_trainer.adapters.file_lock import hold
from dist_trainer.config.redact import redact
from dist_trainer.errors import UsageError
from dist_trainer.run_folder import RunFolder
from dist_trainer.tracking.carrier import Carrier, Unavailable
from dist_trainer.tracking.run_end import RunEnd, end_status
from dist_trainer.tracking.settings import RunSettings
from dist_trainer.tracking.system_metrics import SystemSampler

if TYPE_CHECKING:
    from dist_trainer.tracking.mlflow_sync import MlflowRun

_DRAIN_S = 10.0  # how long MLflow may be silent after the end of training
_LEAVE_S = 9.0  # the same for a server, which is left in the middle of a request: gone within 10 s
_POLL_S = 2.0
_LONGEST_DELAY_S = 10.0
_TIMEOUT_S = 5.0
_LONGEST_TIMEOUT_S = 60.0

Connect = Callable[[RunFolder, float], "MlflowRun"]  # the float: seconds a request may take


class Busy(Exception):
    """Another process carries this run."""


def carrying(run: RunFolder, *, patience_s: float) -> AbstractContextManager[None]:
    """Be the one process that may make the run's MLflow run and note it in run.json, or raise Busy."""
    return hold(run.path / "mlflow-sync.lock", held=lambda owner: Busy(), patience_s=patience_s)


def follow(run: RunFolder, end: RunEnd, *, connect: Connect, sample_every_s: float) -> None:
    """Carry the run until it is over and MLflow has all of it, or is silent for too long.

    The process of an attempt that was killed may still carry it: that one leaves once it sees this attempt.
    """
    while True:
        try:
            with carrying(run, patience_s=0.5):
                return _carry_until_over(run, end, connect, SystemSampler(run, every_s=sample_every_s))
        except Busy:
            if end.seen() and time.monotonic() - end.since > _LEAVE_S:
                return tell("another process carries this run")


def carry_once(run: RunFolder, *, connect: Connect) -> tuple[str, int]:
    """Carry what is there. Returns what stood in the way, if anything, and how many points were taken."""
    try:
        with carrying(run, patience_s=0.0):
            end, carrier = _end_now(run), _carrier(run, connect)
            began = time.monotonic()
            while True:
                try:
                    carrier.carry(end, running=False)
                    return "", carrier.sent
                except Unavailable as error:
                    if _silent_s(carrier, began) > _DRAIN_S:
                        return str(error), carrier.sent
                time.sleep(1.0)
    except Busy:
        return "another process is carrying this run and goes on by itself", 0


def tell(message: str) -> None:
    """Write to this process's log."""
    print(time.strftime("%Y-%m-%d %H:%M:%S"), redact(message), file=sys.stderr, flush=True)


def _carry_until_over(run: RunFolder, end: RunEnd, connect: Connect, sampler: SystemSampler) -> None:
    carrier = _carrier(run, connect)
    if RunSettings.read(run).is_server:
        threading.Thread(target=_leave_in_time, args=(end, carrier), daemon=True).start()
    told = ""
    while True:
        status = end.seen()
        if status:
            sampler.stop()
            if end.is_gone_on():
                return tell("another attempt trains this run, whose process carries it")
        try:
            carrier.carry(status)
            if status:
                return None
            told = ""
        except Unavailable as error:
            if str(error) != told:
                told = str(error)
                tell(f"MLflow: {told}")
            if status and _silent_s(carrier, end.since) > _DRAIN_S:
                return None
        end.wait(1.0 if status else min(_POLL_S * 2**carrier.failures, _LONGEST_DELAY_S))


def _carrier(run: RunFolder, connect: Connect) -> Carrier:
    def connect_in_time() -> "MlflowRun":
        # a slow server takes what it did not answer in time: wait longer rather than send it for ever
        return connect(run, min(_TIMEOUT_S * 2**carrier.failures, _LONGEST_TIMEOUT_S))

    carrier = Carrier(run, connect=connect_in_time, tell=tell)
    return carrier


def _silent_s(carrier: Carrier, since: float) -> float:
    return time.monotonic() - max(since, carrier.progress) - carrier.allowance_s


def _leave_in_time(end: RunEnd, carrier: Carrier) -> None:
    """A server that is slow enough evades every time-out. What is noted as carried is on disk: just leave."""
    while end.seen() is None or _silent_s(carrier, end.since) < _LEAVE_S:
        time.sleep(0.25)
    tell("MLflow is silent; `dist-trainer sync` carries what is left")
    os._exit(0)


def _end_now(run: RunFolder) -> str | None:
    """How the run ended, as far as can be told from outside; None while it is alive or never began."""
    status = run.read_status()
    if status.state != "running":
        return end_status(status.state, run_again=status.run_again)
    try:
        with run.lock(watch_s=2.0):
            return "KILLED"
    except UsageError:
        return None
