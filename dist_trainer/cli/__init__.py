"""The commands: argv to a checked configuration or a run folder, and on to what does the work.

Everything heavy is imported inside the command that needs it: help, `config show` and `config schema` import no
torch, and their answer is there at once.
"""

import typer

from dist_trainer.cli import jobs, looking, submit, sweep, training
from dist_trainer.cli.words import SETTINGS, Commands

app = typer.Typer(cls=Commands, help="Train PyTorch models over many processes, and finish.", **SETTINGS)
for part in (training, submit, sweep, jobs, looking):
    app.add_typer(part.app)


def main() -> None:
    """The console script."""
    app(prog_name="dist-trainer")
