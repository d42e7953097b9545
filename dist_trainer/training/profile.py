"""A profiler trace of a few steps, as configured."""

from types import TracebackType

import torch
from torch.profiler import ProfilerActivity, profile

from dist_trainer.config.schema import ProfileConfig
from dist_trainer.training.attempt import Attempt


class Profiler:
    """Writes profile/rank-R.json into the run folder: open it in a Chrome trace viewer or Perfetto."""

    def __init__(self, config: ProfileConfig | None, attempt: Attempt) -> None:
        self._config = config
        self._path = attempt.run.path / "profile" / f"rank-{attempt.group.rank}.json"
        self._profile: profile | None = None

    def step(self, step: int) -> None:
        """Before the first step and after each: start after the one before the first, write after the last."""
        if self._config is None:
            return
        first, last = self._config.steps
        if self._profile is None and first - 1 <= step < last:
            activities = [ProfilerActivity.CPU]
            if torch.cuda.is_available():
                activities.append(ProfilerActivity.CUDA)
            self._profile = profile(activities=activities)
            self._profile.start()
        elif self._profile is not None and step >= last:
            self._write()

    def _write(self) -> None:
        assert self._profile is not None
        self._profile.stop()
        self._path.parent.mkdir(exist_ok=True)
        self._profile.export_chrome_trace(str(self._path))
        self._profile = None
        self._config = None

    def __enter__(self) -> "Profiler":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._profile is not None and error is None:
            self._write()
