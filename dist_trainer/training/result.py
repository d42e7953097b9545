"""How a training ended, for the script that called it."""

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

from dist_trainer.errors import FINISHED, STOPPED
from dist_trainer.run_folder import RunFolder

if TYPE_CHECKING:
    from dist_trainer.training.curves import Curves


@dataclass(frozen=True)
class Result:
    """How `fit` ended: `stopped` is saved, and the same call goes on from there."""

    state: Literal["finished", "stopped"]
    step: int
    metrics: dict[str, float]
    reason: str = ""
    run: RunFolder | None = field(default=None, repr=False, compare=False)  # None: nothing was trained

    @property
    def exit_code(self) -> int:
        """What a script ends with, for whoever started it: 0 finished, 75 stopped early and saved, run it again."""
        return FINISHED if self.state == "finished" else STOPPED

    def plot(self) -> "Curves":
        """The run's losses and metrics over its steps, of all attempts, as a matplotlib figure.

        A notebook shows it below the cell, and `savefig` writes it into a file.
        """
        from dist_trainer.training.curves import Curves  # matplotlib takes a second to import

        return Curves.of(self.run.journal_path(0)) if self.run else Curves()
