"""Where a process stands: torchrun's and our agent's environment variables, and the device."""

import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch

from dist_trainer.adapters.slurm_job import JOB_END_VARIABLE, SIGNAL_BEFORE_VARIABLE, SlurmJob
from dist_trainer.errors import ConfigError

FENCE_VARIABLE = "DIST_TRAINER_FENCE"


@dataclass(frozen=True)
class Place:
    """Where this process stands among the workers; a process that nobody launched is rank 0 of 1."""

    rank: int
    world_size: int
    local_rank: int
    local_world_size: int
    launched: bool
    fence: int | None  # set by our own agent; under plain torchrun rank 0 takes one
    node: str = ""  # SLURM's name of it in a job
    job: str | None = None  # under our agent in a SLURM job: "123", of an array "120_3"
    restart: int = 0  # how often that job was requeued
    job_end: float | None = None  # when its time is up, in unix seconds
    signal_before_s: float = 0.0  # how long before that SLURM sends USR2

    @classmethod
    def from_environment(cls) -> "Place":
        """Read torchrun's variables, and SLURM's where our agent started this process."""
        environment = os.environ
        fence = environment.get(FENCE_VARIABLE)
        job = SlurmJob.from_environment() if fence else None
        end = environment.get(JOB_END_VARIABLE)
        return cls(
            rank=int(environment.get("RANK", 0)),
            world_size=int(environment.get("WORLD_SIZE", 1)),
            local_rank=int(environment.get("LOCAL_RANK", 0)),
            local_world_size=int(environment.get("LOCAL_WORLD_SIZE", 1)),
            launched="RANK" in environment,
            fence=int(fence) if fence else None,
            node=job.node if job else socket.gethostname(),
            job=job.job if job else None,
            restart=job.restart if job else 0,
            job_end=float(end) if end else None,
            signal_before_s=float(environment.get(SIGNAL_BEFORE_VARIABLE, 0)),
        )


@contextmanager
def on_loopback_if_alone(place: Place) -> Iterator[None]:
    """While the context lasts, gloo and NCCL listen on the loopback interface alone where all ranks are on this
    node, unless the user named an interface: their ports have no login."""
    names = {"GLOO_SOCKET_IFNAME": "lo", "NCCL_SOCKET_IFNAME": "=lo"}
    is_alone = place.world_size == place.local_world_size
    added = {name: value for name, value in names.items() if is_alone and name not in os.environ}
    os.environ.update(added)
    try:
        yield
    finally:
        for name in added:
            os.environ.pop(name, None)


def choose_device(wanted: str, place: Place) -> torch.device:
    """`auto` is this rank's GPU where CUDA sees one for every local rank; never a silent fallback of `cuda`.

    Raises ConfigError where `cuda` was asked for and there are too few devices.
    """
    visible = torch.cuda.device_count()
    if wanted == "cpu" or (wanted == "auto" and visible == 0):
        return torch.device("cpu")
    if visible < place.local_world_size:
        raise ConfigError(
            f"launch.workers_per_node is {place.local_world_size} with launch.device {wanted}, and CUDA sees "
            f"{visible} devices; one worker needs a device of its own, or set launch.device=cpu"
        )
    torch.cuda.set_device(place.local_rank)
    return torch.device("cuda", place.local_rank)


def be_deterministic() -> None:
    """Deterministic algorithms alone, from here on in this process; an operation that has none raises."""
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # without it cuBLAS refuses on CUDA
    torch.use_deterministic_algorithms(True)
