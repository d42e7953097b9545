"""Every knob of the toolkit, once: name, type, default, range and meaning."""

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

NAME_PATTERN = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$"


class Section(BaseModel):
    """A group of knobs: immutable, and an unknown key is an error."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class Target(Section):
    """`target` is the import path of a class or function; every other key is one of its arguments."""

    model_config = ConfigDict(extra="allow")

    target: str = Field(min_length=1)

    @property
    def arguments(self) -> dict[str, Any]:
        """The keys that are not knobs of this section: what the target is called with."""
        return dict(self.model_extra or {})


class ModelConfig(Target):
    """The model. `weights` naming a .safetensors, .pt or .pth file loads it after building;
    any other value is passed to the target (torchvision's `DEFAULT`)."""

    weights: str | None = None


class SplitConfig(Section):
    """Fractions of `data.train` set aside, drawn by `seed`."""

    val: float = Field(0.0, ge=0, lt=1)
    test: float = Field(0.0, ge=0, lt=1)

    @model_validator(mode="after")
    def _leaves_something(self) -> "SplitConfig":
        if self.val + self.test >= 1:
            raise ValueError(f"val + test must be less than 1, got {self.val + self.test:g}")
        return self


class DataSettings(Section):
    """How samples become batches."""

    global_batch_size: int = Field(32, ge=1)  # samples per step over all ranks
    eval_batch_size: int | None = Field(None, ge=1)  # samples per rank in evaluation; default: as in training
    num_workers: int = Field(0, ge=0)  # loader processes per rank
    order: Literal["shuffled", "sequential", "balanced", "weighted"] = "shuffled"
    drop_last: bool = False  # leave out an epoch's short last batch
    bad_rows: Literal["raise", "skip"] = "raise"


class DataConfig(DataSettings):
    """The data sets, and how their samples become batches."""

    train: Target
    val: Target | None = None
    test: Target | None = None
    split: SplitConfig | None = None
    collate: Target | None = None

    @model_validator(mode="after")
    def _each_split_has_one_source(self) -> "DataConfig":
        for name in ("val", "test"):
            if self.split and getattr(self.split, name) and getattr(self, name):
                raise ValueError(f"{name} and split.{name} are both given; keep one of them")
        return self


class GroupConfig(Section):
    """Parameters whose names match the pattern; other keys (weight_decay, ...) override the optimizer's."""

    model_config = ConfigDict(extra="allow")

    match: str  # shell pattern on parameter names: classifier.*
    lr_scale: float = Field(1.0, ge=0)  # times optimizer.lr

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

    target: str | None = None
    warmup_steps: int = Field(0, ge=0)
    metric: str | None = None  # for ReduceLROnPlateau: stepped at each evaluation on this metric

    @property
    def arguments(self) -> dict[str, Any]:
        """What the target is called with, after the optimizer."""
        return dict(self.model_extra or {})


class EarlyStoppingConfig(Section):
    """Stop when `metric` has not improved for `patience` evaluations."""

    metric: str = "val/loss"
    mode: Literal["min", "max"] = "min"
    patience: int = Field(5, ge=1)


class ProfileConfig(Section):
    """Write a profiler trace of the steps from the first to the last."""

    steps: tuple[int, int]


class TrainConfig(Section):
    """How long and how to train."""

    epochs: int | None = Field(None, ge=1)  # default, where steps is not given: 1
    steps: int | None = Field(None, ge=1)
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    accumulate_steps: int = Field(1, ge=1)  # micro-batches per step; the global batch stays what it is
    clip_grad_norm: float | None = Field(None, gt=0)
    compile: bool = False
    ema_decay: float | None = Field(None, gt=0, lt=1)  # evaluations and the final model use the average
    freeze: list[str] = []  # shell patterns on parameter names
    eval_every_epochs: int | None = Field(1, ge=1)
    eval_every_steps: int | None = Field(None, ge=1)
    early_stopping: EarlyStoppingConfig | None = None
    deterministic: bool = False
    skip_nonfinite: int = Field(0, ge=0)  # updates in a row that may be skipped for a non-finite gradient
    profile: ProfileConfig | None = None

    @model_validator(mode="after")
    def _one_length(self) -> "TrainConfig":
        if self.epochs is not None and self.steps is not None:
            raise ValueError("epochs and steps are both given; keep one of them")
        return self


class DdpConfig(Section):
    """DistributedDataParallel's own knobs."""

    bucket_cap_mb: float = Field(25, gt=0)
    gradient_as_bucket_view: bool = True
    static_graph: bool = False
    find_unused_parameters: bool = False
    sync_batchnorm: bool = False
    compress: Literal["none", "fp16", "bf16", "powersgd"] = "none"


class BestConfig(Section):
    """Which checkpoint is the best one."""

    metric: str = "val/loss"
    mode: Literal["min", "max"] = "min"


class CheckpointConfig(Section):
    """When checkpoints are written, where, and which are kept."""

    folder: str | None = None  # any fsspec URL; default: checkpoints/ in the run folder
    every_steps: int = Field(500, ge=1)
    every_minutes: float | None = Field(10, gt=0)
    keep_last: int = Field(2, ge=1)  # the newest proven one is never deleted
    keep_best: BestConfig | None = None
    keep_every_steps: int | None = Field(None, ge=1)
    max_staleness_minutes: float = Field(60, gt=0)  # training blocks rather than run longer unsaved


class TrackingConfig(Section):
    """Where metrics go beside the journal."""

    uri: str | None = "sqlite:///mlflow.db"  # null: the journal alone
    experiment: str = "default"
    log_every_steps: int = Field(10, ge=1)


class LaunchConfig(Section):
    """How workers start on a node."""

    device: Literal["auto", "cpu", "cuda"] = "auto"
    workers_per_node: int | Literal["auto"] = "auto"  # auto: one per visible GPU; on CPU, two
    max_restarts: int = Field(3, ge=0)
    timeout_s: float = Field(120, gt=0)  # without progress; the process group's own time-out is twice that
    env: dict[str, str] = {}

    @model_validator(mode="after")
    def _at_least_one_worker(self) -> "LaunchConfig":
        if isinstance(self.workers_per_node, int) and self.workers_per_node < 1:
            raise ValueError(f"workers_per_node must be at least 1 or auto, got {self.workers_per_node}")
        return self


class SlurmConfig(Section):
    """What SLURM is asked for."""

    nodes: int = Field(1, ge=1)
    partition: str | None = None
    time: str | int | None = None
    options: dict[str, str | int | float | bool | None] = {}  # any sbatch option
    srun_options: dict[str, str | int | float | bool | None] = {}
    setup: list[str] = []  # shell lines of a profile: modules, conda


class Settings(Section):
    """Everything that is not an object of the user's: what `Trainer(settings=...)` takes in Python."""

    name: str = Field("run", pattern=NAME_PATTERN)  # the run folder is runs/<name>
    seed: int = Field(0, ge=0, lt=2**63)
    data: DataSettings = DataSettings()
    train: TrainConfig = TrainConfig()
    ddp: DdpConfig = DdpConfig()
    checkpoint: CheckpointConfig = CheckpointConfig()
    tracking: TrackingConfig = TrackingConfig()
    launch: LaunchConfig = LaunchConfig()


class Config(Settings):
    """One run, whole: the settings, and by import path the objects they work on."""

    name: str = Field(pattern=NAME_PATTERN)
    model: ModelConfig
    data: DataConfig
    task: Target = Target(target="dist_trainer.training.task.Supervised")
    loss: Target | None = None
    metrics: dict[str, Target] = {}
    optimizer: OptimizerConfig
    scheduler: SchedulerConfig | None = None
    slurm: SlurmConfig = SlurmConfig()
