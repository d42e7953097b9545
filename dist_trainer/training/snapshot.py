"""What a checkpoint holds of a run, and how a run takes it back."""

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from dist_trainer.checkpoint.writer import State
from dist_trainer.errors import ConfigError
from dist_trainer.training.attempt import Attempt
from dist_trainer.training.build import Parts
from dist_trainer.training.group_options import differences, load_state
from dist_trainer.training.saves import Saves


def capture(parts: Parts, saves: Saves, progress: Mapping[str, Any], *, world_size: int) -> State:
    """The state after a step. Collective where the task carries state: each rank's goes to rank 0.

    No rank has a random state: every step draws from (seed, step, rank). `progress` is the loop's own.
    """
    step, own = parts.train_step, parts.task.state_dict()
    return State(
        model=parts.model.state_dict(),
        training={
            "progress": dict(progress),
            "sampler": parts.sampler.state_dict(),
            "world_size": world_size,
            "optimizers": {name: each.state_dict() for name, each in step.optimizers.items()},
            "configured": parts.configured,
            "schedules": {name: each.state_dict() for name, each in parts.schedules.items()},
            "skipped_in_a_row": step.skipped_in_a_row,
            "scaler": step.scaler.state_dict() if step.scaler else None,
            "average": step.average.state_dict() if step.average else None,
            "early_stopping": parts.early_stopping.state_dict() if parts.early_stopping else None,
            "saves": saves.state_dict(),
            "task": saves.gather_state(own) if own else None,
        },
    )


def restore(
    parts: Parts, saves: Saves, attempt: Attempt, model: dict[str, Tensor], training: Mapping[str, Any]
) -> dict[str, Any]:
    """Take a checkpoint's state back; gives the loop's progress. Raises ConfigError where it does not fit."""
    try:
        parts.model.load_state_dict(model)
        for name, optimizer in parts.train_step.optimizers.items():
            load_state(
                optimizer,
                training["optimizers"][name],
                before=training["configured"][name],
                now=parts.configured[name],
                scheduled=parts.schedules[name].scheduled,
            )
        for name, schedule in parts.schedules.items():
            schedule.load_state_dict(training["schedules"][name])
    except (RuntimeError, ValueError, KeyError) as error:
        raise ConfigError(
            f"run {attempt.run.path.name} was begun with another model or optimizer, which its checkpoint does not "
            f"fit; start anew with --fresh, another name or the folder moved away: {error}"
        ) from error
    for name in parts.configured:
        for change in differences(training["configured"][name], parts.configured[name]):
            attempt.journal.event("changed", optimizer=name, change=change, step=training["progress"]["step"])
            attempt.say(f"the optimizer was configured otherwise before: {change} from here on")
    parts.sampler.load_state_dict(training["sampler"])
    _restore_optional(parts, training)
    saves.load_state_dict(training["saves"])
    _restore_task(parts, attempt, training)
    progress: dict[str, Any] = training["progress"]
    if parts.sampler.step != progress["step"]:
        raise ConfigError(
            f"data.global_batch_size or the data's length changed in mid-run: the checkpoint of step "
            f"{progress['step']} would go on at step {parts.sampler.step}; start afresh with --fresh"
        )
    return progress


def _restore_optional(parts: Parts, training: Mapping[str, Any]) -> None:
    step = parts.train_step
    step.skipped_in_a_row = training["skipped_in_a_row"]
    if step.scaler and training["scaler"]:
        step.scaler.load_state_dict(training["scaler"])
    if step.average:
        step.average.load_state_dict(training["average"] or {})
    if parts.early_stopping and training["early_stopping"]:
        parts.early_stopping.load_state_dict(training["early_stopping"])


def _restore_task(parts: Parts, attempt: Attempt, training: Mapping[str, Any]) -> None:
    before, now = training["world_size"], attempt.group.world_size
    states = training["task"]
    if states is not None:
        if before != now:
            raise ConfigError(
                f"{type(parts.task).__name__} carries state from batch to batch, one for each of {before} ranks; "
                f"it cannot go on with {now}: start {before} workers"
            )
        parts.task.load_state_dict(states[attempt.group.rank])
    if before != now and attempt.is_rank_zero:
        message = f"world size {before} -> {now}: the order of samples is the same, the last bits may differ"
        attempt.journal.event("resized", before=before, now=now, message=message)
        print(message, flush=True)
