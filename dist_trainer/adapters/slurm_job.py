"""What SLURM tells a process of one of its jobs: the only reader of its environment variables."""

import os
import socket
from dataclasses import dataclass

# what our agent tells its workers of their job's time limit: its end in unix seconds, and SLURM's early signal
JOB_END_VARIABLE = "DIST_TRAINER_JOB_END"
SIGNAL_BEFORE_VARIABLE = "DIST_TRAINER_SIGNAL_BEFORE_S"


@dataclass(frozen=True)
class SlurmJob:
    """The job that this process is a part of, and its place in it."""

    job: str  # "123"; an element of an array: "120_3"
    restart: int  # how often SLURM or a requeue started it anew
    node: str  # this node's name
    node_rank: int  # among the nodes of the job; 0 is the first one
    node_count: int
    node_list: str  # SLURM's short form: n[1-2]
    array_index: int | None = None
    end_time: float | None = None  # unix seconds, of its time limit; older SLURMs say it to scontrol alone
    step: str = ""  # "123.0": what srun started of it, and this process is in

    @classmethod
    def from_environment(cls) -> "SlurmJob | None":
        """The job around this process; None outside one."""
        environment = os.environ
        if "SLURM_JOB_ID" not in environment:
            return None
        index = environment.get("SLURM_ARRAY_TASK_ID")
        whole = environment.get("SLURM_ARRAY_JOB_ID", environment["SLURM_JOB_ID"])
        end = environment.get("SLURM_JOB_END_TIME", "")
        return cls(
            job=f"{whole}_{index}" if index else whole,
            restart=int(environment.get("SLURM_RESTART_COUNT", 0)),
            node=environment.get("SLURMD_NODENAME") or socket.gethostname(),
            node_rank=int(environment.get("SLURM_NODEID", 0)),
            node_count=int(environment.get("SLURM_JOB_NUM_NODES", 1)),
            node_list=environment.get("SLURM_JOB_NODELIST", ""),
            array_index=int(index) if index else None,
            end_time=float(end) if end.isdigit() else None,
            step=f"{environment['SLURM_JOB_ID']}.{environment.get('SLURM_STEP_ID', '0')}",
        )
