"""Runs the cells of a sweep on this machine: so many at a time, each in a process of its own."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field

from dist_trainer.adapters.files import open_log
from dist_trainer.errors import FINISHED, STOPPED
from dist_trainer.launchers import forkserver
from dist_trainer.launchers.signals import StopRequests
from dist_trainer.launchers.workers import count_workers, gpus_by_driver, share_of_gpus
from dist_trainer.run_folder import RunFolder
from dist_trainer.sweep_folder import Cell, SweepFolder
from dist_trainer.sweeps.plan import cell_config
from dist_trainer.sweeps.screen import SweepScreen

_POLL_S = 0.1
_ASK_AGAIN_S = 0.5  # a cell takes two interrupts within a second for one
_LEAVE_S = 10.0  # what a cell may take to leave at once


@dataclass
class _Running:
    """A cell and its process."""

    cell: Cell
    run: RunFolder
    slot: int
    process: "subprocess.Popen[bytes]"
    began: float = field(default_factory=time.monotonic)
    sent: set[signal.Signals] = field(default_factory=set)


class LocalSweep:
    """Some cells of a sweep, here. A cell that fails is no reason to stop the others."""

    def __init__(self, folder: SweepFolder, screen: SweepScreen, *, parallel: int) -> None:
        self._folder = folder
        self._screen = screen
        self._parallel = parallel
        self._running: list[_Running] = []
        self._codes: list[int] = []
        self._urgent_since: float | None = None
        self._asked_at = 0.0

    def run(self, cells: Sequence[Cell]) -> int:
        """Run them all, or until a signal asks for an end; the command's exit code."""
        waiting = list(cells)
        with StopRequests().listening() as requests, self._screen.shown():
            try:
                while self._running or (waiting and not requests.stopping):
                    while waiting and len(self._running) < self._parallel and not requests.stopping:
                        self._start(waiting.pop(0))
                    time.sleep(_POLL_S)
                    self._pass_on(requests)
                    self._collect(stopping=requests.stopping)
                    self._screen.tick([(each.cell, each.run) for each in self._running], len(waiting))
            finally:
                self._kill()
        if requests.stopping:
            return STOPPED
        failed = [code for code in self._codes if code not in (FINISHED, STOPPED)]
        return 1 if failed else STOPPED if STOPPED in self._codes else FINISHED

    def _start(self, cell: Cell) -> None:
        run = self._folder.run_of(cell)
        slot = min(set(range(self._parallel)) - {each.slot for each in self._running})
        command = [sys.executable, "-m", "dist_trainer.sweeps.cell", str(run.path), str(os.getpid())]
        with open_log(self._folder.log_path(cell)) as output, forkserver.variables(self._share(cell, slot)):
            process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                cwd=run.info().working_folder,
                start_new_session=True,  # Ctrl-C is ours, and passed on once
            )
        self._running.append(_Running(cell, run, slot, process))
        self._screen.started(cell)

    def _share(self, cell: Cell, slot: int) -> dict[str, str]:
        """The part of the machine that is left to one of the cells beside each other."""
        gpus = share_of_gpus(slot, self._parallel)
        with forkserver.variables(gpus):
            workers = count_workers(cell_config(self._folder, cell), gpus_by_driver())
        return gpus | forkserver.thread_variables(workers * self._parallel)

    def _pass_on(self, requests: StopRequests) -> None:
        for number in requests.wanted:
            # an interrupt asks for the same as TERM, and only a second one asks a cell to leave at once
            self._send(signal.SIGUSR2 if number == signal.SIGUSR2 else signal.SIGINT)
        if requests.stopping and not self._asked_at:
            self._asked_at = time.monotonic()
            self._screen.stopping(len(self._running))
        if requests.urgent:
            self._leave_now(time.monotonic())

    def _send(self, number: signal.Signals) -> None:
        for each in self._running:
            if number not in each.sent:
                each.sent.add(number)
                each.process.send_signal(number)

    def _leave_now(self, now: float) -> None:
        self._urgent_since = self._urgent_since or now
        if now - self._urgent_since > _LEAVE_S:
            self._kill()
        elif now - self._asked_at > _ASK_AGAIN_S:
            self._asked_at = now
            for each in self._running:
                each.process.send_signal(signal.SIGINT)

    def _collect(self, *, stopping: bool) -> None:
        for each in list(self._running):
            code = each.process.poll()
            if code is not None:
                self._running.remove(each)
                code = STOPPED if stopping and code < 0 else code
                self._codes.append(code)
                seconds = time.monotonic() - each.began
                self._screen.ended(each.cell, each.run, code, seconds, self._folder.log_path(each.cell))

    def _kill(self) -> None:
        for each in self._running:
            each.process.kill()
            each.process.wait()
