"""One training of a drill: the train command in a process of its own, and every process that comes of it."""

import secrets
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from dist_trainer.adapters.files import write_json
from dist_trainer.diagnose.drill_plan import Plan
from dist_trainer.diagnose.rehearsal import STRUCK
from dist_trainer.errors import DistTrainerError
from dist_trainer.launchers.processes import send
from dist_trainer.run_folder import RunFolder
from dist_trainer.tracking.heartbeat import read_heartbeat

_MARK = "DIST_TRAINER_DRILL"  # every process that comes of the command inherits it
_LOOK_EVERY_S = 0.05
_GONE_WITHIN_S = 10.0
_STUCK_AFTER_S = 300.0
_WHERE_TO_LOOK = ("its log: ", "dist-trainer explain ")


class Drilled:
    """A training in the drill's scratch folder; `started` counts how often its command was given."""

    def __init__(self, plan: Plan, name: str, config: Path) -> None:
        self.plan, self.name = plan, name
        self.run = RunFolder(plan.scratch / name)
        self.started = 0
        self.seconds = 0.0  # that its commands ran, together
        self.struck_at: float | None = None  # by the clock of this host, as the journal's times are
        self._config = config
        self._token = secrets.token_hex(8)
        self._process: subprocess.Popen[bytes] | None = None
        self._began = 0.0

    def start(self) -> None:
        """Give the command, or give it again."""
        workers = ["--workers", str(self.plan.workers)] if self.plan.workers else []
        train = ["train", str(self._config), "--runs", str(self.plan.scratch), *workers]
        env = shutil.which("env") or "/usr/bin/env"
        command = [env, f"{_MARK}={self._token}", sys.executable, "-m", "dist_trainer.cli", *train]
        with self.output.open("ab") as output:
            self._process = subprocess.Popen(
                command,
                cwd=self.plan.working_folder,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,
            )
        self.started += 1
        self._began = time.monotonic()

    @property
    def output(self) -> Path:
        """What its commands printed."""
        return self.plan.scratch / f"{self.name}.out"

    @property
    def world_size(self) -> int:
        """How many ranks train it, once they do; 0 before."""
        starts = [line for line in self.run.attempts() if line["event"] == "start"]
        return int(starts[-1]["world_size"]) if starts else 0

    def wait_until_held(self) -> None:
        """Return when every rank waits at the step of the fault; DistTrainerError where it ends before."""
        signs = self.plan.signs(self.name)

        def held() -> bool:
            size = self.world_size
            return size > 0 and len(list(signs.glob("reached-*"))) >= size

        self._wait(held)
        if not held():
            raise DistTrainerError(f"it ended before the fault: {self.last_words()}")

    def strike(self, order: dict[str, object] | None = None) -> None:
        """Let the ranks go on, with what one of them is to do to itself."""
        self.struck_at = time.time()
        write_json(self.plan.signs(self.name) / STRUCK, order or {})

    def signal(self, number: signal.Signals) -> None:
        """Send the command itself a signal."""
        assert self._process is not None
        send(self._process.pid, number)

    def pid_of(self, rank: int) -> int:
        """The rank's process."""
        beat = read_heartbeat(self.run.heartbeat_path(rank))
        if beat is None or beat.pid not in self.processes():
            raise DistTrainerError(f"rank {rank} is not there: {self.last_words()}")
        return beat.pid

    def wait(self) -> int:
        """The command's exit code. It is ended where nothing stirs in its run for minutes."""
        assert self._process is not None
        self._wait(lambda: False)
        self.seconds += time.monotonic() - self._began
        return self._process.returncode

    def _wait(self, condition: Callable[[], bool]) -> None:
        assert self._process is not None
        patience_s = _STUCK_AFTER_S + 4 * self.plan.config.launch.timeout_s
        life, alive_at = self._life(), time.monotonic()
        while self._process.poll() is None and not condition():
            time.sleep(_LOOK_EVERY_S)
            if (now := self._life()) != life:
                life, alive_at = now, time.monotonic()
            if time.monotonic() - alive_at > patience_s:
                self.end()
                raise DistTrainerError(f"nothing stirred for {patience_s:.0f} s: {self.last_words()}")

    def _life(self) -> list[bytes | int]:
        """What changes while it trains."""
        beats = [path.read_bytes() for path in sorted(self.run.path.glob("heartbeat/rank-*"))]
        sizes = [path.stat().st_size for path in self.run.path.glob("journal/rank-*")]
        return [*beats, *sizes, self.output.stat().st_size]

    def processes(self) -> dict[int, str]:
        """Every live process that came of its commands, with its command line."""
        mark, found = f"{_MARK}={self._token}".encode(), {}
        for entry in Path("/proc").iterdir():
            with suppress(OSError):
                if entry.name.isdigit() and mark in (entry / "environ").read_bytes().split(b"\0"):
                    found[int(entry.name)] = (entry / "cmdline").read_text().replace("\0", " ").strip()
        return {pid: line for pid, line in found.items() if line}

    def left(self) -> dict[int, str]:
        """The processes that are still there some seconds after its command has ended."""
        deadline = time.monotonic() + _GONE_WITHIN_S
        while (there := self.processes()) and time.monotonic() < deadline:
            time.sleep(_LOOK_EVERY_S)
        return there

    def end(self) -> None:
        """Leave no process of it."""
        for pid in self.processes():
            send(pid, signal.SIGKILL)
        if self._process is not None:
            if self._process.poll() is None:
                self._process.kill()
            self._process.wait()

    def last_words(self) -> str:
        """The last line that it printed of what went wrong."""
        text = self.output.read_text(errors="replace") if self.output.exists() else ""
        lines = [line for line in text.splitlines() if line.strip() and not line.startswith(_WHERE_TO_LOOK)]
        return lines[-1] if lines else "it said nothing"
