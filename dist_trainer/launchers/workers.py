"""How many workers a node runs."""

import os
from pathlib import Path

from dist_trainer.config.schema import Config
from dist_trainer.errors import ConfigError

WORKERS_ON_CPU = 2


def count_workers(config: Config, gpus: int) -> int:
    """`launch.workers_per_node`; auto: one per GPU, else two; never more than there are samples in a step."""
    wanted = config.launch.workers_per_node
    if isinstance(wanted, int):
        return wanted
    if config.launch.device == "cuda" and gpus == 0:
        raise ConfigError("launch.device is cuda, and no GPU is visible; set launch.device=cpu or auto")
    on_gpus = gpus if config.launch.device != "cpu" else 0
    count = on_gpus or min(WORKERS_ON_CPU, len(os.sched_getaffinity(0)))
    return min(count, config.data.global_batch_size)


def fed_by_batch(count: int, config: Config) -> int:
    """The count; ConfigError where a step has fewer samples than there would be ranks."""
    size = config.data.global_batch_size
    if count > size:
        raise ConfigError(
            f"data.global_batch_size must be at least the number of ranks, {count}, got {size}; give a larger one, "
            "or fewer --workers"
        )
    return count


def guess_workers(config: Config) -> int:
    """How many there may be, without torch: it only divides the cores among them, so it raises nothing."""
    try:
        return count_workers(config, gpus_by_driver())
    except ConfigError:  # not every driver shows its devices
        return 1


def gpus_by_driver() -> int:
    """How many GPUs NVIDIA's driver shows; without torch, and no proof that there are none."""
    return len(_visible_by_driver())


def share_of_gpus(slot: int, slots: int) -> dict[str, str]:
    """The variable that leaves each of `slots` trainings its part of the visible GPUs; with fewer GPUs than
    trainings some share one."""
    names = _visible_by_driver()
    if slots < 2 or not names:
        return {}
    return {"CUDA_VISIBLE_DEVICES": ",".join(names[slot::slots] or [names[slot % len(names)]])}


def _visible_by_driver() -> list[str]:
    there = len(list(Path("/proc/driver/nvidia/gpus").glob("*")))
    listed = os.environ.get("CUDA_VISIBLE_DEVICES")
    names = map(str, range(there)) if listed is None else filter(None, listed.split(","))
    return list(names)[:there]
