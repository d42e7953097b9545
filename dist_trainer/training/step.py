"""One step: micro-batches forward and backward, one reduction, one update."""

import math
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from dist_trainer.adapters.distributed import Group, when_backward_is_done, without_reduction, wrap
from dist_trainer.config.schema import DdpConfig, TrainConfig
from dist_trainer.errors import ConfigError, NonFiniteError
from dist_trainer.training.batch import Batch
from dist_trainer.training.ema import MovingAverage
from dist_trainer.training.measured import Measured, Watcher, as_numbers
from dist_trainer.training.optimizer import needs_closure, set_train_mode
from dist_trainer.training.random_state import seed_step
from dist_trainer.training.task import Task

SCALER_SKIPS = 24  # fp16's loss scale halves at each; from 65536 it is then far below one
PRECISIONS = {"bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(frozen=True)
class StepResult:
    """What a step was, the same on every rank."""

    loss: float  # over the rows of all ranks, before the update; of the last phase
    grad_norm: float
    skipped: bool = False  # a non-finite gradient; nothing was updated
    asked: bool = False  # a rank had been asked to stop when it went forward
    work_s: Sequence[float] = ()  # by rank, of the step before; see Measured
    data_s: Sequence[float] = ()


class TrainStep:
    """Owns the wrapped model, its optimizers, and how gradients become an update. Every call is collective.

    With rows R in the global batch and W ranks, each rank goes backward on sum * W / R, DDP averages, and the
    result is divided by (total weight / R): exact for uneven and empty micro-batches, and in range for fp16.
    """

    def __init__(
        self,
        model: nn.Module,
        task: Task,
        optimizers: dict[str, Optimizer],
        group: Group,
        *,
        train: TrainConfig,
        ddp: DdpConfig,
        seed: int,
    ) -> None:
        self.model = model
        self.task = task
        self.optimizers = optimizers
        if len(optimizers) > 1:  # a phase leaves the other optimizers' parameters without a gradient
            ddp = ddp.model_copy(update={"find_unused_parameters": True})
        self._group = group
        self._config = train
        self._seed = seed
        # compressed gradients would round the totals, so then these travel alone
        self._measured = Measured(model, task, group, keep_own=ddp.compress != "none").to(group.device)
        self._ddp = wrap(self._measured, ddp, group)
        self._meanwhile: Callable[[], None] = lambda: None
        self._reduces = False  # whether the backward pass under way is followed by the others' gradients
        self._is_static = ddp.static_graph
        if not self._is_static:
            when_backward_is_done(self._measured.totals, self._backward_is_done)
        self._has_buffers = group.world_size > 1 and any(True for _ in model.buffers())
        self._steps_until_rebuilt = 2 if ddp.static_graph else 1
        self._parameters = list(self._measured.parameters())
        all_needed = not (ddp.find_unused_parameters or ddp.static_graph)
        self._needed = [(name, p) for name, p in model.named_parameters() if p.requires_grad and all_needed]
        self._closures = self._phases_with_closure()
        self.scaler = torch.amp.GradScaler(group.device.type) if train.precision == "fp16" else None
        self.average = MovingAverage(model, train.ema_decay) if train.ema_decay else None
        self.skipped_in_a_row = 0

    def while_reducing(self, do: Callable[[], None]) -> None:
        """Do this in each step when this rank's gradients are there and those of the others are not yet."""
        self._meanwhile = do

    def tell_of(self, asked: Callable[[], object], watcher: Watcher) -> None:
        """Each step brings every rank word of a rank that was asked to stop, by `asked()`, and of its work."""
        self._measured.asked, self._measured.watcher = asked, watcher

    def _backward_is_done(self) -> None:
        if self._reduces and self._measured.watcher is not None:
            if self._group.device.type == "cpu":
                self._meanwhile()
            self._measured.watcher.reduces()

    def _phases_with_closure(self) -> set[str]:
        found = {phase: each for phase, each in self.optimizers.items() if needs_closure(each)}
        for optimizer in found.values() if self._config.precision == "fp16" else ():
            raise ConfigError(
                f"train.precision fp16 scales the loss, which {type(optimizer).__name__} cannot undo "
                "between its evaluations; use fp32 or bf16"
            )
        return set(found)

    def run(self, step: int, batches: Sequence[Batch], *, global_rows: int) -> StepResult:
        """Train on this rank's micro-batches of a step, counted from 0; `global_rows` is its size over all ranks.

        Raises NonFiniteError, on every rank at once, where the gradient is not finite.
        """
        if not self.model.training:
            set_train_mode(self.model)
        results = [
            self._run_phase(step, index, phase, batches, global_rows)
            for index, phase in enumerate(self.task.phases(step))
        ]
        skipped = any(result.skipped for result in results)
        self.skipped_in_a_row = self.skipped_in_a_row + 1 if skipped else 0
        if len(results) == 1:
            return results[0]
        last = results[-1] if results else StepResult(math.nan, math.nan)
        return replace(last, skipped=skipped, asked=any(result.asked for result in results))

    def _run_phase(
        self, step: int, index: int, phase: str, batches: Sequence[Batch], global_rows: int
    ) -> StepResult:
        optimizer = self._optimizer_of(phase)

        def evaluate() -> StepResult:
            seed_step(self._seed, step, self._group.rank, index)
            self._zero_grad()
            self._accumulate(batches, phase, global_rows)
            return self._finish_gradients(optimizer, global_rows)

        result = evaluate()
        if not self._is_finite(step, result):
            if self.scaler is not None:
                self.scaler.update()
            return replace(result, skipped=True)
        if phase in self._closures:
            self._step_with_closure(optimizer, evaluate, result)
        elif self.scaler is not None:
            self.scaler.step(optimizer)
        else:
            optimizer.step()
        self._after_update()
        return result

    def _optimizer_of(self, phase: str) -> Optimizer:
        try:
            return self.optimizers[phase]
        except KeyError:
            raise ConfigError(
                f"{type(self.task).__name__}.phases names {phase!r}, and its optimizers are "
                f"{', '.join(map(repr, self.optimizers))}"
            ) from None

    def replay(self, batches: Sequence[Batch], *, global_rows: int, steps_done: int) -> None:
        """Forward and backward of the run's first step, without its update, so that DDP rebuilds its buckets.

        DDP orders its buckets by the run's first backward, or with a static graph by its second one; a resumed
        run that skipped it would add up the gradients of three or more ranks in another order.
        """
        set_train_mode(self.model)
        for _ in range(min(steps_done, self._steps_until_rebuilt)):
            for index, phase in enumerate(self.task.phases(0)):
                seed_step(self._seed, 0, self._group.rank, index)
                self._accumulate(batches, phase, global_rows)
                self._zero_grad()

    def _accumulate(self, batches: Sequence[Batch], phase: str, global_rows: int) -> None:
        scale = self._group.world_size / (global_rows if self.task.averaged else 1)
        self._measured.begin()
        for number, batch in enumerate(batches, start=1):
            data = batch.on(self._group.device).data
            with without_reduction(self._ddp, skip=number < len(batches)):
                with self.autocast():
                    total, numbers = self._forward(data, phase)
                total = total if total.dtype == torch.float64 else total.float()
                if self.scaler is not None:
                    loss = self.scaler.scale(total * scale) + numbers
                else:
                    loss = torch.add(numbers, total, alpha=scale)
                self._go_backward(loss, is_last=number == len(batches))
        self._refuse_unused()

    def _go_backward(self, loss: Tensor, *, is_last: bool) -> None:
        watcher = self._measured.watcher
        if watcher is not None:
            watcher.goes_back()
        self._reduces = is_last
        if self._is_static:  # DDP queues its first wait before any parameter's gradient is there
            when_backward_is_done(loss, self._backward_is_done)
        loss.backward()  # type: ignore[no-untyped-call]
        if is_last and loss.is_cuda:
            self._meanwhile()  # the device has enough to do; in its own thread no signal would be heard
        if watcher is not None and is_last:
            watcher.reduced()

    def _forward(self, data: Any, phase: str) -> tuple[Tensor, Tensor]:
        if self._has_buffers and self._measured.watcher is not None:
            self._measured.watcher.broadcasts()
        try:
            result: tuple[Tensor, Tensor] = self._ddp(data, phase)
            return result
        except RuntimeError as error:
            if "finished reduction in the prior iteration" not in str(error):
                raise
            raise ConfigError(
                "some parameters got no gradient in the last step, which ddp.find_unused_parameters=false does "
                "not allow; set ddp.find_unused_parameters=true, or train.freeze what is never used"
            ) from error

    def autocast(self) -> AbstractContextManager[Any]:
        """The configured precision's context for forward passes, in training and evaluation."""
        return autocast_for(self._config.precision, self._group.device)

    def _refuse_unused(self) -> None:
        unused = [name for name, parameter in self._needed if parameter.grad is None]
        if unused:
            raise ConfigError(
                f"{', '.join(unused[:4])}{', ...' if len(unused) > 4 else ''} got no gradient, which "
                "ddp.find_unused_parameters=false does not allow; set ddp.find_unused_parameters=true, "
                "or train.freeze what is never used"
            )

    def _finish_gradients(self, optimizer: Optimizer, global_rows: int) -> StepResult:
        """Scale what backward left to the gradient of the step's loss, and clip it."""
        if self.scaler is not None:
            self.scaler.unscale_(optimizer)
        gradients = [
            p.grad for group in optimizer.param_groups for p in group["params"] if p.grad is not None
        ]
        numbers, norm = as_numbers(self._totals(), gradients)
        if self._measured.watcher is not None:
            self._measured.watcher.updates()
        weight, loss, asked, work_s, data_s = self._measured.read(numbers)
        factor = 1.0
        if self.task.averaged and weight:
            factor, loss = global_rows / weight, loss / weight
        norm *= factor
        limit = self._config.clip_grad_norm
        if limit is not None and math.isfinite(norm):
            factor *= min(1.0, limit / (norm + 1e-6))
        if factor != 1.0:
            torch._foreach_mul_(gradients, factor)
        return StepResult(loss, norm, asked=asked, work_s=work_s, data_s=data_s)

    def _totals(self) -> Tensor:
        """The numbers of Measured over all ranks."""
        if self._measured.own is not None:
            return self._group.sum_on_device(torch.stack(self._measured.own).sum(0))
        assert self._measured.totals.grad is not None
        return self._measured.totals.grad

    def _is_finite(self, step: int, result: StepResult) -> bool:
        if math.isfinite(result.grad_norm) and (math.isfinite(result.loss) or self.scaler is not None):
            return True
        allowed = max(self._config.skip_nonfinite, SCALER_SKIPS if self.scaler is not None else 0)
        if self.skipped_in_a_row >= allowed:
            raise NonFiniteError(
                f"step {step + 1}: the gradient is not finite (loss {result.loss:g}, norm {result.grad_norm:g}), and "
                f"train.skip_nonfinite allows {allowed} in a row; lower optimizer.lr, set "
                "train.clip_grad_norm, or look at the data of this step"
            )
        return False

    def _step_with_closure(
        self, optimizer: Optimizer, evaluate: Callable[[], StepResult], first: StepResult
    ) -> None:
        known = [first]

        def closure() -> Tensor:
            result = known.pop() if known else evaluate()
            return torch.tensor(result.loss, device=self._group.device)

        optimizer.step(closure)  # type: ignore[arg-type]

    def _after_update(self) -> None:
        if self.scaler is not None:
            self.scaler.update()
        if self.average is not None:
            self.average.update()

    def _zero_grad(self) -> None:
        for parameter in self._parameters:
            parameter.grad = None
        if self._measured.own is not None:
            self._measured.own.clear()


def autocast_for(precision: str, device: torch.device) -> AbstractContextManager[Any]:
    """A precision's context for forward passes: none for fp32."""
    if precision == "fp32":
        return nullcontext()
    return torch.autocast(device.type, dtype=PRECISIONS[precision])
