"""The commands that look for what went wrong, and rehearse what could."""

from typing import Annotated

import typer

from dist_trainer.cli.completion import complete_fault, complete_run_or_config
from dist_trainer.cli.words import (
    RUNS,
    SETTINGS,
    Json,
    Run,
    Runs,
    Workers,
    exit_with,
    find_remains,
    note_run,
    print_json,
)
from dist_trainer.errors import UsageError

app = typer.Typer(**SETTINGS)
Drilled = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="RUN|CONFIG... [KEY=VALUE...]",
        help="A run that is there, or what train would be given.",
        autocompletion=complete_run_or_config,
    ),
]
FaultNames = Annotated[
    list[str] | None,
    typer.Option(
        metavar="NAME",
        help="What is to go wrong; may be repeated. Default: all; see --list.",
        autocompletion=complete_fault,
    ),
]


@app.command()
def explain(
    run: Run,
    attempt: Annotated[
        int | None, typer.Option(metavar="N", min=1, help="An earlier attempt; default: the newest.")
    ] = None,
    runs: Runs = RUNS,
    as_json: Json = False,
) -> None:
    """Say what failed first, what the others did, what is saved, and what to do next: on one screen."""
    from dist_trainer.diagnose.explain import explain as look
    from dist_trainer.diagnose.screen import show

    found = look(find_remains(run, runs), attempt)
    if as_json:
        print_json(found.as_json())
        return
    from rich.console import Console

    show(found, Console(highlight=False))


@app.command()
def drill(
    ctx: typer.Context,
    arguments: Drilled = None,
    fault: FaultNames = None,
    steps: Annotated[
        int | None, typer.Option(metavar="N", help="Steps to train each time; default: 12.")
    ] = None,
    workers: Workers = None,
    keep: Annotated[bool, typer.Option("--keep", help="Keep the drill's runs, to look at them.")] = False,
    list_faults: Annotated[
        bool, typer.Option("--list", help="Say which faults there are, and do nothing.")
    ] = False,
    runs: Runs = RUNS,
    as_json: Json = False,
) -> None:
    """Do a fault on purpose to a short copy of a run, and see that it ends as if nothing had happened.

    The run itself is never touched. 0: every fault was survived; 1: one was not.
    """
    from dist_trainer.diagnose.faults import ALL, FAULTS, chosen

    if list_faults:
        print_json({name: each.says for name, each in FAULTS.items()}) if as_json else None
        for name, each in FAULTS.items() if not as_json else ():
            print(f"{name:<18} {each.says}")
        return
    if not arguments:
        raise UsageError("drill needs a run or a configuration; --list shows the faults")
    faults = chosen(fault or [ALL])
    from dist_trainer.diagnose.drill_folder import drill_in_folder, subject_of

    subject = subject_of(arguments, runs)
    note_run(ctx, subject.config.name)
    exit_with(
        drill_in_folder(subject, faults, runs=runs, steps=steps, workers=workers, keep=keep, as_json=as_json)
    )


@app.command()
def doctor(
    ctx: typer.Context,
    arguments: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[RUN|CONFIG...] [KEY=VALUE...]",
            help="What is to be trained, or a cluster's profile alone; default: the defaults.",
        ),
    ] = None,
    slurm: Annotated[
        bool, typer.Option("--slurm", help="Every node: of the job around, or of a short one of its own.")
    ] = False,
    slurm_time: Annotated[int, typer.Option(metavar="MINUTES", min=1, help="Limit of that short job.")] = 10,
    slurm_wait: Annotated[
        float, typer.Option(metavar="S", min=0, help="How long to wait for it to start.")
    ] = 300,
    runs: Runs = RUNS,
    as_json: Json = False,
) -> None:
    """Look at this machine, or with --slurm at every node of a job, before a run: in seconds.

    0: nothing is broken, though there may be warnings; 1: something is.
    """
    from dist_trainer.doctor.report import report

    given = arguments or []
    for name in given[:1]:
        note_run(ctx, name)
    exit_with(report(given, runs, as_json=as_json, minutes=slurm_time if slurm else None, wait_s=slurm_wait))
