"""The training loop: `fit` reads like the recipe it is, and each line's work is in a module of its own."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from torch import Tensor, nn
from torch.optim import Optimizer

from dist_trainer.checkpoint.writer import State
from dist_trainer.config.schema import Settings
from dist_trainer.errors import ConfigError
from dist_trainer.run_folder import RunFolder, Status
from dist_trainer.training.attempt import begin
from dist_trainer.training.batch import Batch
from dist_trainer.training.build import Ingredients, Scheduler, build
from dist_trainer.training.changed_code import tell_changed_code
from dist_trainer.training.compiling import compiling_beats
from dist_trainer.training.evaluations import Evaluations
from dist_trainer.training.fetch import ReadInterrupted
from dist_trainer.training.group_options import put_back
from dist_trainer.training.hooks import Hook
from dist_trainer.training.metrics import as_metrics
from dist_trainer.training.profile import Profiler
from dist_trainer.training.progress import own_progress
from dist_trainer.training.random_state import random_state_kept
from dist_trainer.training.recorder import Recorder
from dist_trainer.training.result import Result
from dist_trainer.training.same_state import SameState
from dist_trainer.training.saves import Saves
from dist_trainer.training.settings import make_settings, open_or_create
from dist_trainer.training.snapshot import capture, restore
from dist_trainer.training.step import StepResult
from dist_trainer.training.stop import Agreed, Agreement, Interruption, Signals, Stop
from dist_trainer.training.task import Supervised, Task
from dist_trainer.training.time_limit import TimeLimit
from dist_trainer.training.tracker import Tracker
from dist_trainer.training.watchdog import watched

__all__ = ["Result", "Scheduler", "Trainer"]


class Trainer:
    """Trains a model over all ranks, evaluates it, saves it, and goes on where an earlier attempt ended.

    `optimizer` is a torch optimizer over the model's parameters, or a function that makes one for a module.
    `settings`: a Settings, or a dict of dotted keys ({"train.precision": "bf16"}); the words name, epochs, steps
    and global_batch_size are short for the most used. Started by torchrun each rank makes its own Trainer;
    started alone it is a group of one. Raises ConfigError for what doesn't fit.
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        train: Any,
        optimizer: Optimizer | Callable[[nn.Module], Optimizer],
        loss: Callable[..., Tensor] | None = None,
        val: Any = None,
        test: Any = None,
        task: Task | None = None,
        metrics: Mapping[str, Any] | None = None,
        scheduler: Scheduler | None = None,
        collate: Callable[[list[Any]], Any] | None = None,
        hooks: Sequence[Hook] = (),
        settings: Settings | Mapping[str, Any] | None = None,
        runs: str | Path = "runs",
        run: RunFolder | None = None,
        signals: Signals | None = None,
        **words: Any,
    ) -> None:
        if loss is not None and task is None:
            task = Supervised(loss)
        elif task is None or loss is not None:
            raise ConfigError("Trainer needs either a loss, or a task that defines one")
        self.settings = make_settings(settings, words)
        self.hooks = [*hooks, *own_progress()]
        self._begin_anew()
        measures, plan = as_metrics(metrics or {}), scheduler or Scheduler()
        self.given = Ingredients(model, task, train, val, test, measures, optimizer, plan, collate)
        self._open_run = (lambda: run) if run is not None else open_or_create(self.settings, Path(runs))
        self._signals = signals

    def _begin_anew(self) -> None:
        self.step, self.stop = 0, Stop.NONE  # updates done; what was agreed
        self._resumed_at = -1

    def fit(self) -> Result:
        """Train to the last step, or to an agreed earlier one when the machine is wanted back. Collective."""
        signals = self._signals or Signals()
        self._begin_anew()
        try:
            with (
                random_state_kept(),
                put_back(self.given.optimizer),
                begin(self._open_run, self.settings.launch, signals) as attempt,
                attempt.told(lambda: self.step) as after_failure,
            ):
                self.attempt = attempt
                self.parts = build(self.given, self.settings, attempt)
                after_failure.callback(self.parts.close)
                self.saves = Saves(self.settings.checkpoint, attempt, SameState(self.parts, attempt))
                after_failure.callback(self.saves.abandon)
                every = self.settings.tracking.log_every_steps
                self.recorder = Recorder(attempt, every_steps=every, epoch_rows=self.parts.sampler.length)
                self.tracker = Tracker(self.settings.tracking, attempt)
                self.limit = limit = TimeLimit(attempt, self.saves)
                asked = lambda: max(signals.requested, limit.asked())  # noqa: E731
                self.parts.train_step.tell_of(asked, self.recorder)
                self._interruption = Interruption(attempt.group, asked)
                self.evaluations = Evaluations(
                    self.parts,
                    self.settings,
                    attempt,
                    recorder=self.recorder,
                    limit=limit,
                    interruption=self._interruption,
                )
                self._resume()
                self._agreement = Agreement(attempt.group, asked, first_step=self.step)
                self._train()
                return self._finish()
        finally:
            if self._signals is None:
                signals.restore()

    def _resume(self) -> None:
        self.attempt.heartbeat.beat(self.step, "resume")
        found = self.saves.resume()
        if found is not None:
            sampler, loader = self.parts.sampler, self.parts.loader
            done = found[1]["progress"]["step"]
            first = sampler.global_rows(0)
            with self.recorder.replaying():
                self.parts.train_step.replay(loader.read_apart(0), global_rows=first, steps_done=done)
            progress = restore(self.parts, self.saves, self.attempt, *found)
            self.step = progress["step"]
            self.evaluations.load_state_dict(progress)
            self._resumed_at = self.step if not self.evaluations.is_due(self.step) else -1
        self.recorder.nodes = self.attempt.record_start(
            first_step=self.step,
            total_steps=self.parts.total_steps,
            steps_per_epoch=self.parts.sampler.steps_per_epoch,
            is_trained=self.finished,
        )
        tell_changed_code(self.attempt, self.given.made_by, first_step=self.step)

    def _train(self) -> None:
        # only where all ranks exchange before the step may one of them go without its data
        interrupted = lambda: self._agreement.is_slow and self._interruption()  # noqa: E731
        reads_itself = self.settings.data.num_workers == 0
        ask = self.recorder.reading(interrupted) if reads_itself else interrupted
        batches = self.parts.start_loaders(self.step, ask, self.attempt.group.device)
        self.parts.train_step.while_reducing(self.recorder.reading_ahead(batches.fetch))
        self.saves.start(self.step)
        self.stop = self._agreement.now(self.step).stop  # asked for while starting
        if not self.stop and self.evaluations.is_due(self.step):  # it was interrupted in the attempt before
            self._evaluate_and_save(asked=False)
        profile, timeout_s = self.settings.train.profile, self.settings.launch.timeout_s
        with (
            Profiler(profile, self.attempt, self.recorder) as profiler,
            compiling_beats(self.attempt.heartbeat),
            watched(self.attempt, timeout_s),
        ):
            profiler.step(self.step)
            while not self.finished and not self.stop:
                with self.recorder.waiting_for_data(self.step), suppress(ReadInterrupted):
                    micro_batches = next(batches)  # without them the ranks agree to stop
                if self._hear(self._agreement.before_step(self.step, save=self.saves.minutes_due())):
                    self._save(last=False)
                if self.stop:
                    break
                result = self._train_one(micro_batches)
                profiler.step(self.step)
                agreed = self._agreement.after_step(
                    self.step,
                    save=self.saves.minutes_due(),
                    rows=sum(batch.rows for batch in micro_batches),
                    bad_rows=sum(len(batch.bad) for batch in micro_batches),
                    at_once=result.asked,
                    longest_work_s=max(result.work_s, default=self.recorder.work()[0]),
                )
                asked = self._hear(agreed)
                if not self.stop:
                    self._evaluate_and_save(asked=asked)
                self.saves.poll()
        self.recorder.agreed(self._agreement.now(self.step))  # the rows skipped since the last exchange

    def _hear(self, agreed: Agreed | None) -> bool:
        """Act on what the ranks agreed, if they did; whether to save."""
        if agreed is None:
            return False
        self.recorder.agreed(agreed)
        self.limit.trained(agreed)
        self.stop = agreed.stop
        return agreed.save and not self.stop

    def _train_one(self, batches: Sequence[Batch]) -> StepResult:
        sampler = self.parts.sampler
        rows = sampler.global_rows(self.step)
        result = self.parts.train_step.run(self.step, batches, global_rows=rows)
        self.step += 1
        sampler.set_step(self.step)
        epoch = self.step / sampler.steps_per_epoch
        self.recorder.step(self.step, result, self.parts.train_step, rows=rows, epoch=epoch)
        for schedule in self.parts.schedules.values():
            schedule.step()
        self.tracker.after_step()
        for hook in self._hooks():
            hook.on_step(self, self.step, result)
        self.recorder.step_is_over()
        return result

    def _hooks(self) -> Sequence[Hook]:
        if self.hooks:
            self.attempt.heartbeat.beat(self.step, "hooks")  # they may take any time
        return self.hooks

    def _evaluate_and_save(self, *, asked: bool) -> None:
        values = self._evaluate_if_due()
        if self.saves.is_due(self.step, agreed=asked, metrics=values):
            self._save(last=False)

    def _evaluate_if_due(self) -> dict[str, float]:
        """The values of an evaluation made now; none where none is due, or where a rank was interrupted."""
        values = self._evaluate_in_time("val") if self.evaluations.is_due(self.step) else None
        if values is None:
            return {}
        self.evaluations.at, self.evaluations.values = self.step, values
        self.recorder.evaluation(self.step, values)
        for schedule in self.parts.schedules.values():
            schedule.step_on(values)
        if self.parts.early_stopping:
            self.parts.early_stopping.update(values)
        for hook in self._hooks():
            hook.on_evaluation(self, self.step, values)
        return values

    def _evaluate_in_time(self, split: str) -> dict[str, float] | None:
        """None, and all ranks stop, where a rank was interrupted or the time limit leaves too little time."""
        values = self.evaluations.in_time(split, self.step)
        if values is None:
            self.stop = self._agreement.now(self.step).stop or Stop.TIME_LIMIT
        self._agreement.measure_from(self.step)
        return values

    @property
    def finished(self) -> bool:
        """Whether the last step is done, or early stopping ended the run."""
        stopping = self.parts.early_stopping
        return self.step >= self.parts.total_steps or (stopping is not None and stopping.is_due)

    def _capture(self) -> State:
        progress = {"step": self.step, **self.evaluations.state_dict()}
        return capture(self.parts, self.saves, progress, world_size=self.attempt.group.world_size)

    def _save(self, *, last: bool) -> None:
        metrics = self.evaluations.values if self.evaluations.at == self.step else {}
        self.saves.save(self.step, self._capture, metrics, last=last)

    def _finish(self) -> Result:
        with self.recorder.apart(self.step, "save"):
            if self.step != self._resumed_at:
                self._save(last=True)
            self.saves.close()
        self.parts.loader.close()
        result = self._result()
        self.parts.close()
        self.limit.keep()
        self.attempt.heartbeat.beat(self.step, "end")
        for hook in self._hooks():
            hook.on_end(self, result)
        again = result.state == "stopped" and self.stop.run_again
        status = Status(result.state, result.reason, self.step, results=result.metrics, run_again=again)
        self.attempt.record_end(status)
        self.tracker.close()
        return result

    def _result(self) -> Result:
        if not self.finished or self.evaluations.is_due(self.step):
            return self._stopped()
        test = self._evaluate_in_time("test") if "test" in self.parts.eval_loaders else {}
        if test is None:
            return self._stopped()
        self.recorder.evaluation(self.step, test)
        results = {**self.evaluations.values, **test}
        return Result("finished", self.step, results, run=self.attempt.run)

    def _stopped(self) -> Result:
        return Result("stopped", self.step, self.evaluations.values, self.stop.reason, self.attempt.run)
