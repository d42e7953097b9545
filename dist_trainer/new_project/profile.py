"""The project's slurm.yaml: a profile with the facts of the cluster that answers here."""

from collections.abc import Sequence

from dist_trainer.config.yaml_rules import write_yaml
from dist_trainer.slurm.partitions import Partition, best_for_training, default_account, partitions
from dist_trainer.slurm.scheduler import SchedulerUnavailable

_LONGEST_MINUTES = 24 * 60  # a shorter job starts sooner, and a run that needs longer goes on by itself
_MOST_CPU_WORKERS = 4


def cluster_profile(config: str) -> str | None:
    """The text of the profile to go with a configuration; None where no SLURM answers, or it has no partition."""
    try:
        found = partitions()
    except SchedulerUnavailable:
        return None
    chosen = best_for_training(found)
    return profile_text(chosen, found, config=config, account=default_account()) if chosen else None


def profile_text(chosen: Partition, every: Sequence[Partition], *, config: str, account: str | None) -> str:
    """YAML with a comment on each fact."""
    others = ", ".join(_described(each) for each in every if each != chosen) or "there are none"
    minutes = min(chosen.limit_minutes or _LONGEST_MINUTES, _LONGEST_MINUTES)
    limit = "no limit" if chosen.limit_minutes is None else f"{_time(chosen.limit_minutes)} at most"
    lines = [
        f"# This cluster, by what sinfo said; a layer over {config}:",
        f"#   dist-trainer submit {config} slurm.yaml --dry-run      shows what would be sent",
        "slurm:",
        _said("  nodes: 1", f"of {chosen.nodes}; the samples of a step are shared out among more"),
        _said(f"  {_pair('partition', chosen.name)}", f"others: {others}"),
        _said(f"  time: {_time(minutes)}", f"{limit}; a run that needs longer is requeued and goes on"),
        _said("  options:", "any option of sbatch by its long name"),
        *([_said(f"    gpus-per-node: {chosen.gpus}", "one process on each")] if chosen.gpus else []),
        _said(f"    cpus-per-task: {chosen.cpus}", "all of a node; a job that wants fewer may start sooner"),
        _said("    mem: 0", f"all of a node, {_memory(chosen.memory_mb)}; or 16G"),
        f"    {_pair('account', account)}"
        if account
        else _said("    # account: physics", "where it asks for one"),
        _said("  # setup: [module load cuda]", "shell lines before the start"),
        "launch:",
        *_launch(chosen),
    ]
    return "\n".join(lines) + "\n"


def _pair(key: str, text: str) -> str:
    """Quoted where YAML would read something else: a partition may be called 2024, an account 00123."""
    return write_yaml({key: text}).rstrip()


def _said(text: str, comment: str) -> str:
    return f"{text:<32} # {comment}"


def _launch(chosen: Partition) -> list[str]:
    if chosen.gpus:
        return [_said("  device: cuda", "no GPU is then an error; auto would train on the processor")]
    workers = max(1, min(_MOST_CPU_WORKERS, chosen.cpus // 2))
    return ["  device: cpu", _said(f"  workers_per_node: {workers}", "processes of a node")]


def _described(each: Partition) -> str:
    gpus = f", {each.gpus} GPUs each" if each.gpus else ""
    nodes = "1 node" if each.nodes == 1 else f"{each.nodes} nodes"
    return f"{each.name} ({nodes}{gpus})"


def _time(minutes: int) -> str:
    days, rest = divmod(minutes, 24 * 60)
    return (f"{days}-" if days else "") + f"{rest // 60:02}:{rest % 60:02}:00"


def _memory(memory_mb: int) -> str:
    return f"{memory_mb / 1024:.0f} GB" if memory_mb >= 1024 else f"{memory_mb} MB"
