"""`train.profile`: a trace of a few steps, then where the time of as many steps after them goes.

    profile/rank-R.json    the trace of a rank, for a Chrome trace viewer or Perfetto
    profile/phases.json    {"steps": [21, 31], "ranks": [{"data wait": 0.01, "forward": 0.2, ...}, ...]}, in seconds
    profile/phases.txt     the same as a table

A trace slows down what it traces, so the steps that are timed are not the traced ones.
"""

import json
from types import TracebackType

import torch
from torch.profiler import ProfilerActivity, profile

from dist_trainer.adapters.files import make_private_folder, new_private_file
from dist_trainer.config.schema import ProfileConfig
from dist_trainer.training.attempt import Attempt
from dist_trainer.training.phases import PhaseTimer, phase_table
from dist_trainer.training.recorder import Recorder


class Profiler:
    """Follows the steps: traces the configured ones, then times as many. Every rank calls it at every step."""

    def __init__(self, config: ProfileConfig | None, attempt: Attempt, recorder: Recorder) -> None:
        self._first, self._last = config.steps if config else (0, -1)
        self._timed_last = 2 * self._last - max(self._first, 1) + 1
        self._attempt = attempt
        self._recorder = recorder
        self._folder = attempt.run.path / "profile"
        self._profile: profile | None = None
        self._timed_from: int | None = None  # steps done before the first timed one
        self._step = 0

    def step(self, step: int) -> None:
        """Before the first step and after each, with the number of steps done. Collective after the last one."""
        self._step = step
        if step > self._timed_last:
            return
        if self._profile is not None and step >= self._last:
            self._write_trace()
        if self._profile is None and self._first - 1 <= step < self._last:
            self._start_trace()
        elif self._timed_from is None and self._last <= step < self._timed_last:
            self._timed_from = step
            self._recorder.phases = PhaseTimer(self._attempt.group.device)
        elif step == self._timed_last:
            self._write_phases()

    def _start_trace(self) -> None:
        activities = [ProfilerActivity.CPU]
        if torch.cuda.is_available():
            activities.append(ProfilerActivity.CUDA)
        self._profile = profile(activities=activities)
        self._profile.start()

    def _write_trace(self) -> None:
        assert self._profile is not None
        self._attempt.heartbeat.beat(self._step, "hooks")  # a trace may be large
        self._profile.stop()
        make_private_folder(self._folder)
        path = self._folder / f"rank-{self._attempt.group.rank}.json"
        self._profile.export_chrome_trace(str(new_private_file(path)))
        path.chmod(0o600)  # torch writes another file and renames it
        self._profile = None

    def _write_phases(self) -> None:
        phases, first = self._recorder.phases, self._timed_from
        self._recorder.phases = self._timed_from = None
        if phases is None or first is None or first == self._step:
            return
        phases.enter(None)
        ranks = [json.loads(each) for each in self._attempt.group.gather_bytes(_as_json(phases.seconds))]
        if not self._attempt.is_rank_zero:
            return
        table = phase_table(ranks, self._step - first)
        make_private_folder(self._folder)
        found = {"steps": [first + 1, self._step], "ranks": ranks}
        new_private_file(self._folder / "phases.json").write_bytes(_as_json(found))
        new_private_file(self._folder / "phases.txt").write_text("\n".join([*table, ""]))
        self._attempt.journal.event("profiled", step=self._step, message="\n".join(table))
        self._attempt.say("\n".join(table))

    def __enter__(self) -> "Profiler":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is not None:
            return
        if self._profile is not None:
            self._write_trace()
        self._write_phases()


def _as_json(value: object) -> bytes:
    return json.dumps(value).encode()
