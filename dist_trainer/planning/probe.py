"""Trains a few steps in this one process, really, and measures each part: python -m dist_trainer.planning.probe.

It is given the file to write and run folders, which differ in nothing but their rows in a step. The file says
{"problems": [...]} where the configuration's targets do not fit, else {"measured": ...}: see measurement.py.
"""

import json
import math
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

import torch

from dist_trainer.adapters.distributed import when_backward_is_done
from dist_trainer.adapters.interpreter import leave
from dist_trainer.adapters.parent_death import kill_me_with_my_parent
from dist_trainer.adapters.privacy import keep_private
from dist_trainer.checkpoint.choose import open_store
from dist_trainer.checkpoint.inspection import inspect
from dist_trainer.config.check import check_targets
from dist_trainer.config.load import read_config
from dist_trainer.config.redact import redact
from dist_trainer.errors import DistTrainerError
from dist_trainer.planning.measurement import PARTS, WARM_UP_STEPS, Measurement, Phases, SaveTime, Spent
from dist_trainer.planning.timeline import Gradient, in_order_of_backward
from dist_trainer.run_folder import RunFolder
from dist_trainer.training.hooks import Hook
from dist_trainer.training.stop import Signals
from dist_trainer.worker import make_trainer

if TYPE_CHECKING:
    from dist_trainer.training.step import StepResult
    from dist_trainer.training.trainer import Trainer

_LOOK_EVERY_S = 0.002


class StepParts(Hook):
    """Measures the parts of every step but the first. On a GPU each part is waited for, so none overlaps another."""

    def __init__(self) -> None:
        self.steps: list[Phases] = []
        self.stalls_s: list[float] = []
        self.ready_share: dict[int, float] = {}  # of the last step's backward, by the parameter's id
        self._ready_s: dict[int, float] = {}  # of the backward under way
        self._is_cuda = False
        self._clear(Spent())

    def _clear(self, now: Spent) -> None:
        self._since = self._began = self._backward_from = now
        self._forward = self._backward = self._saving = Spent()

    def on_step(self, trainer: "Trainer", step: int, result: "StepResult") -> None:
        """Note the step that has ended, and begin the next when nothing is written beside it."""
        now = self._now()
        if step == 1:
            self._begin(trainer)
        else:
            self._note(now, trainer.parts.sampler.global_rows(step - 1))
        while trainer.saves.is_busy:
            time.sleep(_LOOK_EVERY_S)
        self._clear(self._now())

    def _begin(self, trainer: "Trainer") -> None:
        self._is_cuda = trainer.attempt.group.device.type == "cuda"
        _wrap(trainer.parts.train_step, "run", self._run)
        _wrap(trainer.parts.task, "training_loss", self._go_forward)
        _wrap(trainer.saves, "save", self._save)
        for parameter in trainer.parts.model.parameters():
            if parameter.requires_grad:
                parameter.register_post_accumulate_grad_hook(self._is_ready)  # type: ignore[no-untyped-call]

    def _note(self, now: Spent, rows: int) -> None:
        between = self._began - self._since - self._saving
        update = now - self._began - self._forward - self._backward
        self.steps.append(Phases(rows, between, self._forward, self._backward, update))

    def _run(self, function: Callable[..., Any], *args: Any, **words: Any) -> Any:
        self._began = self._now()
        return function(*args, **words)

    def _go_forward(self, function: Callable[..., Any], *args: Any, **words: Any) -> Any:
        start = self._now()
        loss = function(*args, **words)
        self._backward_from = self._now()
        self._forward += self._backward_from - start
        self._ready_s.clear()
        if loss[0].requires_grad:
            when_backward_is_done(loss[0], self._backward_is_done)
        return loss

    def _backward_is_done(self) -> None:
        spent = self._now() - self._backward_from
        self._backward += spent
        self.ready_share |= {key: min(1.0, ready_s / spent.wall_s) for key, ready_s in self._ready_s.items()}

    def _is_ready(self, parameter: torch.Tensor) -> None:
        self._ready_s[id(parameter)] = time.perf_counter() - self._backward_from.wall_s

    def _save(self, function: Callable[..., Any], *args: Any, **words: Any) -> Any:
        start = self._now()
        result = function(*args, **words)
        self._saving += (spent := self._now() - start)
        if not words.get("last"):
            self.stalls_s.append(spent.wall_s)
        return result

    def _now(self) -> Spent:
        if self._is_cuda:
            torch.cuda.synchronize()
        return Spent(time.perf_counter(), time.process_time())


def _wrap(owner: object, name: str, around: Callable[..., Any]) -> None:
    function = getattr(owner, name)
    setattr(owner, name, lambda *args, **words: around(function, *args, **words))


def probe(runs: Sequence[RunFolder]) -> Measurement:
    """Train each to its end. All but the phases are those of the first."""
    trained = [_train(run) for run in runs]
    trainer, parts = trained[0]
    return Measurement(
        device=trainer.attempt.group.device.type,
        dataset_rows=trainer.parts.sampler.length,
        micro_batches=trainer.settings.train.accumulate_steps,
        buffer_bytes=sum(buffer.nbytes for buffer in trainer.parts.model.buffers()),
        gradients=_gradients(trainer, parts),
        phases=[_medians(parts.steps) for _, parts in trained],
        save=SaveTime(_saved_bytes(trainer), median(parts.stalls_s), trainer.saves.longest_s),
    )


def _train(run: RunFolder) -> tuple["Trainer", StepParts]:
    trainer, parts = make_trainer(run, Signals()), StepParts()
    trainer.hooks.append(parts)
    result = trainer.fit()
    if result.state != "finished":
        raise DistTrainerError(f"the trial was stopped: {result.reason}")
    return trainer, parts


def _medians(steps: Sequence[Phases]) -> Phases:
    """Of whole steps after the first few: an epoch's last one may be short, and what is new is slow."""
    rows = max(step.rows for step in steps)
    whole = [step for step in steps if step.rows == rows]
    warm = whole[min(WARM_UP_STEPS, len(whole) - 1) :]
    parts = ([getattr(step, part) for step in warm] for part in PARTS)
    return Phases(rows, *map(_median, parts))


def _median(spent: Sequence[Spent]) -> Spent:
    return Spent(median(each.wall_s for each in spent), median(each.cpu_s for each in spent))


def _gradients(trainer: "Trainer", parts: StepParts) -> list[Gradient]:
    """In the order of backward. Only a CPU's hooks are called when a gradient is there: a GPU's when it is queued."""
    parameters = [each for each in trainer.parts.model.parameters() if id(each) in parts.ready_share]
    parameters.sort(key=lambda each: parts.ready_share[id(each)])
    compress = trainer.settings.ddp.compress
    sizes = [bytes_on_the_wire(each.shape, each.element_size(), compress) for each in parameters]
    if trainer.attempt.group.device.type != "cpu":
        return in_order_of_backward(sizes)
    return [Gradient(size, parts.ready_share[id(each)]) for size, each in zip(sizes, parameters, strict=True)]


def bytes_on_the_wire(shape: Sequence[int], element_bytes: int, compress: str) -> int:
    """A gradient's, by ddp.compress. PowerSGD (rank 1) sends a row and a column for a matrix that this halves."""
    elements = math.prod(shape)
    if compress in ("fp16", "bf16"):
        return 2 * elements
    if compress == "powersgd" and len(shape) > 1:
        rows = shape[0]
        if 2 * (rows + elements // rows) < elements:
            return (rows + elements // rows) * element_bytes
    return elements * element_bytes


def _saved_bytes(trainer: "Trainer") -> int:
    store = open_store(trainer.attempt.run, trainer.settings.checkpoint)
    newest = store.list()[0]
    return inspect(newest, store.read(newest)).size_bytes


def main(result: Path, runs: Sequence[RunFolder]) -> None:
    """The child's side; an error of the user's is one message on standard error."""
    problems = check_targets(read_config(runs[0].config_path))
    found = {"problems": problems} if problems else {"measured": asdict(probe(runs))}
    result.write_text(json.dumps(found))


if __name__ == "__main__":
    kill_me_with_my_parent()
    keep_private()
    if sys.flags.safe_path:  # as in a job of ours: the user's modules are in the current folder all the same
        sys.path.insert(0, str(Path.cwd()))
    try:
        main(Path(sys.argv[1]), [RunFolder.open(path) for path in sys.argv[2:]])
    except DistTrainerError as error:
        sys.stderr.write(redact(f"{error}\n"))
        leave(error.exit_code)
    leave(0)
