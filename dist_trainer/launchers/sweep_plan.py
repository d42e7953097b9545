"""What a sweep's command line means: the cells of its grid, resolved, checked and frozen."""

from pathlib import Path

from dist_trainer.run_folder import RunFolder
from dist_trainer.sweep_folder import SweepFolder


def cell_run(sweep_folder: str | Path, index: int) -> RunFolder:
    """The run of a cell, for the element of an array job that has its number. Imports no torch.

    Raises UsageError where there is no such sweep, or no such cell in it.
    """
    sweep = SweepFolder.open(sweep_folder)
    return sweep.run_of(sweep.cell(index))
