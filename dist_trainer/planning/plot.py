"""A plan as a picture: throughput beside the ideal, the step's parts, and what of the time is of use."""

from pathlib import Path
from typing import TYPE_CHECKING

from dist_trainer.diagnose.words import count
from dist_trainer.errors import UsageError
from dist_trainer.planning.plan import Plan

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_INCHES, _DOTS_PER_INCH = (13.0, 4.2), 120


def check_plot(path: Path) -> None:
    """Raise UsageError where no picture could be written there, before anything is measured."""
    if path.suffix != ".png":
        raise UsageError(f"--plot must end in .png, got {str(path)!r}")
    if not path.absolute().parent.is_dir():
        raise UsageError(f"--plot: there is no folder {path.absolute().parent}; make it first")


def write_plot(plan: Plan, path: Path) -> None:
    """A PNG file with three pictures side by side, over the number of nodes."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=_INCHES, dpi=_DOTS_PER_INCH, layout="constrained")
    throughput, parts, shares = figure.subplots(1, 3)
    _draw_throughput(plan, throughput)
    _draw_parts(plan, parts)
    _draw_shares(plan, shares)
    for axes in (throughput, parts, shares):
        _label_nodes(plan, axes)
    figure.suptitle(f"{plan.run}: predicted from one rank, {count(plan.question.workers, 'worker')} a node")
    figure.savefig(path, format="png")  # by Agg: without pyplot there is no window and no state


def _nodes(plan: Plan) -> list[int]:
    return [row.nodes for row, _ in plan.forecasts]


def _draw_throughput(plan: Plan, axes: "Axes") -> None:
    found = [each for _, each in plan.forecasts]
    ideal = [each.samples_per_s / each.efficiency for each in found]
    axes.plot(_nodes(plan), ideal, "--", color="grey", label="ideal")
    axes.plot(_nodes(plan), [each.samples_per_s for each in found], "o-", label="predicted")
    axes.set(yscale="log", title="samples a second")
    axes.legend()


def _draw_parts(plan: Plan, axes: "Axes") -> None:
    compute = [1000 * each.compute_s for _, each in plan.forecasts]
    exposed = [1000 * each.exposed_s for _, each in plan.forecasts]
    axes.stackplot(_nodes(plan), compute, exposed, labels=["a rank's own work", "waits for gradients"])
    axes.set(title="a step, ms", ylim=(0, None))
    axes.legend(loc="upper left")


def _draw_shares(plan: Plan, axes: "Axes") -> None:
    for label, shares in {
        "efficiency": [each.efficiency for _, each in plan.forecasts],
        "not lost to failures": [1 - each.saves.lost_at_best for _, each in plan.forecasts],
        "useful": [each.useful for _, each in plan.forecasts],
    }.items():
        axes.plot(_nodes(plan), [100 * share for share in shares], "o-", label=label)
    axes.set(title="share of the time, %", ylim=(0, 105))
    axes.legend()


def _label_nodes(plan: Plan, axes: "Axes") -> None:
    axes.set(xscale="log", xlabel="nodes")
    axes.set_xticks(_nodes(plan), [f"{nodes:,}" for nodes in _nodes(plan)], rotation=45)
    axes.minorticks_off()
    axes.grid(alpha=0.3)
