"""The command that looks ahead: what a training would cost on more nodes."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from dist_trainer.cli.words import RUNS, SETTINGS, Arguments, Json, Runs, load, note_run, print_json

if TYPE_CHECKING:
    from dist_trainer.planning.plan import Plan

app = typer.Typer(**SETTINGS)

Nodes = Annotated[
    str, typer.Option(metavar="N,N,...", help="Numbers of nodes; dots go on by one factor or one sum.")
]
NodeWorkers = Annotated[
    int | None, typer.Option(metavar="N", min=1, help="Ranks of a node; default: the configuration's.")
]
KeepGlobalBatch = Annotated[
    bool, typer.Option("--keep-global-batch", help="Share it out; default: it grows with the ranks.")
]
Bandwidth = Annotated[
    float | None, typer.Option(metavar="GB/S", help="Of a node's link; default: 1.25 on CPUs, 12.5 on GPUs.")
]
Latency = Annotated[
    float | None, typer.Option(metavar="US", help="Of a node's link; default: 80 on CPUs, 10 on GPUs.")
]
LocalBandwidth = Annotated[
    float | None, typer.Option(metavar="GB/S", help="In a node: all its CPU ranks together, or each GPU.")
]
LocalLatency = Annotated[float | None, typer.Option(metavar="US", help="Between ranks of a node.")]
Failures = Annotated[float | None, typer.Option(metavar="N", help="Of one node in a year; default: 1.4.")]
Restart = Annotated[
    float | None, typer.Option(metavar="S", help="From a failure until steps are done again; default: 120.")
]
Steps = Annotated[int, typer.Option(metavar="N", help="Steps to measure.")]
Plot = Annotated[Path | None, typer.Option(metavar="FILE", help="Write a picture: .png.")]


@app.command()
def plan(
    ctx: typer.Context,
    arguments: Arguments,
    nodes: Nodes = "1,2,4,...,1024",
    workers: NodeWorkers = None,
    keep_global_batch: KeepGlobalBatch = False,
    bandwidth: Bandwidth = None,
    latency: Latency = None,
    local_bandwidth: LocalBandwidth = None,
    local_latency: LocalLatency = None,
    failures: Failures = None,
    restart: Restart = None,
    steps: Steps = 20,
    plot: Plot = None,
    runs: Runs = RUNS,
    as_json: Json = False,
) -> None:
    """Measure a few steps of one rank here, and predict steps, epochs, saves and losses on up to a thousand nodes."""
    loaded = load(arguments)
    note_run(ctx, loaded.config.name)
    from dist_trainer.planning.assumptions import Given
    from dist_trainer.planning.foresee import foresee
    from dist_trainer.planning.node_counts import parse_node_counts
    from dist_trainer.planning.plot import check_plot, write_plot

    given = Given(bandwidth, latency, local_bandwidth, local_latency, failures, restart)
    counts = parse_node_counts(nodes)
    if plot is not None:
        check_plot(plot)
    found = foresee(
        loaded, counts, given, workers=workers, keeps_global_batch=keep_global_batch, steps=steps, runs=runs
    )
    if plot is not None:
        write_plot(found, plot)
    _show(found, as_json=as_json)


def _show(found: "Plan", *, as_json: bool) -> None:
    if as_json:
        print_json(found.as_json())
        return
    from rich.console import Console

    from dist_trainer.planning.screen import show

    show(found, Console(highlight=False))
