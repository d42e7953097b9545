"""One node of a SLURM job: its agent, and on the first node what is done once for the whole job."""

import os
import time
from dataclasses import replace
from functools import partial

from rich.console import Console

from dist_trainer.adapters.interpreter import importing
from dist_trainer.adapters.slurm_job import JOB_END_VARIABLE, SIGNAL_BEFORE_VARIABLE, SlurmJob
from dist_trainer.config.load import read_config
from dist_trainer.config.sbatch_options import signal_before_s
from dist_trainer.config.schema import Config
from dist_trainer.errors import FINISHED, DistTrainerError
from dist_trainer.launchers import forkserver
from dist_trainer.launchers.accompany import accompany
from dist_trainer.launchers.results import Ending, show_error, show_results, where_saved
from dist_trainer.launchers.signals import StopRequests
from dist_trainer.launchers.workers import count_workers, fed_by_batch
from dist_trainer.run_folder import RunFolder, Status
from dist_trainer.slurm import scheduler
from dist_trainer.slurm.cluster_facts import kill_wait_s
from dist_trainer.slurm.lost_attempts import close_lost_attempts
from dist_trainer.slurm.meeting import Meeting, read_meeting, wait_for_meeting, write_meeting
from dist_trainer.slurm.requeue import Decision, ask, decide, give_back, record_requeue
from dist_trainer.slurm.scheduler import JobRecord
from dist_trainer.slurm.submissions import Submission, add_job, last_job

_FIRST_NODE_MAY_TAKE_S = 300.0
_TO_SETTLE_S = 4.0  # before SLURM's KILL: to ask what became of the job, and to give it back
_TO_LEAVE_S = 1.5


def run_node(run: RunFolder, job: SlurmJob, requests: StopRequests) -> int:
    """Train as this node of the job; the exit code of its task.

    That of other nodes is 0 whatever happened there, since SLURM ends the whole step for any other one: the
    first node's agent says how the run ended.
    """
    if job.node_rank == 0:
        return _FirstNode(run, job, requests).run()
    _run_other_node(run, job, requests)
    return FINISHED


def _begin(run: RunFolder) -> Config:
    """Go where the run's relative paths begin, and have torch imported meanwhile."""
    os.chdir(run.info().working_folder)
    config = read_config(run.config_path)
    forkserver.start_for(config)
    return config


def _leave_after_s(kill_wait_s: float) -> float:
    """How long after TERM workers may go on: SLURM kills soon after, and the job is to be settled first."""
    return max(1.0, kill_wait_s - _TO_SETTLE_S)


def _run_other_node(run: RunFolder, job: SlurmJob, requests: StopRequests) -> None:
    config = _begin(run)
    try:
        meeting = wait_for_meeting(run, job, within_s=_FIRST_NODE_MAY_TAKE_S, until=lambda: requests.stopping)
    except InterruptedError:
        return
    if meeting.exit_code is not None:
        return
    with importing():
        from dist_trainer.launchers import agent

    workers = count_workers(config, agent.visible_gpus())
    endpoint = f"{meeting.address}:{meeting.port}"
    nodes = agent.Nodes(job.node_count, job.node_rank, endpoint, job.node)
    variables = _variables(config, meeting.end_time)
    outcome = agent.launch(
        run,
        config,
        workers=workers,
        nodes=nodes,
        requests=requests,
        variables=variables,
        leave_after_s=_leave_after_s(kill_wait_s()),
    )
    print(f"{job.node}: {outcome.state}" + (f": {outcome.message}" if outcome.message else ""), flush=True)


def _variables(config: Config, end_time: float | None) -> dict[str, str]:
    """What a worker needs to stop by the job's clock."""
    if end_time is None:
        return {}
    return {JOB_END_VARIABLE: str(end_time), SIGNAL_BEFORE_VARIABLE: str(signal_before_s(config.slurm))}


class _FirstNode:
    """The agent that speaks for the job: it holds the run, shows the progress and gives the job back."""

    _config: Config

    def __init__(self, run: RunFolder, job: SlurmJob, requests: StopRequests) -> None:
        self._run = run
        self._job = job
        self._requests = requests
        self._kill_wait_s = kill_wait_s()
        self._refused: int | None = None  # the exit code of a run that must not go back into the queue
        self._console = Console(highlight=False, soft_wrap=True)
        self._meeting = Meeting(address=job.node)
        self._decision = Decision(False, "finished", "")
        self._is_given_back = False

    def run(self) -> int:
        """The exit code of the run, or of what kept it from starting.

        Any other exception goes through: then nobody is told of an end, and the batch script gives the job back.
        """
        try:
            self._config = _begin(self._run)
            with self._run.lock(job=self._job.job, job_is_over=self._is_over):
                self._register()
                close_lost_attempts(self._run, self._job)
                code = self._train()
        except DistTrainerError as error:
            self._tell(exit_code=error.exit_code)
            raise
        self._tell(exit_code=code)
        return code

    def _register(self) -> None:
        """A job that a plain batch script started is the run's job too."""
        known = last_job(self._run)
        if known is None or known.job != self._job.job:
            add_job(self._run, Submission(self._job.job, nodes=self._job.node_count))

    def _train(self) -> int:
        if self._run.read_status().state == "finished":
            self._say(f"run {self._config.name} is finished already")
            return FINISHED
        try:
            ending = self._launch()
        except DistTrainerError as error:  # before any worker could say so
            self._run.write_status(Status("failed", str(error)))
            raise
        if ending.failure is not None:
            show_error(ending)
        elif ending.state == "finished":
            show_results(ending, self._console)
        if self._decision.requeue and not self._is_given_back:
            self._give_back()
        return ending.exit_code if self._refused is None else self._refused

    def _launch(self) -> Ending:
        record = ask(self._job)
        end_time = record.end if record and record.end else self._job.end_time
        self._job = replace(self._job, end_time=end_time)
        self._introduce(record, end_time)
        with importing():  # torch, while the forkserver does
            from dist_trainer.launchers import agent

        count = self._job.node_count
        workers = count_workers(self._config, agent.visible_gpus())
        fed_by_batch(workers * count, self._config)
        nodes = agent.Nodes(address=self._job.node)
        if count > 1:
            endpoint = f"{self._job.node}:0"
            nodes = agent.Nodes(count, 0, endpoint, self._job.node, partial(self._publish, end_time))
        launch = partial(
            agent.launch,
            self._run,
            self._config,
            workers=workers,
            nodes=nodes,
            variables=_variables(self._config, end_time),
            leave_after_s=_leave_after_s(self._kill_wait_s),
        )
        return accompany(
            launch,
            self._run,
            self._config,
            self._requests,
            self._console,
            settle=self._settle,
            must_leave=lambda: self._requests.ending_since(self._kill_wait_s - _TO_LEAVE_S),
        )

    def _introduce(self, record: JobRecord | None, end_time: float | None) -> None:
        again = f", start {self._job.restart + 1}" if self._job.restart else ""
        until = f", until {time.strftime('%Y-%m-%d %H:%M:%S', time.localtime(end_time))}" if end_time else ""
        nodes = record.nodes if record else self._job.node_list
        self._say(f"run {self._config.name}: SLURM job {self._job.job}{again} on {nodes}{until}")
        for name, value in self._config.launch.env.items():
            self._say(f"launch.env: {name}={value}")

    def _settle(self, ending: Ending) -> None:
        """Decide what becomes of the job before MLflow is told how the run stands.

        Where SLURM kills the step soon, the job goes back into the queue first; else last, since that ends it.
        """
        self._decision = self._judge(ending)
        if ending.state == "stopped":
            self._say(where_saved(ending.step))
            self._note(ending)
        if self._decision.cause in ("cancelled", "requeued", "overtaken"):
            self._say(self._decision.says)
        if self._decision.cause == "requeued":
            record_requeue(self._run, self._job, self._decision)
        if self._decision.requeue and self._requests.ending:
            self._give_back()

    def _give_back(self) -> None:
        self._is_given_back = True
        self._refused = give_back(self._run, self._job, self._decision, self._say)

    def _is_overtaken(self) -> bool:
        """Whether SLURM gave this node up and a newer start of the job trains already."""
        begun = [line for line in self._run.attempts() if line["event"] == "start"]
        starts = [(line.get("job"), line.get("restart")) for line in begun]
        mine = (self._job.job, self._job.restart)
        return mine in starts and starts[-1] != mine

    def _judge(self, ending: Ending) -> Decision:
        if self._is_overtaken():
            return Decision(False, "overtaken", "the run went on elsewhere")
        record = ask(self._job)
        return decide(ending, was_ended=self._requests.ending, record=record, job=self._job, now=time.time())

    def _note(self, ending: Ending) -> None:
        """Why it stopped, in place of the signal's name, and whether it goes on by itself."""
        status, decision = self._run.read_status(), self._decision
        if status.state == "stopped" and decision.cause != "overtaken":
            again = decision.requeue or decision.cause == "requeued"
            reason = status.reason if decision.requeue else decision.says
            told = Status("stopped", reason, ending.step, results=status.results, run_again=again)
            self._run.write_status(told)

    def _is_over(self, other: str) -> bool:
        """Whether a job that holds the run has lost it: an earlier start of ours, or one that SLURM has ended."""
        if other == self._job.job:
            return True
        try:
            record = scheduler.find_by_squeue(other) or scheduler.find_by_scontrol(other)
        except scheduler.SchedulerUnavailable:
            return False  # heartbeats tell then
        return record is None or not record.is_live

    def _publish(self, end_time: float | None, port: int) -> None:
        self._meeting = Meeting(self._job.node, port, end_time)
        write_meeting(self._run, self._job, self._meeting)

    def _tell(self, *, exit_code: int) -> None:
        """The others need not wait any more."""
        write_meeting(
            self._run, self._job, Meeting(self._meeting.address, self._meeting.port, exit_code=exit_code)
        )

    def _say(self, text: str) -> None:
        self._console.print(text, markup=False)


def after_srun(run: RunFolder, job: SlurmJob, code: int) -> int:
    """The job's exit code; gives the job back where the first node's agent died before it could decide."""
    meeting = read_meeting(run, job)
    if meeting is not None and meeting.exit_code is not None:
        return meeting.exit_code
    record = ask(job)
    if record is not None and record.state != "RUNNING":  # cancelled, or in the queue again
        return code
    died = f"the agent of the first node died before it could say why (srun's exit code {code})"
    refused = give_back(run, job, Decision(True, "lost", died), lambda text: print(text, flush=True))
    return code if refused is None else refused
