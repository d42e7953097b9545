"""The commands: argv to a checked configuration or a run folder, and on to what does the work.

Everything heavy is imported inside the command that needs it: help, `config show` and `config schema` import no
torch, and their answer is there at once.
"""

import typer

from dist_trainer.adapters.interpreter import leave
from dist_trainer.adapters.privacy import keep_private
from dist_trainer.cli import (
    diagnosing,
    exporting,
    jobs,
    looking,
    planning,
    reporting,
    starting,
    submit,
    sweep,
    training,
    tuning,
)
from dist_trainer.cli.words import SETTINGS, Commands

app = typer.Typer(cls=Commands, help="Train PyTorch models over many processes, and finish.", **SETTINGS)
PARTS = (
    starting,
    training,
    reporting,
    exporting,
    submit,
    sweep,
    jobs,
    diagnosing,
    planning,
    tuning,
    looking,
)
for part in PARTS:
    app.add_typer(part.app)


def main() -> None:
    """The console script. What it writes, and all processes that come of it, is for its user alone."""
    keep_private()
    try:
        app(prog_name="dist-trainer")
    except SystemExit as ending:
        if isinstance(ending.code, int | None):
            leave(ending.code or 0)
        raise
