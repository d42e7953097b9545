"""One launch of workers with its progress and its MLflow process, up to its ending."""

from collections.abc import Callable
from dataclasses import replace

from rich.console import Console

from dist_trainer.config.schema import Config
from dist_trainer.launchers.progress import Progress
from dist_trainer.launchers.results import Ending
from dist_trainer.launchers.signals import StopRequests
from dist_trainer.launchers.supervisor import Outcome
from dist_trainer.launchers.tracking import Tracking
from dist_trainer.run_folder import RunFolder


def accompany(
    launch: Callable[..., Outcome],
    run: RunFolder,
    config: Config,
    requests: StopRequests,
    console: Console,
    *,
    settle: Callable[[Ending], None] = lambda ending: None,
    must_leave: Callable[[], bool] = lambda: False,
    total_steps: int | None = None,
) -> Ending:
    """Call `launch` with what it needs to be watched, then wait for MLflow unless another request comes.

    `settle` is told of the ending before that: it may change how the run stands. `must_leave`: there is no
    time to wait. `total_steps`: those to show, where there will be fewer than the configuration's.
    """
    progress, tracking = Progress(run, console, total_steps), Tracking(run, config.tracking)

    def tick() -> None:
        progress.tick()
        tracking.start_when_training(progress.say)

    try:
        try:
            outcome = launch(requests=requests, on_tick=tick, report=progress.report)
        finally:
            progress.close()
        ending = _ending(run, config, outcome)
        settle(ending)
    finally:
        asked_before = len(requests.wanted)
        tracking.finish(
            progress.say,
            hurry=lambda: requests.urgent or must_leave() or len(requests.wanted) > asked_before,
        )
    return replace(ending, all_tracked=tracking.all_sent)


def _ending(run: RunFolder, config: Config, outcome: Outcome) -> Ending:
    status = run.read_status()
    finished = outcome.state == "finished"
    return Ending(
        run=run,
        config=config,
        state=outcome.state,
        exit_code=outcome.exit_code,
        step=status.step if outcome.step is None else outcome.step,
        results=status.results if finished else {},
        failure=outcome.failure,
        run_again=outcome.run_again,
        began=outcome.began,
        message=outcome.message,
    )
