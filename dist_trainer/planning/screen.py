"""A plan as it is shown: a line on what was measured, a table of at most 80 columns, and what it comes to."""

import math
import textwrap
from collections.abc import Iterator

from rich.console import Console
from rich.table import Table

from dist_trainer.diagnose.words import count
from dist_trainer.planning.plan import Forecast, Plan, Row

GOOD_EFFICIENCY = 0.8
_SAME = 0.001  # of the time: not worth a word
_HEADS = (
    *("nodes", "ranks", "step\nms", "waits\nms", "effic.\n%", "samples\n/s", "epoch"),
    *("save\nevery", "lost\n%", "as set\n%", "useful\n%"),
)


def show(plan: Plan, console: Console) -> None:
    """Print it."""
    for line in _measured(plan):
        _print(console, line)
    console.print()
    console.print(_table(plan))
    notes = dict.fromkeys(row.note for row in plan.rows if row.note)
    console.print()
    for line in [*notes, *says(plan)]:
        _print(console, line)
    console.print()
    _print(console, "assumed, each with what changes it:")
    for line in _assumed(plan):
        _print(console, line, indent="  ")


def _print(console: Console, text: str, *, indent: str = "") -> None:
    for line in textwrap.wrap(
        text, console.width, initial_indent=indent, subsequent_indent=indent + "  ", break_on_hyphens=False
    ):
        console.print(line, markup=False, highlight=False, soft_wrap=True)


def _measured(plan: Plan) -> Iterator[str]:
    found = plan.measured
    step, save = found.compute(found.rank_rows), found.save
    gradients = sum(bucket.size_bytes for bucket in plan.buckets)
    yield (
        f"{plan.run}: one rank on {found.device}, {count(found.rank_rows, 'row')} a step: {_ms(step.total_s)} ms "
        f"(data and loop {_ms(step.between_s)}, forward {_ms(step.forward_s)}, backward {_ms(step.backward_s)}, "
        f"update {_ms(step.update_s)}), {size(gradients)} of gradients in {count(len(plan.buckets), 'bucket')}"
    )
    yield (
        f"a checkpoint of {size(save.size_bytes)} stops training for {_ms(save.stall_s)} ms and is safe after "
        f"{_ms(save.total_s)} ms"
    )


def _table(plan: Plan) -> Table:
    table = Table(box=None, pad_edge=False, padding=(0, 1, 0, 0))
    for head in _HEADS:
        table.add_column(head, justify="right", no_wrap=True)
    for row in plan.rows:
        table.add_row(*_cells(row))
    return table


def _cells(row: Row) -> list[str]:
    first = [str(row.nodes), str(row.ranks)]
    return [*first, *(_forecast(row.forecast) if row.forecast else ["-"] * (len(_HEADS) - 2))]


def _forecast(found: Forecast) -> Iterator[str]:
    saves = found.saves
    yield from (_ms(found.step_s), _ms(found.exposed_s), _percent(found.efficiency))
    yield from (short(found.samples_per_s), span(found.epoch_s))
    yield "never" if saves.best_every_s is None else span(saves.best_every_s)
    yield from map(_percent, (saves.lost_at_best, saves.lost_as_configured, found.useful))


def says(plan: Plan) -> Iterator[str]:
    """What the rows come to, in sentences."""
    if not plan.forecasts:
        yield "nowhere is there a row for each rank: fewer nodes, or without --keep-global-batch"
        return
    yield _of_efficiency(plan)
    yield from _of_rows(plan)
    row, forecast = plan.forecasts[-1]
    saves = forecast.saves
    if saves.mtbf_s is not None:
        gain = saves.lost_as_configured - saves.lost_at_best
        as_set = "loses no more" if gain < _SAME else f"loses {gain:.1%} of the time more than the best"
        every = f"saving every {span(saves.every_s)}, as configured, {as_set}"
        yield f"{_nodes(row)} fail every {span(saves.mtbf_s)}; {every}"


def _of_efficiency(plan: Plan) -> str:
    bad = [(row, found) for row, found in plan.forecasts if found.efficiency < GOOD_EFFICIENCY]
    if not bad:
        return f"efficiency stays at {GOOD_EFFICIENCY:.0%} or more, up to {_nodes(plan.forecasts[-1][0])}"
    row, found = bad[0]
    waits = found.exposed_s / found.step_s
    why = f"{waits:.0%} of a step waits for gradients"
    if found.efficiency < (1 - waits) * 0.95:
        why += f", and {count(row.rank_rows, 'row')} a rank cost more each than {plan.measured.rank_rows}"
    return f"efficiency falls below {GOOD_EFFICIENCY:.0%} at {_nodes(row)}: {why}"


def _of_rows(plan: Plan) -> Iterator[str]:
    all_of_it = [row for row, _ in plan.forecasts if row.global_batch > plan.measured.dataset_rows]
    if all_of_it:
        yield (
            f"at {_nodes(all_of_it[0])} one step would take more than the data set's "
            f"{plan.measured.dataset_rows:,} rows"
        )


def _assumed(plan: Plan) -> Iterator[str]:
    ranks = count(plan.question.workers, "worker")
    if plan.question.keeps_global_batch:
        yield f"{ranks} a node (--workers); the configured global batch is shared out (--keep-global-batch)"
    else:
        rows = count(plan.measured.rank_rows, "row")
        yield f"{ranks} a node (--workers), each with {rows}: the global batch grows (--keep-global-batch)"
    yield from plan.assumptions.lines
    yield "all ranks compute equally fast, and no slower for the all-reduces beside them"


def _nodes(row: Row) -> str:
    return count(row.nodes, "node")


def _percent(share: float) -> str:
    return f"{100 * share:.1f}"


def _ms(seconds: float) -> str:
    milliseconds = 1000 * seconds
    return (
        f"{milliseconds:.2f}" if milliseconds < 10 else f"{milliseconds:.{1 if milliseconds < 1000 else 0}f}"
    )


def short(value: float) -> str:
    """Three digits: 0.51, 12.3, 4.56k, 789M."""
    for unit in ("", "k", "M", "G"):
        if value < 999.5 or unit == "G":
            break
        value /= 1000
    return f"{value:.{2 if value < 9.995 else 1 if value < 99.95 else 0}f}{unit}"


def size(size_bytes: float) -> str:
    """1.23 MB."""
    for unit in ("B", "kB", "MB", "GB"):
        if size_bytes < 999.5 or unit == "GB":
            break
        size_bytes /= 1000
    return f"{size_bytes:.3g} {unit}"


def span(seconds: float) -> str:
    """About how long: 0.5 s, 40 s, 12 min, 3.1 h, 4.2 d."""
    units = (("s", 1, 100), ("min", 60, 6000), ("h", 3600, 172800), ("d", 86400, math.inf))
    unit, length_s = next((unit, length_s) for unit, length_s, end_s in units if seconds < end_s)
    value = seconds / length_s
    return f"{value:.2g} {unit}" if value < 9.95 else f"{value:,.0f} {unit}"
