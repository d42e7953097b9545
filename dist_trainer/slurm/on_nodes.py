"""One short command on every node: in the job around us, or in a small one of its own that srun waits for."""

import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import IO

from dist_trainer.adapters.slurm_job import SlurmJob
from dist_trainer.config.sbatch_options import given
from dist_trainer.config.schema import SlurmConfig
from dist_trainer.slurm.cluster_options import known_options
from dist_trainer.slurm.scheduler import NO_SLURM, SchedulerUnavailable, ask, cancel, find

_JOB_NAME = "dist-trainer-doctor"
_JOB = re.compile(r"srun: job (\d+) (?:queued|has been)")
_NOT_OURS = ("signal", "array", "dependency", "begin")  # of the run's own job
_ENDS_WITHIN_S = 15.0
_MOST_BYTES = 1 << 20


class OnNodes:
    """The command as it runs; `said` is what srun said on standard error, `heard` what the nodes printed."""

    def __init__(
        self, process: "subprocess.Popen[bytes]", out: IO[bytes], errors: IO[bytes], *, has_own_job: bool
    ) -> None:
        self._process, self._out, self._errors = process, out, errors
        self._has_own_job = has_own_job
        self._job: str | None = None

    @property
    def is_over(self) -> bool:
        """Whether srun has ended."""
        return self._process.poll() is not None

    @property
    def heard(self) -> list[str]:
        """The lines that nodes have printed until now."""
        return _read(self._out).splitlines()

    @property
    def said(self) -> str:
        """What srun and the tasks had to say, each thing once and in one line; that a task ended comes last."""
        lines = (
            re.sub(r"^(srun|slurmstepd): (error: )?", "", line) for line in _read(self._errors).splitlines()
        )
        kept = [line.strip() for line in lines if line.strip() and "has been allocated" not in line]
        return "; ".join(sorted(dict.fromkeys(kept), key=lambda line: "Exited with exit code" in line))

    @property
    def own_job(self) -> str | None:
        """The job that srun asked for, once it or a node says so; None in a job that was there."""
        if not self._has_own_job:
            return None
        found = _JOB.search(_read(self._errors))
        return found[1] if found else self._job

    def note_step(self, step: str) -> None:
        """A node's word for the step that it is in: srun names a job only where it had to wait for it."""
        self._job = step.partition(".")[0] or None

    def why_it_waits(self) -> str | None:
        """SLURM's reason while the job is pending; None once it runs, or where nobody says."""
        with suppress(SchedulerUnavailable):
            if (job := self.own_job) and (record := find(job)) and record.state == "PENDING":
                return record.reason
        return None

    def signal(self, step: str) -> None:
        """Send USR2 to every process of the step, as SLURM does before a preemption or the time limit."""
        with suppress(SchedulerUnavailable):
            ask(["scancel", "--signal=USR2", step])

    def end(self) -> None:
        """End it, with the job that was asked for."""
        if not self.is_over:
            self._process.terminate()
            if (job := self.own_job) is not None:
                with suppress(Exception):  # it may be over by now
                    cancel(job)
            with suppress(subprocess.TimeoutExpired):
                self._process.wait(_ENDS_WITHIN_S)
        self._process.kill()
        self._process.wait()


@contextmanager
def on_nodes(slurm: SlurmConfig, command: Sequence[str], *, minutes: int) -> Iterator[OnNodes]:
    """Start it on each node, once; `slurm.setup` comes before it. SchedulerUnavailable where there is no srun."""
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as errors:
        job = SlurmJob.from_environment()
        try:
            process = subprocess.Popen(
                srun_command(slurm, job, command, minutes=minutes),
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=errors,
                start_new_session=True,  # Ctrl-C is ours: srun would ask for a second one
            )
        except FileNotFoundError:
            raise SchedulerUnavailable(NO_SLURM) from None
        running = OnNodes(process, out, errors, has_own_job=job is None)
        try:
            yield running
        finally:
            running.end()


def srun_command(
    slurm: SlurmConfig, job: SlurmJob | None, command: Sequence[str], *, minutes: int
) -> list[str]:
    """srun with what the run's own job would be asked for; in a job with all that this has."""
    nodes = job.node_count if job is not None else slurm.nodes
    options = [f"--nodes={nodes}", f"--ntasks={nodes}", "--ntasks-per-node=1", "--mpi=none"]
    if job is not None:
        options += ["--overlap", "--cpu-bind=none"]  # beside the shell's own step, and with all cores
    else:
        options += [f"--job-name={_JOB_NAME}", f"--time={minutes}", *_options(slurm)]
    setup = ["bash", "-c", "\n".join([*slurm.setup, 'exec "$@"']), "bash"] if slurm.setup else []
    return ["srun", *options, *setup, *command]


def _options(slurm: SlurmConfig) -> list[str]:
    known = known_options("srun")
    wanted = {**given({"partition": slurm.partition}), **given(slurm.options)}
    asked = {
        name: value
        for name, value in wanted.items()
        if (not known or name in known) and name not in _NOT_OURS
    }
    asked |= given(slurm.srun_options)
    return [f"--{name}" if value is True else f"--{name}={value}" for name, value in sorted(asked.items())]


def _read(stream: IO[bytes]) -> str:
    """What is in the file by now; srun writes at the offset that we share with it, so it is not to be moved."""
    return os.pread(stream.fileno(), _MOST_BYTES, 0).decode(errors="replace")


def python(module: str, *arguments: str) -> list[str]:
    """The command that runs a module by the Python of this process."""
    return [sys.executable, "-m", module, *arguments]


def wait_until_over(running: OnNodes, within_s: float) -> bool:
    """Whether it ends by itself in time."""
    deadline = time.monotonic() + within_s
    while not running.is_over and time.monotonic() < deadline:
        time.sleep(0.05)
    return running.is_over
