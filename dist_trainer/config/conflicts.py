"""Settings that are right alone and impossible together: each by the dotted key that has to change."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError
from pydantic_core import InitErrorDetails, PydanticCustomError

from dist_trainer.config.near import did_you_mean, listed
from dist_trainer.config.redact import is_secret
from dist_trainer.config.references import REFERENCE, texts

if TYPE_CHECKING:
    from dist_trainer.config.schema import Config, GroupConfig, SchedulerConfig, Settings

SUPERVISED = "dist_trainer.training.task.Supervised"
LAUNCHER_VARIABLES = frozenset(
    (
        *("RANK", "LOCAL_RANK", "GROUP_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE"),
        *("MASTER_ADDR", "MASTER_PORT", "DIST_TRAINER_FENCE"),
    )
)


@dataclass(frozen=True)
class Conflict:
    """`key` cannot be as it is; `message` continues the sentence that starts with the key's name.

    `others` are the further keys it rests on: where one of them is wrong itself, that is shown alone.
    """

    key: str
    message: str
    others: tuple[str, ...] = ()


def refuse(conflicts: Sequence[Conflict]) -> None:
    """Raise pydantic's error with one entry for each conflict, each at its own key."""
    if not conflicts:
        return
    entries = [
        InitErrorDetails(
            type=PydanticCustomError("conflict", "{key} {message}", {**vars(conflict)}),
            loc=tuple(conflict.key.split(".")),
            input=None,
        )
        for conflict in conflicts
    ]
    raise ValidationError.from_exception_data("Settings", entries)


def settings_conflicts(settings: "Settings") -> Iterator[Conflict]:
    """What can be said without knowing the user's objects."""
    ddp, train, launch, data = settings.ddp, settings.train, settings.launch, settings.data
    if ddp.static_graph and train.accumulate_steps > 1:
        yield Conflict(
            "ddp.static_graph",
            f"cannot be combined with train.accumulate_steps > 1, got {train.accumulate_steps}"
            "; set one of them to its default",
            ("train.accumulate_steps",),
        )
    if ddp.sync_batchnorm and launch.device == "cpu":
        yield Conflict(
            "ddp.sync_batchnorm",
            "needs GPUs, and launch.device is cpu; PyTorch has no synchronised batch norm on a CPU",
            ("launch.device",),
        )
    workers = launch.workers_per_node
    if isinstance(workers, int) and data.global_batch_size < workers:
        yield Conflict(
            "data.global_batch_size",
            f"must be at least the world size, {workers}, got {data.global_batch_size}"
            "; every rank needs a sample in each step",
            ("launch.workers_per_node",),
        )
    if (settings.checkpoint.folder or "").startswith("memory:"):
        yield Conflict(
            "checkpoint.folder",
            "must outlive the process, and memory:// does not; use a folder or the URL of a store",
        )
    for name in sorted(LAUNCHER_VARIABLES.intersection(launch.env)):
        yield Conflict(f"launch.env.{name}", "is set by the launcher itself; leave it out")
    yield from _profile_conflicts(settings)
    yield from _secrets(settings)


def _secrets(settings: "Settings") -> Iterator[Conflict]:
    """What would be written where others may read it; and a reference where nobody would put its value in."""
    for key, text in texts(settings.model_dump()):
        if is_secret(key, text):
            yield Conflict(
                key,
                "is or holds a secret, and would be written to config.yaml; write ${env:NAME} in its place, and "
                "export NAME before the command",
            )
        elif REFERENCE.search(text) and not _takes_references(key):
            yield Conflict(
                key,
                "cannot hold ${env:...}; arguments of a target, model.weights, tracking.uri, checkpoint.folder and "
                "launch.env can",
            )


def _takes_references(key: str) -> bool:
    if key in ("tracking.uri", "checkpoint.folder"):
        return True
    first, _, rest = key.partition(".")
    if first == "launch":
        return rest.startswith("env.")
    return first not in ("name", "slurm", "tracking", "checkpoint", "train", "ddp") and not key.endswith(
        ".target"
    )


def _profile_conflicts(settings: "Settings") -> Iterator[Conflict]:
    train = settings.train
    if train.profile is None:
        return
    first, last = train.profile.steps
    if first < 0 or last < first:
        yield Conflict(
            "train.profile.steps", f"must be [first, last] with 0 <= first <= last, got [{first}, {last}]"
        )
    elif train.steps is not None and last > train.steps:
        yield Conflict(
            "train.profile.steps",
            f"must end by train.steps, {train.steps}, got [{first}, {last}]",
            ("train.steps",),
        )


def config_conflicts(config: "Config") -> Iterator[Conflict]:
    """What needs the whole configuration."""
    if config.loss is None and config.task.target == SUPERVISED:
        yield Conflict(
            "loss",
            "is missing; the default task needs one, such as {target: torch.nn.CrossEntropyLoss}",
            ("task",),
        )
    if "loss" in config.metrics:
        yield Conflict("metrics.loss", "is the name of the loss itself; choose another one")
    if "params" in config.optimizer.arguments:
        yield Conflict(
            "optimizer.params", "is supplied by the toolkit; choose parameters with optimizer.groups"
        )
    yield from _optimizer_conflicts(config)
    if config.scheduler is not None:
        yield from _scheduler_conflicts(config, config.scheduler)
    yield from _watched_metrics(config)


def _optimizer_conflicts(config: "Config") -> Iterator[Conflict]:
    optimizer = config.optimizer
    yield from _rate_conflicts("optimizer", optimizer.arguments)
    for number, group in enumerate(optimizer.groups):
        key = f"optimizer.groups.{number}"
        yield from _rate_conflicts(key, group.overrides)
        yield from _group_conflicts(key, group)
    if optimizer.target.rpartition(".")[2] != "LBFGS":
        return
    if optimizer.groups:
        yield Conflict(
            "optimizer.groups", "must be empty: LBFGS takes no parameter groups", ("optimizer.target",)
        )
    if config.train.precision == "fp16":
        yield Conflict(
            "train.precision",
            "must be fp32 or bf16 with LBFGS, got fp16; its closure does not work with loss scaling",
            ("optimizer.target",),
        )


def _rate_conflicts(key: str, arguments: dict[str, Any]) -> Iterator[Conflict]:
    """A rate that trains nothing or climbs the loss; torch itself accepts 0."""
    rate = arguments.get("lr", 1.0)
    if isinstance(rate, dict) and "target" in rate:
        return
    if isinstance(rate, bool) or not isinstance(rate, (int, float)):
        yield Conflict(f"{key}.lr", f"must be a number > 0, got {'null' if rate is None else repr(rate)}")
    elif not 0 < rate < float("inf"):
        yield Conflict(f"{key}.lr", f"must be > 0, got {rate:g}")


def _group_conflicts(key: str, group: "GroupConfig") -> Iterator[Conflict]:
    if "lr" in group.overrides and group.lr_scale != 1:
        yield Conflict(f"{key}.lr_scale", f"and {key}.lr are both given; keep one of them", (f"{key}.lr",))
    for name in ("params", "target"):
        if name in group.overrides:
            yield Conflict(f"{key}.{name}", "cannot be given here; a group chooses its parameters with match")


def _scheduler_conflicts(config: "Config", scheduler: "SchedulerConfig") -> Iterator[Conflict]:
    if scheduler.target is None:
        for name in scheduler.arguments:
            yield Conflict(f"scheduler.{name}", "is an argument, and there is no scheduler.target to take it")
        if not scheduler.arguments and not scheduler.warmup_steps:
            yield Conflict(
                "scheduler",
                "does nothing: give scheduler.target, scheduler.warmup_steps > 0 or both, or leave it out",
            )
    if "optimizer" in scheduler.arguments:
        yield Conflict("scheduler.optimizer", "is supplied by the toolkit; leave it out")
    plateau = (scheduler.target or "").rpartition(".")[2] == "ReduceLROnPlateau"
    if plateau and scheduler.metric is None:
        yield Conflict(
            "scheduler.metric",
            f"is missing; ReduceLROnPlateau is stepped on a metric: {listed(_metrics_of(config))}",
            ("scheduler.target", "metrics"),
        )
    torchs = (scheduler.target or "").startswith("torch.optim.lr_scheduler.")
    if scheduler.metric is not None and (scheduler.target is None or (torchs and not plateau)):
        yield Conflict(
            "scheduler.metric",
            f"is for schedulers stepped on a metric, such as ReduceLROnPlateau, not for {scheduler.target}",
            ("scheduler.target",),
        )
    if (
        scheduler.warmup_steps
        and config.train.steps is not None
        and scheduler.warmup_steps > config.train.steps
    ):
        yield Conflict(
            "scheduler.warmup_steps",
            f"must be at most train.steps, {config.train.steps}, got {scheduler.warmup_steps}",
            ("train.steps",),
        )


def _watched_metrics(config: "Config") -> Iterator[Conflict]:
    """A metric that something waits for must be measured: by name, on validation data, now and then."""
    watched: dict[str, str | None] = {
        "scheduler.metric": config.scheduler.metric if config.scheduler else None
    }
    if config.train.early_stopping is not None:
        watched["train.early_stopping.metric"] = config.train.early_stopping.metric
    if config.checkpoint.keep_best is not None:
        watched["checkpoint.keep_best.metric"] = config.checkpoint.keep_best.metric
    has_validation = config.data.val is not None or (
        config.data.split is not None and config.data.split.val > 0
    )
    never = config.train.eval_every_epochs is None and config.train.eval_every_steps is None
    for key, metric in watched.items():
        if metric is None:
            continue
        known = _metrics_of(config)
        if metric not in known:
            near = did_you_mean(metric, known)
            yield Conflict(key, f"must be {listed(known)}, got {metric!r}{near}", ("metrics",))
        elif not has_validation:
            yield Conflict(
                key,
                f"is {metric}, and there is no validation data; give data.val or data.split.val",
                ("data.val", "data.split", "data"),
            )
        elif never:
            yield Conflict(
                key,
                f"is {metric}, and is never measured; set train.eval_every_epochs or train.eval_every_steps",
                ("train.eval_every_epochs", "train.eval_every_steps"),
            )


def _metrics_of(config: "Config") -> list[str]:
    return ["val/loss", *(f"val/{name}" for name in config.metrics)]
