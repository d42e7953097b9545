"""What SLURM starts on each node of a job: this node's agent. And the last line of the batch script.

    srun ... python -m dist_trainer.slurm.task [--sweep] FOLDER
    python -m dist_trainer.slurm.task --after CODE [--sweep] FOLDER

Signals are listened to before anything slow is imported: one that comes earlier ends the process, and the second
line, which runs when srun has returned, gives the job back to the queue.
"""

import argparse
import signal
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from dist_trainer.adapters.interpreter import leave
from dist_trainer.launchers.signals import StopRequests

if TYPE_CHECKING:
    from dist_trainer.adapters.slurm_job import SlurmJob
    from dist_trainer.run_folder import RunFolder


def main() -> int:
    """The task's exit code: the run's own on the first node, 0 on others; batch script: that of the job."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR2):
        signal.signal(number, signal.SIG_IGN)  # so it stays once nobody listens: the end is near then anyway
    with StopRequests().listening() as requests:
        from dist_trainer.adapters.privacy import keep_private
        from dist_trainer.config.redact import redact
        from dist_trainer.errors import DistTrainerError
        from dist_trainer.slurm.node import after_srun, run_node

        keep_private()
        arguments = _arguments()
        try:
            run, job = _place(arguments.folder, is_sweep=arguments.sweep)
            if arguments.after is not None:
                return after_srun(run, job, arguments.after)
            return run_node(run, job, requests)
        except DistTrainerError as error:
            print(redact(str(error)), file=sys.stderr, flush=True)
            return error.exit_code


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m dist_trainer.slurm.task")
    parser.add_argument("folder", type=Path, help="the run's folder; with --sweep the sweep's")
    parser.add_argument("--after", type=int, metavar="CODE", help="srun has returned with this exit code")
    parser.add_argument("--sweep", action="store_true", help="the run is the cell of the array's element")
    return parser.parse_args()


def _place(folder: Path, *, is_sweep: bool) -> "tuple[RunFolder, SlurmJob]":
    from dist_trainer.adapters.slurm_job import SlurmJob
    from dist_trainer.errors import UsageError
    from dist_trainer.run_folder import RunFolder

    job = SlurmJob.from_environment()
    if job is None:
        raise UsageError(
            "SLURM_JOB_ID is not set: this is what a SLURM job runs; dist-trainer train runs here"
        )
    if not is_sweep:
        return RunFolder.open(folder), job
    from dist_trainer.sweep_folder import SweepFolder

    if job.array_index is None:
        raise UsageError("SLURM_ARRAY_TASK_ID is not set: --sweep is for the elements of an array job")
    sweep = SweepFolder.open(folder)
    return sweep.run_of(sweep.cell(job.array_index)), job


if __name__ == "__main__":
    leave(main())
