"""Where the time of a step goes: seconds by phase, of a few steps, on one rank and as a table of all of them."""

import statistics
import time
from collections.abc import Mapping, Sequence

import torch

PHASES = (
    "data wait",
    "forward",
    "backward",
    "communication not hidden",
    "optimizer",
    "bookkeeping",
)  # the rest of a step: what ranks agree on, journal, schedules, hooks, saves


class PhaseTimer:
    """Adds up what each phase takes. On a GPU each phase ends by waiting for the device, which makes these steps
    slower than others: the host only queues the work, and would see the time where it happens to wait."""

    def __init__(self, device: torch.device) -> None:
        self.seconds = dict.fromkeys(PHASES, 0.0)
        self._waits_for_device = device.type == "cuda"
        self._phase: str | None = None
        self._since = 0.0

    def enter(self, phase: str | None) -> None:
        """From now on the time is that of `phase`, or nobody's."""
        if self._waits_for_device:
            torch.cuda.current_stream().synchronize()
        now = time.perf_counter()
        if self._phase is not None:
            self.seconds[self._phase] += now - self._since
        self._phase, self._since = phase, now


def phase_table(ranks: Sequence[Mapping[str, float]], steps: int) -> list[str]:
    """Lines of text, a phase each: milliseconds a step on the median and the slowest rank, and the share.

    `ranks` are seconds by phase of each rank, over `steps` steps. The slowest rank is the one that has the most of
    that phase; the shares are those of the mean step of all ranks.
    """
    whole_s = sum(sum(seconds.values()) for seconds in ranks) or 1.0
    rows = {phase: [seconds[phase] / steps for seconds in ranks] for phase in PHASES}
    rows["all"] = [sum(seconds.values()) / steps for seconds in ranks]
    lines = [f"{'of a step':<26}{'median rank':>14}{'slowest rank':>22}{'share':>8}"]
    for name, each_s in rows.items():
        slowest = max(range(len(each_s)), key=each_s.__getitem__)
        middle = f"{1000 * statistics.median(each_s):.2f} ms"
        most = f"{1000 * each_s[slowest]:.2f} ms (rank {slowest})"
        lines.append(f"{name:<26}{middle:>14}{most:>22}{sum(each_s) * steps / whole_s:>8.1%}")
    return lines
