"""Every knob of the toolkit, once: name, type, default, range and meaning."""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from dist_trainer.config.conflicts import Conflict, config_conflicts, refuse, settings_conflicts
from dist_trainer.config.sbatch_options import slurm_conflicts

NAME_PATTERN = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$"
IMPORT_PATTERN = r"^[^\W\d]\w*(\.[^\W\d]\w*)+$"

ImportPath = Annotated[str, Field(pattern=IMPORT_PATTERN)]
MetricName = Annotated[str, Field(pattern=NAME_PATTERN)]
Pattern = Annotated[str, Field(min_length=1)]
Order = Literal["shuffled", "sequential", "balanced", "weighted"]


class Section(BaseModel):
    """A group of knobs: immutable; an unknown key is an error, and so is a value of another type."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False, strict=True)


class Target(Section):
    """`target` is the import path of a class or function; every other key is one of its arguments."""

    model_config = ConfigDict(extra="allow")

    target: ImportPath  # class or function, from an installed package or the current folder

    @property
    def arguments(self) -> dict[str, Any]:
        """The keys that are not knobs of this section: what the target is called with."""
        return dict(self.model_extra or {})


class ModelConfig(Target):
    """The model. `weights` naming a .safetensors, .pt, .pth, .ckpt or .bin file loads it after building;
    any other value is passed to the target (torchvision's `DEFAULT`)."""

    weights: str | None = None  # a .safetensors, .pt, .pth, .ckpt or .bin file, or the target's own argument


class SplitConfig(Section):
    """Fractions of `data.train` set aside, drawn by `seed`."""

    val: float = Field(default=0.0, ge=0, lt=1)  # share for validation
    test: float = Field(default=0.0, ge=0, lt=1)  # share for the final test

    @model_validator(mode="after")
    def _leaves_something(self) -> "SplitConfig":
        if self.val + self.test >= 1:
            total = f"{self.val + self.test:g}"
            refuse([Conflict("val", f"and test together must be less than 1, got {total}", ("test",))])
        return self


class DataSettings(Section):
    """How samples become batches."""

    global_batch_size: int = Field(default=32, ge=1)  # samples per step over all ranks
    eval_batch_size: int | None = Field(
        default=None, ge=1
    )  # samples per rank in evaluation; default: as in training
    num_workers: int = Field(default=0, ge=0)  # loader processes per rank
    order: Order = "shuffled"  # balanced, weighted: drawn with replacement by targets, by sample_weights
    drop_last: bool = False  # leave out an epoch's short last batch
    bad_rows: Literal["raise", "skip"] = (
        "raise"  # what a row that cannot be read does; skipped ones are counted
    )


class DataConfig(DataSettings):
    """The data sets, and how their samples become batches."""

    train: Target
    val: Target | None = None
    test: Target | None = None
    split: SplitConfig | None = None
    collate: Target | None = None

    @model_validator(mode="after")
    def _each_split_has_one_source(self) -> "DataConfig":
        refuse(
            [
                Conflict(name, f"and data.split.{name} are both given; keep one of them", (f"split.{name}",))
                for name in ("val", "test")
                if self.split and getattr(self.split, name) and getattr(self, name)
            ]
        )
        return self


class GroupConfig(Section):
    """Parameters whose names match the pattern; other keys (weight_decay, ...) override the optimizer's."""

    model_config = ConfigDict(extra="allow")

    match: Pattern  # shell pattern on parameter names: classifier.*
    lr_scale: float = Field(default=1.0, ge=0)  # times optimizer.lr

    @property
    def overrides(self) -> dict[str, Any]:
        """The optimizer's own options for this group."""
        return dict(self.model_extra or {})


class OptimizerConfig(Target):
    """The optimizer and its parameter groups."""

    groups: list[GroupConfig] = []


class SchedulerConfig(Section):
    """Linear warm-up, then any torch scheduler, stepped once per optimizer update."""

    model_config = ConfigDict(extra="allow")

    target: ImportPath | None = None  # a scheduler class; the toolkit fills in the total number of steps
    warmup_steps: int = Field(default=0, ge=0)  # steps over which the rate rises to optimizer.lr
    metric: str | None = None  # for ReduceLROnPlateau: stepped at each evaluation on this metric

    @property
    def arguments(self) -> dict[str, Any]:
        """What the target is called with, after the optimizer."""
        return dict(self.model_extra or {})


class EarlyStoppingConfig(Section):
    """Stop when `metric` has not improved for `patience` evaluations."""

    metric: str = "val/loss"  # val/loss or val/ and a name of metrics
    mode: Literal["min", "max"] = "min"  # whether smaller or larger is better
    patience: int = Field(default=5, ge=1)  # evaluations


class ProfileConfig(Section):
    """Write a profiler trace of the steps from the first to the last, then time the parts of as many steps."""

    steps: tuple[int, int] = Field(strict=False)  # the first and the last one, as a list


def _one_unless_steps(data: dict[str, Any]) -> int | None:
    return None if data.get("steps") else 1


class TrainConfig(Section):
    """How long and how to train."""

    steps: int | None = Field(default=None, ge=1)  # instead of epochs
    epochs: int | None = Field(
        default_factory=_one_unless_steps, ge=1
    )  # default, where steps is not given: 1
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"  # fp16 scales the loss
    accumulate_steps: int = Field(
        default=1, ge=1
    )  # micro-batches per step; the global batch stays what it is
    clip_grad_norm: float | None = Field(default=None, gt=0)  # largest norm of all gradients together
    compile: bool = False  # torch.compile
    channels_last: bool = False  # torch's memory format for images: faster convolutions on most devices
    ema_decay: float | None = Field(
        default=None, gt=0, lt=1
    )  # evaluations and predictions use the average; a checkpoint holds both
    freeze: list[Pattern] = []  # shell patterns on parameter names
    eval_every_epochs: int | None = Field(default=1, ge=1)  # null: not by epochs
    eval_every_steps: int | None = Field(default=None, ge=1)  # null: not by steps
    early_stopping: EarlyStoppingConfig | None = None
    deterministic: bool = False  # deterministic algorithms alone; slower
    skip_nonfinite: int = Field(
        default=0, ge=0
    )  # updates in a row that may be skipped for a non-finite gradient
    profile: ProfileConfig | None = None

    @model_validator(mode="before")
    @classmethod
    def _null_epochs_are_the_default(cls, data: Any) -> Any:
        if isinstance(data, dict) and data.get("epochs") is None:
            return {key: value for key, value in data.items() if key != "epochs"}
        return data

    @model_validator(mode="after")
    def _one_length(self) -> "TrainConfig":
        if self.epochs is not None and self.steps is not None:
            refuse(
                [
                    Conflict(
                        "epochs",
                        "and train.steps are both given; keep one and set the other to null",
                        ("steps",),
                    )
                ]
            )
        return self


class DdpConfig(Section):
    """DistributedDataParallel's own knobs."""

    bucket_cap_mb: float = Field(
        default=25.0, gt=0
    )  # gradients are summed over ranks in buckets of this size
    gradient_as_bucket_view: bool = True  # gradients lie in the buckets: less memory
    static_graph: bool = False  # the same parameters are used in the same order at every step
    find_unused_parameters: bool = False  # some parameters get no gradient at some steps
    sync_batchnorm: bool = False  # batch norm over the global batch; GPUs only
    compress: Literal["none", "fp16", "bf16", "powersgd"] = "none"  # gradients on the wire


class BestConfig(Section):
    """Which checkpoint is the best one."""

    metric: str = "val/loss"  # val/loss or val/ and a name of metrics
    mode: Literal["min", "max"] = "min"  # whether smaller or larger is better


class CheckpointConfig(Section):
    """When checkpoints are written, where, and which are kept."""

    folder: str | None = None  # any fsspec URL; default: checkpoints/ in the run folder
    every_steps: int = Field(default=500, ge=1)  # between two checkpoints
    every_minutes: float | None = Field(default=10.0, gt=0)  # null: by steps alone
    keep_last: int = Field(default=2, ge=1)  # the newest proven one is never deleted
    keep_best: BestConfig | None = None
    keep_every_steps: int | None = Field(default=None, ge=1)  # those at multiples of it are kept for good
    max_staleness_minutes: float = Field(default=60.0, gt=0)  # training blocks rather than run longer unsaved


class TrackingConfig(Section):
    """Where metrics go beside the journal."""

    uri: str | None = "sqlite:///mlflow.db"  # null: the journal alone
    experiment: str = Field(default="default", min_length=1)  # MLflow's
    log_every_steps: int = Field(default=10, ge=1)  # between two points of a curve


class LaunchConfig(Section):
    """How workers start on a node."""

    device: Literal["auto", "cpu", "cuda"] = "auto"  # auto: GPUs where some are visible
    workers_per_node: Annotated[int, Field(ge=1)] | Literal["auto"] = (
        "auto"  # auto: one per visible GPU; on CPU, two
    )
    max_restarts: int = Field(default=3, ge=0)  # of a failed worker group, from the last checkpoint
    timeout_s: float = Field(
        default=120.0, gt=0
    )  # without progress, before a hang is ended; less once the run's own pace is known, more where it is slow
    env: dict[str, str] = {}  # environment variables of the workers


class SlurmConfig(Section):
    """What SLURM is asked for."""

    nodes: int = Field(default=1, ge=1)  # machines
    partition: str | None = None  # null: the cluster's default
    time: str | int | None = None  # minutes, 24:00:00 or 2-12:00:00
    options: dict[str, str | int | float | bool | None] = {}  # any other sbatch option; true is a flag
    srun_options: dict[str, str | int | float | bool | None] = {}  # any other srun option
    setup: list[str] = []  # shell lines, from a profile alone: modules, conda


class Settings(Section):
    """Everything that is not an object of the user's: what `Trainer(settings=...)` takes in Python."""

    name: str = Field(default="run", pattern=NAME_PATTERN)  # the run folder is runs/<name>
    seed: int = Field(default=0, ge=0, lt=2**63)  # first weights, order of samples, dropout and augmentation
    data: DataSettings = DataSettings()
    train: TrainConfig = TrainConfig()
    ddp: DdpConfig = DdpConfig()
    checkpoint: CheckpointConfig = CheckpointConfig()
    tracking: TrackingConfig = TrackingConfig()
    launch: LaunchConfig = LaunchConfig()

    @model_validator(mode="after")
    def _fits_together(self) -> "Settings":
        refuse(self._conflicts())
        return self

    def _conflicts(self) -> list[Conflict]:
        return list(settings_conflicts(self))


class Config(Settings):
    """One run, whole: the settings, and by import path the objects they work on."""

    name: str = Field(pattern=NAME_PATTERN)
    model: ModelConfig
    data: DataConfig
    task: Target = Target(target="dist_trainer.training.task.Supervised")  # what a batch means
    loss: Target | None = None  # needed by the default task
    metrics: dict[MetricName, Target] = {}  # reported as val/<name> and test/<name>
    optimizer: OptimizerConfig
    scheduler: SchedulerConfig | None = None
    hooks: list[Target] = []  # subclasses of dist_trainer.training.hooks.Hook
    slurm: SlurmConfig = SlurmConfig()

    def _conflicts(self) -> list[Conflict]:
        return [*super()._conflicts(), *config_conflicts(self), *slurm_conflicts(self.slurm)]
