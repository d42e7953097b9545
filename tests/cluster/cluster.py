"""The local SLURM as tests use it: submit, wait for a state, take nodes away, give them back, leave nothing."""

import contextlib
import fcntl
import os
import re
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeVar

NEEDED = "DIST_TRAINER_NEEDS_SLURM"  # where it is set, a missing cluster is a failure and no skip
NAME = "dist_trainer_local"
NODES = ("n1", "n2")
ENDED = ("COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL", "PREEMPTED", "OUT_OF_MEMORY")
_REASON = "dist-trainer test"
_POLL_S = 0.2
T = TypeVar("T")


class SlurmFailed(AssertionError):
    """A command of SLURM's ended with an error; the message has its words."""


def slurm(*words: str, timeout_s: float = 30) -> str:
    """What one command of SLURM's prints; SlurmFailed with its error otherwise."""
    done = subprocess.run(words, capture_output=True, text=True, timeout=timeout_s, check=False)
    if done.returncode != 0:
        raise SlurmFailed(f"{' '.join(words)}: {(done.stderr or done.stdout).strip()}")
    return done.stdout


def why_not_usable() -> str | None:
    """One line that says why no test can use a cluster here; None where the local one answers."""
    advice = "slurm/local/up starts a small one"
    if shutil.which("scontrol") is None:
        return f"no SLURM on this machine: {advice}"
    try:
        configuration = slurm("scontrol", "show", "config")
    except (SlurmFailed, subprocess.TimeoutExpired) as error:
        return f"no SLURM answers ({str(error).splitlines()[0]}): {advice}"
    found = re.search(r"^ClusterName\s*=\s*(\S+)", configuration, re.MULTILINE)
    if found is None or found[1] != NAME:
        return f"the SLURM that answers is not the local one of slurm/local/up: {found and found[1]}"
    if os.geteuid() != 0:
        return "the tests of the local SLURM take its nodes away and give them back: root is needed"
    return None


def wait_for(condition: Callable[[], T], *, timeout_s: float, what: Callable[[], str]) -> T:
    """The first truthy value of `condition`; `what` is said where there is none in time."""
    deadline = time.monotonic() + timeout_s
    while not (value := condition()):
        if time.monotonic() > deadline:
            raise AssertionError(f"waited {timeout_s:.0f} s in vain for {what()}\n{queue()}")
        time.sleep(_POLL_S)
    return value


def queue() -> str:
    """Every job that squeue knows, as a table; empty where there is none."""
    return slurm("squeue", "--noheader", "--format=%i %j %T %P restarts=%R %Z")


@contextlib.contextmanager
def alone(say: Callable[[str], None]) -> Iterator[None]:
    """One test at a time, over all test runs on this machine: a test takes nodes from whoever has them."""
    with (Path(tempfile.gettempdir()) / "dist-trainer-slurm-tests.lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            say("another test run uses the SLURM here: waiting for it")
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield


class Cluster:
    """The two nodes for one test. `clean_up` ends every job that was submitted, or came from `folder`."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._jobs: list[str] = []

    def submit(self, script: str, *options: str) -> str:
        """Send the lines of a bash script, run in `folder`, its output in <job>.out; gives the job's id."""
        path = self.folder / f"job-{len(self._jobs)}.sh"
        path.write_text(f"#!/bin/bash\n{script}\n")
        output = ("--output=%A.out", "--open-mode=append")
        place = f"--chdir={self.folder}"
        job = slurm("sbatch", "--parsable", place, *output, *options, str(path)).strip().split(";")[0]
        self.adopt(job)
        return job

    def adopt(self, job: str) -> None:
        """Have a job that the tested command submitted ended with the test, wherever it runs."""
        self._jobs.append(job)

    def output(self, job: str) -> str:
        """What a job of `submit` has printed until now."""
        path = self.folder / f"{job}.out"
        return path.read_text() if path.exists() else ""

    def wait_for_output(self, job: str, text: str, *, times: int = 1, timeout_s: float = 60) -> str:
        """What the job has printed, as soon as `text` stands in it so many times."""
        wait_for(
            lambda: self.output(job).count(text) >= times,
            timeout_s=timeout_s,
            what=lambda: f"{text!r} in the output of job {job}: {self.output(job)!r}",
        )
        return self.output(job)

    def show(self, job: str) -> dict[str, str]:
        """What scontrol knows of a job or of one element of an array."""
        line = slurm("scontrol", "--oneliner", "show", "job", job).splitlines()[0]
        return dict(word.split("=", 1) for word in line.split() if "=" in word)

    def state(self, job: str) -> str:
        """SLURM's long word: PENDING, RUNNING, COMPLETED, ..."""
        return self.show(job)["JobState"]

    def wait_for_state(self, job: str, *states: str, timeout_s: float = 60) -> dict[str, str]:
        """What scontrol says of the job once it is in one of the states."""

        def there() -> dict[str, str] | None:
            found = self.show(job)
            return found if found["JobState"] in states else None

        found = wait_for(there, timeout_s=timeout_s, what=lambda: f"{'|'.join(states)} of job {job}")
        assert found is not None
        return found

    def wait_for_end(self, job: str, *, timeout_s: float = 60) -> str:
        """The state in which a job ended."""
        return self.wait_for_state(job, *ENDED, timeout_s=timeout_s)["JobState"]

    def wait_for_requeue(self, job: str, *, restarts: int = 1, timeout_s: float = 120) -> None:
        """Return once the job is back in the queue for the given time."""
        wait_for(
            lambda: (found := self.show(job))["JobState"] == "PENDING" and int(found["Restarts"]) >= restarts,
            timeout_s=timeout_s,
            what=lambda: f"requeue {restarts} of job {job}, {self.show(job)}",
        )

    def release(self, job: str, *, timeout_s: float = 120) -> None:
        """Lift the two minutes for which SLURM holds a requeued job; nothing is done to one that has started."""
        refused = ""

        def lifted() -> bool:
            nonlocal refused
            found = self.show(job)
            # where the hold is over, or was lifted before, it may start at any moment: then SLURM changes no start
            if found["JobState"] not in ("PENDING", "COMPLETING"):
                return True
            # a start in the second of the requeue fails: SLURM has just revoked the job's credential
            requeued = time.strptime(found["SubmitTime"], "%Y-%m-%dT%H:%M:%S")
            if time.time() < time.mktime(requeued) + 2:
                return False
            # while the last processes of its former life end, the job cannot be changed
            try:
                slurm("scontrol", "update", f"JobId={job}", "StartTime=now")
            except SlurmFailed as error:
                refused = str(error)
                return False
            return True

        wait_for(lifted, timeout_s=timeout_s, what=lambda: f"the hold of job {job} to be lifted: {refused}")

    @contextlib.contextmanager
    def urgent_job(self) -> Iterator[str]:
        """A job of the upper partition that wants both nodes, until the block ends: it preempts every other."""
        # one process: where a cancel comes while the shell forks, what was forked may stay
        job = self.submit("echo there; exec sleep 600", "--partition=urgent", "--exclusive", "--nodes=2")
        try:
            yield job
            self.wait_for_output(job, "there")  # cancelled while it starts, it may start all the same
        finally:
            self.cancel(job)

    def preempt(self, job: str, *, timeout_s: float = 120) -> None:
        """Preempt a running job and return when it is back in the queue, and the nodes are free again."""
        restarts = int(self.show(job)["Restarts"]) + 1
        with self.urgent_job():
            self.wait_for_requeue(job, restarts=restarts, timeout_s=timeout_s)

    @contextlib.contextmanager
    def node_down(self, node: str) -> Iterator[None]:
        """A node that SLURM takes for lost, until the block ends."""
        slurm("scontrol", "update", f"NodeName={node}", "State=DOWN", f"Reason={_REASON}")
        try:
            yield
        finally:
            self.resume(node)

    @contextlib.contextmanager
    def node_lost(self, node: str) -> Iterator[None]:
        """A node of which SLURM hears no more, until the block ends, while what runs on it lives on."""
        daemon = _daemon_of(node)
        os.kill(daemon, signal.SIGSTOP)
        try:
            slurm("scontrol", "update", f"NodeName={node}", "State=DOWN", f"Reason={_REASON}")
            yield
        finally:
            os.kill(daemon, signal.SIGCONT)
            self.resume(node)

    def resume(self, node: str) -> None:
        """Give back a node that was set down, and wait until jobs may run on it."""
        if re.search("DOWN|DRAIN", self.node_state(node)):
            slurm("scontrol", "update", f"NodeName={node}", "State=RESUME")
        wait_for(
            lambda: not re.search(r"DOWN|DRAIN|FAIL|COMPLETING|NOT_RESPONDING|\*", self.node_state(node)),
            timeout_s=60,
            what=lambda: f"{node} to be back: {self.node_state(node)}",
        )

    def node_state(self, node: str) -> str:
        """SLURM's words: IDLE, ALLOCATED, DOWN+DRAIN, ..."""
        found = re.search(r"\bState=(\S+)", slurm("scontrol", "show", "node", node))
        assert found is not None
        return found[1]

    def past_states(self, job: str) -> list[str]:
        """The states that sacct keeps of a job's lives, oldest first; some seconds late."""
        words = ("--duplicates", "--allocations", "--noheader", "--parsable2", "--format=State")
        return slurm("sacct", *words, "--jobs", job).split("\n")[:-1]

    def processes(self, job: str) -> dict[int, str]:
        """Every live process that a job started on a node of the cluster, with its command."""
        raw = self.show(job)["JobId"]
        return {pid: name for pid, (owner, name) in job_processes().items() if owner == raw}

    def cancel(self, *jobs: str, timeout_s: float = 60) -> None:
        """End jobs and wait until SLURM has forgotten that they ran; one that takes long is killed."""
        if not jobs:
            return
        slurm("scancel", *jobs)
        killed_at = time.monotonic() + 5

        def gone() -> bool:
            left = [line for line in _listed() if line[0] in jobs or line[1] in jobs]
            if left and time.monotonic() > killed_at:
                with contextlib.suppress(SlurmFailed):
                    slurm("scancel", "--signal=KILL", "--full", *jobs)
            return not left

        wait_for(gone, timeout_s=timeout_s, what=lambda: f"the end of jobs {', '.join(jobs)}")

    def clean_up(self) -> None:
        """End this test's jobs and give back every node that it set down."""
        ours = {
            line[1] for line in _listed() if {line[0], line[1]} & {*self._jobs} or self._is_below(line[2])
        }
        self.cancel(*sorted(ours))
        for node in NODES:
            if re.search("DOWN|DRAIN", self.node_state(node)):
                self.resume(node)

    def _is_below(self, place: str) -> bool:
        return Path(place).is_relative_to(self.folder)


def _daemon_of(node: str) -> int:
    command = f"slurmd\0-N\0{node}\0".encode()
    for entry in Path("/proc").iterdir():
        with contextlib.suppress(OSError):
            if entry.name.isdigit() and (entry / "cmdline").read_bytes().endswith(command):
                return int(entry.name)
    raise AssertionError(f"no slurmd of {node} is running")


def job_processes() -> dict[int, tuple[str, str]]:
    """Every live process of any job of this cluster: pid to job and command."""
    found = {}
    for entry in Path("/proc").iterdir():
        with contextlib.suppress(OSError):
            if entry.name.isdigit() and (job := _job_of(entry)):
                found[int(entry.name)] = (job, (entry / "cmdline").read_text().replace("\0", " ").strip())
    return {pid: (job, command) for pid, (job, command) in found.items() if command}


def end_job_processes() -> None:
    """Kill what jobs left behind, so that the next test finds nothing."""
    for pid in job_processes():
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


def _job_of(entry: Path) -> str | None:
    environment = (entry / "environ").read_bytes().split(b"\0")
    variables = dict(item.split(b"=", 1) for item in environment if b"=" in item)
    # a process that was started from inside a job, but not by SLURM, has the variables as well: none in a test
    if variables.get(b"SLURM_CLUSTER_NAME") != NAME.encode() or b"SLURMD_NODENAME" not in variables:
        return None
    return os.fsdecode(variables.get(b"SLURM_JOB_ID", b"")) or None


def _listed() -> list[list[str]]:
    """Array's (or job's) id, job's own id and working folder of everything that squeue lists."""
    lines = slurm("squeue", "--noheader", "--array", "--format=%F|%A|%Z").splitlines()
    return [line.strip().split("|") for line in lines]
