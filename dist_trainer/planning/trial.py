"""The trial that a plan rests on: the configuration trained for a few steps in a child process, then cleared away."""

import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from dist_trainer.config.load import Loaded, dump_config
from dist_trainer.config.schema import Config
from dist_trainer.errors import ConfigError, DistTrainerError, UsageError
from dist_trainer.launchers.forkserver import variables, variables_for
from dist_trainer.planning.measurement import WARM_UP_STEPS, Measurement
from dist_trainer.run_folder import RunFolder
from dist_trainer.trials.scratch import clear_store, scratch_folder
from dist_trainer.trials.short_copy import checked_copy, shortened

USUAL_STEPS, FEWEST_STEPS = 20, 4
_KIND = "plans"
_SMALLER = 4  # by this factor, where the time of other sizes of a step is asked for
_LAST_WORDS = 12  # lines of a probe that failed


def measure(
    loaded: Loaded, rank_rows: Sequence[int], *, workers: int, runs: Path, steps: int = USUAL_STEPS
) -> Measurement:
    """Train `steps` measured steps for each number of rows, as one rank of `workers` on its node would.

    Its checkpoints are written where the run's would be, and then removed. Raises ConfigError for targets that do
    not fit, and DistTrainerError with its last words where it does not train.
    """
    if steps < FEWEST_STEPS:
        raise UsageError(
            f"--steps must be at least {FEWEST_STEPS}, for medians that mean something, got {steps}"
        )
    with scratch_folder(runs, _KIND, loaded.config.name) as scratch:
        trials = [_make(loaded.config, rows, steps, scratch) for rows in rank_rows]
        result = scratch / "measured.json"
        try:
            with variables(variables_for(loaded.config, workers)):
                _run([sys.executable, "-m", __name__.replace(".trial", ".probe"), result, *trials])
        finally:
            for trial in trials:
                clear_store(RunFolder(trial))
        found = json.loads(result.read_text())
    if "problems" in found:
        raise loaded.error([(key, message) for key, message in found["problems"]])
    return Measurement.from_json(found["measured"])


def sizes_to_measure(rank_rows: int, *, is_any_asked: bool) -> list[int]:
    """The rows of a rank, and where steps with other rows are asked for a smaller number, for a line through both."""
    smaller = max(1, rank_rows // _SMALLER)
    return [rank_rows, smaller] if is_any_asked and smaller < rank_rows else [rank_rows]


def _make(config: Config, rows: int, steps: int, scratch: Path) -> Path:
    """A run folder with the configuration of a trial: one rank's rows, two saves before the last step's."""
    total = 1 + WARM_UP_STEPS + steps  # the probe begins after the first
    name = f"rows-{rows}"
    tree = shortened(config, name, total, max(2, (total - 1) // 2))
    tree["data"] |= {"global_batch_size": rows}
    tree["launch"] |= {"workers_per_node": 1}
    tree["slurm"] |= {"nodes": 1}
    tree["tracking"] |= {"log_every_steps": config.tracking.log_every_steps}
    if tree["train"]["eval_every_steps"]:  # a schedule asks for evaluations
        tree["train"] |= {"eval_every_steps": total}
    copy = checked_copy(tree, scratch / f"{name}.yaml", f"{total} steps of {rows} rows")
    return RunFolder.create(scratch / name, dump_config(copy), working_folder=Path.cwd()).path


def _run(command: Sequence[str | Path]) -> None:
    """To its end, which comes with ours."""
    done = subprocess.run(
        list(map(str, command)),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        check=False,
    )
    if done.returncode:
        words = "\n".join(done.stdout.strip().splitlines()[-_LAST_WORDS:])
        error = ConfigError if done.returncode == ConfigError.exit_code else DistTrainerError
        raise error(f"one rank of it does not train:\n{words or f'exit code {done.returncode}'}")
