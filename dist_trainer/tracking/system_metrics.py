"""Samples this node's processor and memory into a journal of its own, to outlive an MLflow outage."""

import threading

import psutil

from dist_trainer.run_folder import RunFolder
from dist_trainer.tracking.heartbeat import read_heartbeat
from dist_trainer.tracking.journal import Journal

JOURNAL = "system.jsonl"


class SystemSampler:
    """A thread that writes system/cpu_percent and system/memory_gb (10^9 bytes) at rank 0's step."""

    def __init__(self, run: RunFolder, *, every_s: float) -> None:
        self._run = run
        self._every_s = every_s
        self._last_step = -1
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._sample_until_stopped, name="system metrics", daemon=True)
        psutil.cpu_percent()  # from here on it measures since the call before
        self._thread.start()

    def stop(self) -> None:
        """Take a last sample and end the thread."""
        if not self._stopped.is_set():
            self._stopped.set()
            self._thread.join()

    def _sample_until_stopped(self) -> None:
        path = self._run.journal_path(0).with_name(JOURNAL)
        with Journal(path, attempt=self._run.highest_fence(), rank=0) as journal:
            wait_s = min(1.0, self._every_s)  # a short run wants a point too
            while not self._stopped.wait(wait_s):
                self._sample(journal)
                wait_s = self._every_s
            self._sample(journal)

    def _sample(self, journal: Journal) -> None:
        beat = read_heartbeat(self._run.heartbeat_path(0))
        if beat is None or beat.step <= self._last_step:
            return
        self._last_step = beat.step
        memory_gb = psutil.virtual_memory().used / 1e9
        values = {"system/cpu_percent": psutil.cpu_percent(), "system/memory_gb": memory_gb}
        journal.metrics(beat.step, values)
        journal.sync()
