"""What --grid means, and how a wrong grid or a wrong cell is refused."""

from pathlib import Path
from typing import Any

import pytest

from dist_trainer.config.load import read_config
from dist_trainer.errors import ConfigError, UsageError
from dist_trainer.sweep_folder import MAX_CELLS, SweepFolder, find_sweep
from dist_trainer.sweeps.grid import combinations, drawn, parse_grid
from dist_trainer.sweeps.plan import freeze, plan

CONFIG = """
name: small
model: {target: torch.nn.Linear, in_features: 2, out_features: 1}
data:
  train: {target: torch.utils.data.TensorDataset}
  global_batch_size: 4
loss: {target: torch.nn.MSELoss}
optimizer: {target: torch.optim.SGD, lr: 0.1}
tracking: {uri: null}
"""


@pytest.fixture
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "small.yaml").write_text(CONFIG)
    return "small.yaml"


def values_of(text: str) -> list[Any]:
    (axis,) = parse_grid([text])
    return list(axis.values)


@pytest.mark.parametrize(
    ("text", "values"),
    [
        ("optimizer.lr=0.1,3e-2", [0.1, 0.03]),
        ("seed=0:5", [0, 1, 2, 3, 4]),
        ("model.sizes=[64, 10],[64, 32, 10]", [[64, 10], [64, 32, 10]]),
        ("train.compile=true,false", [True, False]),
        ("train.clip_grad_norm=null,1.0", [None, 1.0]),
        ('a.b="1,5",no', ["1,5", "no"]),
        ("x=1,1.0", [1, 1.0]),
        ("model.target=my.A,my.B", ["my.A", "my.B"]),
    ],
)
def test_values_are_read_as_on_the_command_line(text: str, values: list[Any]) -> None:
    found = values_of(text)
    assert [(type(value), value) for value in found] == [(type(value), value) for value in values]


def test_the_last_key_changes_fastest() -> None:
    cells = combinations(parse_grid(["optimizer.lr=0.1,0.03", "seed=0:2"]))
    assert [tuple(cell.values()) for cell in cells] == [(0.1, 0), (0.1, 1), (0.03, 0), (0.03, 1)]


def test_draws_are_different_cells_and_the_same_for_the_same_seed() -> None:
    axes = parse_grid(["optimizer.lr=loguniform(1e-4,1e-1)", "seed=0:3", "model.dropout=uniform(0,0.5)"])
    cells = drawn(axes, 40, seed=1)
    assert cells == drawn(axes, 40, seed=1) != drawn(axes, 40, seed=2)
    assert len({repr(cell) for cell in cells}) == 40
    rates = sorted(cell["optimizer.lr"] for cell in cells)
    assert 1e-4 <= rates[0] < 1e-3 < 1e-2 < rates[-1] <= 1e-1
    assert {cell["seed"] for cell in cells} == {0, 1, 2}


def test_all_cells_of_a_grid_can_be_drawn_and_no_more() -> None:
    axes = parse_grid(["optimizer.lr=0.1,0.03", "seed=0:3"])
    everything = drawn(axes, 6, seed=0)
    assert sorted(map(repr, everything)) == sorted(map(repr, combinations(axes)))
    with pytest.raises(ConfigError, match="--random must be at most 6, the cells of the grid, got 7"):
        drawn(axes, 7, seed=0)


@pytest.mark.parametrize(
    ("grid", "message"),
    [
        ([], "a sweep needs --grid KEY=VALUES"),
        (["optimizer.lr"], "--grid is written KEY=v1,v2 or KEY=0:5, got 'optimizer.lr'"),
        (["optimizer.lr="], "--grid is written KEY=v1,v2"),
        (["seed=3:3"], "a range is first:end, without the end"),
        (["seed=1,1"], "--grid seed=1,1: 1 is given twice"),
        (["seed=0:2", "seed=5"], "seed is in --grid seed=0:2 already; keep one"),
        (["optimizer.lr=[1,2"], "cannot be read as YAML"),
        (["name=a,b"], "a cell is named after the sweep"),
        (["tracking.uri=a,b"], "children of one run in MLflow"),
        (["slurm.time=10,20"], "elements of one job"),
        (["optimizer.lr=loguniform(0,1)"], "loguniform takes numbers > 0"),
        (["optimizer.lr=uniform(2,1)"], "a smaller and a larger number"),
        (["seed=1,1", "name=a"], "given twice\n--grid name=a"),
    ],
)
def test_a_grid_that_means_nothing_is_refused(grid: list[str], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_grid(grid)
    assert message in str(caught.value)


def test_a_range_needs_random_and_a_grid_has_an_end() -> None:
    with pytest.raises(ConfigError, match="say how many cells with --random N"):
        combinations(parse_grid(["optimizer.lr=uniform(0,1)"]))
    with pytest.raises(ConfigError, match=f"1000000 cells, and a sweep at most {MAX_CELLS}"):
        combinations(parse_grid(["seed=0:1000", "train.steps=1:1001"]))


def test_values_go_into_the_configuration_as_they_are(config: str) -> None:
    sweep = plan([config], [], ["loss.reduction=sum,'mean'", "data.global_batch_size=4,8"]).sweep
    assert [cell.shown for cell in sweep.cells][1:3] == [
        "loss.reduction=sum, data.global_batch_size=8",
        "loss.reduction=mean, data.global_batch_size=4",
    ]
    assert [cell.run for cell in sweep.cells] == [f"small-sweep-{number:04d}" for number in range(4)]


def test_every_bad_cell_is_named_with_its_values_before_anything_starts(config: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        plan([config], [], ["optimizer.lr=0.1,-1", "optimizer.momentum=0.9,-2"])
    assert str(caught.value).splitlines() == [
        "cell 1 (optimizer.lr=0.1, optimizer.momentum=-2): small.yaml:8: optimizer is refused by"
        " torch.optim.SGD: Invalid momentum value: -2",
        "cell 2 (optimizer.lr=-1, optimizer.momentum=0.9): command line: optimizer.lr must be > 0, got -1",
        "cell 3 (optimizer.lr=-1, optimizer.momentum=-2): command line: optimizer.lr must be > 0, got -1",
        "3 of 4 cells are wrong; nothing was started",
    ]
    assert not (tmp_path / "runs").exists()


def test_what_is_wrong_in_all_cells_is_said_once(config: str) -> None:
    with pytest.raises(ConfigError) as caught:
        plan([config], [], ["optimizer.momentm=0.9,0.8"])
    assert len(str(caught.value).splitlines()) == 1
    assert "optimizer.momentm is not an argument of torch.optim.SGD" in str(caught.value)


def test_a_key_of_the_grid_is_no_single_value_as_well(config: str) -> None:
    with pytest.raises(ConfigError, match=r"optimizer\.lr=1: --grid optimizer\.lr=1,2 gives optimizer\.lr"):
        plan([config], ["optimizer.lr=1"], ["optimizer.lr=1,2"])


def test_a_sweep_is_frozen_once_and_every_cell_is_a_run(config: str, tmp_path: Path) -> None:
    sweep = plan([config], ["train.epochs=3"], ["seed=0:3"], name="three").sweep
    folder = freeze(sweep, "runs")
    assert folder.path == tmp_path / "runs" / "three"
    (tmp_path / config).write_text("changed: later")
    for index in range(3):
        run = folder.run_of(folder.cell(index))
        assert run.path.name == f"three-{index:04d}"
        settings = read_config(run.config_path)
        assert (settings.name, settings.seed, settings.train.epochs) == (run.path.name, index, 3)
        assert (run.info().sweep, run.info().working_folder) == (str(folder.path), tmp_path)
    assert find_sweep("three", "runs").sweep == folder.sweep
    assert folder.sweep.grid == {"seed": "0:3"}
    with pytest.raises(UsageError, match="sweep three has no cell 3; its cells are 0 to 2"):
        folder.cell(3)


def test_a_cell_whose_folder_was_not_made_is_made(config: str) -> None:
    folder = SweepFolder.create("runs/half", plan([config], [], ["seed=0:2"], name="half").sweep)
    assert not folder.folder_of(folder.cell(1)).exists()
    assert folder.run_of(folder.cell(1)).status.state == "new"


def test_a_sweep_that_is_there_is_refused_with_what_to_do(config: str, tmp_path: Path) -> None:
    sweep = plan([config], [], ["seed=0:2"]).sweep
    freeze(sweep, "runs")
    with pytest.raises(UsageError, match="`dist-trainer sweep resume small-sweep` runs what is missing"):
        freeze(sweep, "runs")
    (tmp_path / "runs" / "other-0001").mkdir()
    with pytest.raises(UsageError, match="other-0001 is there already; give the sweep another --name"):
        freeze(plan([config], [], ["seed=0:2"], name="other").sweep, "runs")
    assert not (tmp_path / "runs" / "other").exists()


@pytest.mark.parametrize("name", ["a b", "x" * 60, "../up"])
def test_a_name_that_cells_cannot_be_named_after_is_refused(config: str, name: str) -> None:
    with pytest.raises(UsageError, match="a sweep's name must match"):
        plan([config], [], ["seed=0:2"], name=name)


def test_a_sweep_that_is_not_there_and_one_cut_short_are_told_apart(config: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no sweep is there yet"):
        find_sweep("small-sweep", "runs")
    folder = freeze(plan([config], [], ["seed=0:2"]).sweep, "runs")
    with pytest.raises(UsageError, match="there is small-sweep"):
        find_sweep("smal-sweep", "runs")
    (folder.path / "sweep.json").write_text('{"id": "a')
    with pytest.raises(UsageError, match="cannot be read"):
        _ = find_sweep("small-sweep", "runs").sweep
