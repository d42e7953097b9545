"""A plan as a table of 80 columns, sentences, and a picture."""

import io
from pathlib import Path

import pytest
from rich.console import Console

from dist_trainer.errors import UsageError
from dist_trainer.planning.plan import Plan
from dist_trainer.planning.plot import check_plot, write_plot
from dist_trainer.planning.screen import says, short, show, size, span
from tests.planning.measurements import CONFIG, THOUSAND, changed, planned, with_two_sizes


def shown(plan: Plan, width: int = 80) -> str:
    out = io.StringIO()
    show(plan, Console(file=out, width=width, highlight=False))
    return out.getvalue()


@pytest.mark.parametrize("bandwidth_gb_s", [0.001, 1, 1000])
@pytest.mark.parametrize("failures", [0.0, 1.4, 5000])
def test_a_thousand_nodes_fit_into_80_columns(bandwidth_gb_s: float, failures: float) -> None:
    plan = planned(*THOUSAND, workers=8, bandwidth_gb_s=bandwidth_gb_s, failures_per_node_year=failures)
    lines = shown(plan).splitlines()
    assert max(map(len, lines)) <= 80 and "…" not in shown(plan)
    table = [line.split() for line in lines[lines.index("") + 3 :]]
    assert [int(row[0]) for row in table[: len(THOUSAND)]] == THOUSAND


def test_the_screen_says_what_was_measured_what_it_comes_to_and_what_was_assumed() -> None:
    said = " ".join(shown(planned(1, 1024, bandwidth_gb_s=2), width=200).split())
    assert "grown: one rank on cuda, 16 rows a step: 90.0 ms (data and loop 10.0, forward 20.0," in said
    assert "100 MB of gradients in 4 buckets" in said
    assert "a checkpoint of 300 MB stops training for 200.0 ms and is safe after 2000 ms" in said
    assert "efficiency falls below 80% at 1,024 nodes: " in said and "of a step waits for gradients" in said
    assert "between nodes 2 GB/s and 10 us: --bandwidth, --latency" in said, "what is given is no default"
    assert "in a node 100 GB/s and 5 us (NVLink, for each GPU): --local-bandwidth" in said
    assert "1.4 failures per node and year (as for Llama 3): --failures" in said


def test_the_first_number_of_nodes_with_too_little_efficiency_is_named_and_why() -> None:
    first = next(iter(says(planned(1, 2, bandwidth_gb_s=1000))))
    assert first == "efficiency stays at 80% or more, up to 2 nodes"
    plan = planned(1, 2, 4, 8, 16, keeps_global_batch=True, measured=with_two_sizes())
    shared = next(iter(says(plan)))
    assert "at 2 nodes: 4% of a step waits" in shared and "8 rows a rank cost more each than 16" in shared


def test_a_row_without_a_forecast_says_why_and_is_in_the_table() -> None:
    said = shown(planned(1, 64, keeps_global_batch=True))
    assert "128 ranks have no row each in a step of 32" in said
    assert "   64   128" in said and " - " in said
    nowhere = shown(planned(64, keeps_global_batch=True))
    assert "nowhere is there a row for each rank" in nowhere


def test_a_step_larger_than_the_data_set_is_told() -> None:
    assert "at 65,536 nodes one step would take more than the data set's 1,000,000 rows" in " ".join(
        shown(planned(1, 65_536)).split()
    )


def test_saves_as_configured_are_compared_with_the_best() -> None:
    rarely = changed(CONFIG, "checkpoint", every_steps=10**6, every_minutes=None)
    last = list(says(planned(1024, config=rarely)))[-1]
    assert last.startswith("1,024 nodes fail every 6.1 h; saving every 60 min, as configured, loses ")
    assert last.endswith("of the time more than the best")


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.0123, "0.012 s"), (9.96, "10 s"), (600, "10 min"), (86400, "24 h"), (1e6, "12 d")],
)
def test_spans_are_short(seconds: float, text: str) -> None:
    assert span(seconds) == text


def test_numbers_are_short() -> None:
    assert [short(value) for value in (0.514, 12.34, 999.6, 45_600, 1.234e9)] == [
        *("0.51", "12.3", "1.00k", "45.6k", "1.23G")
    ]
    assert [size(value) for value in (12, 1500, 3e8, 5e13)] == ["12 B", "1.5 kB", "300 MB", "5e+04 GB"]


def test_a_plot_is_a_png_file(tmp_path: Path) -> None:
    write_plot(planned(*THOUSAND), tmp_path / "plan.png")
    assert (tmp_path / "plan.png").read_bytes().startswith(b"\x89PNG\r\n\x1a\n")
    write_plot(planned(64, keeps_global_batch=True), tmp_path / "nothing.png")


def test_where_no_plot_can_be_written_is_said_before_anything_is_measured(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"--plot must end in \.png, got 'plan.pdf'"):
        check_plot(Path("plan.pdf"))
    with pytest.raises(UsageError, match="--plot: there is no folder"):
        check_plot(tmp_path / "nowhere" / "plan.png")
    check_plot(tmp_path / "plan.png")
