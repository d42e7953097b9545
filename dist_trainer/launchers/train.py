"""The `train` command below the command line: which run, may it go on, launch it, say how it ended."""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path

from rich.console import Console

from dist_trainer.adapters.interpreter import importing
from dist_trainer.config.check import check_targets
from dist_trainer.config.load import Loaded, dump_config
from dist_trainer.config.schema import Config
from dist_trainer.errors import FINISHED, STOPPED
from dist_trainer.launchers import forkserver
from dist_trainer.launchers.accompany import accompany
from dist_trainer.launchers.existing import (
    existing_run,
    is_done,
    move_aside,
    nothing_left,
    rewrite_config,
    telling_changes,
)
from dist_trainer.launchers.results import Ending, show_error, show_json, show_json_error, show_results
from dist_trainer.launchers.signals import StopRequests
from dist_trainer.launchers.workers import count_workers, fed_by_batch
from dist_trainer.run_folder import RunFolder

WORKER = "dist_trainer.worker:main"


def train(
    loaded: Loaded,
    *,
    runs: str | Path = "runs",
    workers: int | None = None,
    fresh: bool = False,
    allow_change: Sequence[str] = (),
    as_json: bool = False,
    entry: str = WORKER,
) -> int:
    """Train a run to its end, from wherever it is; the command's exit code.

    A run that is not there is created; one that did not finish goes on. Raises ConfigError for what is wrong
    with the configuration's targets, UsageError for a configuration that is not the run's or a run that
    another command trains. `fresh` moves a run that is there aside. `entry` is what each worker runs.
    """
    config, folder = loaded.config, Path(runs, loaded.config.name).absolute()
    console = Console(quiet=as_json, highlight=False)
    with ExitStack() as stack:
        requests = stack.enter_context(StopRequests().listening(to_the_end=True))
        forkserver.start_for(config, workers)
        if fresh and (old := move_aside(folder)):
            console.print(f"moved the old run to {old}", markup=False, soft_wrap=True)
        run = existing_run(folder)
        if run is not None:
            stack.enter_context(run.lock())
            if is_done(run, loaded, allow_change):
                return _show(_finished(run, config, console), console, as_json)
        count = _count(config, workers)
        try:
            _check_targets(loaded, run, requests)
        except InterruptedError:
            return _stopped_early(config, console, as_json)
        if run is None:
            run = stack.enter_context(_new_run(folder, config))
        else:
            _go_on_with(config, run, console)
        ending = _launch(run, config, count, requests, console, entry)
    return _show(ending, console, as_json)


def train_copy(
    loaded: Loaded, folder: Path, *, workers: int | None, console: Console, total_steps: int
) -> Ending:
    """Train a new run in `folder` once, for a tool that looks at what came of it: nothing is said of its results.

    `total_steps` are those that it will have, which a hook may make fewer than the configuration's.
    Raises as `train` does, and InterruptedError where a signal came before its workers were started.
    """
    config = loaded.config
    with ExitStack() as stack:
        requests = stack.enter_context(StopRequests().listening(to_the_end=True))
        forkserver.start_for(config, workers)
        count = _count(config, workers)
        _check_targets(loaded, None, requests)
        run = stack.enter_context(_new_run(folder, config))
        return _launch(run, config, count, requests, console, WORKER, total_steps)


@contextmanager
def _new_run(folder: Path, config: Config) -> Iterator[RunFolder]:
    run = RunFolder.create(folder, dump_config(config), working_folder=Path.cwd())
    with run.lock():
        yield run


def _count(config: Config, workers: int | None) -> int:
    with importing():  # torch, while the forkserver does
        from dist_trainer.launchers import agent

    return fed_by_batch(workers or count_workers(config, agent.visible_gpus()), config)


def _launch(
    run: RunFolder,
    config: Config,
    count: int,
    requests: StopRequests,
    console: Console,
    entry: str,
    total_steps: int | None = None,
) -> Ending:
    from dist_trainer.launchers import agent

    launch = partial(agent.launch, run, config, workers=count, entry=entry)
    return accompany(launch, run, config, requests, console, total_steps=total_steps)


def _go_on_with(config: Config, run: RunFolder, console: Console) -> None:
    """The run's configuration is this one from here on; says what is another in it."""
    if told := telling_changes(run, config):
        console.print(f"going on with a changed configuration:\n{told}", markup=False, soft_wrap=True)
    rewrite_config(run, config)


def _show(ending: Ending, console: Console, as_json: bool) -> int:
    if as_json:
        show_json(ending)
    elif ending.exit_code in (FINISHED, STOPPED):
        show_results(ending, console)
    else:
        show_error(ending)
    return ending.exit_code


def _stopped_early(config: Config, console: Console, as_json: bool) -> int:
    console.print("stopped before the training began")
    if as_json:
        show_json_error(config.name, "stopped", STOPPED, None)
    return STOPPED


def _finished(run: RunFolder, config: Config, console: Console) -> Ending:
    status = run.read_status()
    console.print(nothing_left(run), soft_wrap=True)
    return Ending(run, config, "finished", FINISHED, status.step, status.results)


def _check_targets(loaded: Loaded, run: RunFolder | None, requests: StopRequests) -> None:
    """Import what the configuration names, where the workers will; in a child, so that nothing stays here."""
    folder = Path.cwd() if run is None else run.info().working_folder
    problems = forkserver.call(check_targets, loaded.config, folder=folder, until=lambda: requests.stopping)
    if problems:
        raise loaded.error(problems)
