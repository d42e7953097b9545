"""The `submit` command below the command line: check everything, then give a run to SLURM, or leave all as it was."""

import shutil
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, nullcontext, suppress
from dataclasses import dataclass
from pathlib import Path

from dist_trainer.adapters.file_lock import Owner, hold
from dist_trainer.adapters.files import replace_file
from dist_trainer.config.check import Imported, import_in_child
from dist_trainer.config.load import Loaded, dump_config
from dist_trainer.config.schema import Config
from dist_trainer.errors import FINISHED, UsageError
from dist_trainer.launchers.existing import (
    existing_run,
    is_done,
    move_aside,
    nothing_left,
    reopen,
    rewrite_config,
)
from dist_trainer.run_folder import RunFolder
from dist_trainer.slurm import scheduler
from dist_trainer.slurm.cluster_options import option_problems, setup_problems
from dist_trainer.slurm.code_files import CodeFiles, find_code
from dist_trainer.slurm.code_snapshot import Snapshot, plan_snapshot, remove_snapshot, write_snapshot
from dist_trainer.slurm.script import Refused, Unanswered, make_script, send, test_only
from dist_trainer.slurm.submission_words import (
    Sent,
    say_ended,
    say_finished,
    say_sent,
    show_script,
    warn,
)
from dist_trainer.slurm.submissions import CLOCKS_DIFFER_S, Submission, add_job, next_script
from dist_trainer.slurm.submit_checks import (
    batch_problems,
    check_store,
    cores_hint,
    job_is_over,
    refusal,
    refuse_live_job,
    refuse_unwritable,
    tracking_warning,
)

RUNS = Path("runs")


@dataclass(frozen=True)
class Wishes:
    """How the command was given."""

    runs: Path = RUNS
    fresh: bool = False
    allow_change: Sequence[str] = ()
    snapshot: bool = True
    dry_run: bool = False
    wait: bool = False
    as_json: bool = False


@dataclass(frozen=True)
class Plan:
    """A job that nothing speaks against."""

    script: str
    snapshot: Snapshot | None
    estimate: str  # of its start, in SLURM's words; empty where it gave none
    working_folder: Path


def submit(loaded: Loaded, wishes: Wishes) -> int:
    """Give the run to SLURM and return at once, or with `wait` when it has ended; the command's exit code.

    Raises ConfigError, UsageError and the like for everything that stands against it, before SLURM has the job;
    then nothing is left behind.
    """
    folder = Path(wishes.runs, loaded.config.name).absolute()
    has_slurm = scheduler.is_there()
    if not has_slurm and not wishes.dry_run:
        raise scheduler.SchedulerUnavailable(scheduler.NO_SLURM)
    with nullcontext() if wishes.dry_run else _alone(folder):
        run = _run_that_goes_on(folder, has_slurm)
        if run is not None and not wishes.fresh and is_done(run, loaded, wishes.allow_change):
            return say_finished(run, nothing_left(run), as_json=wishes.as_json)
        run = None if wishes.fresh else run
        plan = _plan(loaded, run, folder, wishes, has_slurm=has_slurm)
        if wishes.dry_run:
            return show_script(folder, plan.script, as_json=wishes.as_json, is_checked=has_slurm)
        sent = _carry_out(plan, loaded, run, folder, wishes)
    if not (wishes.wait and wishes.as_json):  # then one object, at the end
        say_sent(sent, as_json=wishes.as_json)
    return _wait(sent.run, wishes) if wishes.wait else FINISHED


def _run_that_goes_on(folder: Path, has_slurm: bool) -> RunFolder | None:
    """The run that is there, if no job has it and nobody trains it."""
    run = existing_run(folder)
    if run is None:
        refuse_unwritable(folder)
        return None
    if has_slurm:
        refuse_live_job(run)
    with run.lock(job_is_over=job_is_over):
        return run


def _plan(loaded: Loaded, run: RunFolder | None, folder: Path, wishes: Wishes, *, has_slurm: bool) -> Plan:
    """Look at everything, and write nothing. The slow import of the targets goes on beside the rest."""
    config = loaded.config
    working_folder = Path.cwd() if run is None else run.info().working_folder
    with ThreadPoolExecutor(max_workers=1, thread_name_prefix="import") as importer:
        importing = importer.submit(import_in_child, [config], working_folder)
        problems = [*setup_problems(loaded), *batch_problems(config)]
        problems += option_problems(loaded) if has_slurm else []
        if problems:
            raise loaded.error(problems)
        for warning in (tracking_warning(config, working_folder), cores_hint(config.slurm)):
            if warning:
                warn(warning)
        estimate = _estimate(loaded, folder, working_folder) if has_slurm else ""
        imported = importing.result()
    if imported.problems[0]:
        raise loaded.error(imported.problems[0])
    snapshot = _snapshot(folder, working_folder, imported, wishes)
    script = _script(config, folder, working_folder, snapshot)
    return Plan(script, snapshot, estimate, working_folder)


def _snapshot(folder: Path, working_folder: Path, imported: Imported, wishes: Wishes) -> Snapshot | None:
    if not wishes.snapshot:
        return None
    code: CodeFiles = find_code(working_folder, runs=folder.parent, modules=imported.modules)
    if code.left_out:
        warn(f"not in the copy of the code: {', '.join(code.left_out)}")
    return plan_snapshot(folder, code, is_new=wishes.fresh)


def _script(config: Config, folder: Path, working_folder: Path, snapshot: Snapshot | None) -> str:
    return make_script(
        config,
        log_folder=folder / "slurm",
        working_folder=working_folder,
        arguments=[str(folder)],
        code=snapshot.places if snapshot else None,
    )


def _estimate(loaded: Loaded, folder: Path, working_folder: Path) -> str:
    """SLURM's own opinion on the job."""
    script = _script(loaded.config, folder, working_folder, None)
    try:
        return test_only(script, loaded.config.slurm)
    except Refused as error:
        raise refusal(loaded, str(error)) from error


def _carry_out(plan: Plan, loaded: Loaded, run: RunFolder | None, folder: Path, wishes: Wishes) -> Sent:
    """Write what the job needs and send it; each step is taken back unless SLURM has the job in the end."""
    config = loaded.config
    with ExitStack() as undo, _named(folder):
        if wishes.fresh and (old := move_aside(folder, job_is_over=job_is_over)):
            undo.callback(old.rename, folder)
            warn(f"moved the old run to {old}")
        run = _make(folder, config, plan, undo) if run is None else _change(run, config, undo)
        if plan.snapshot is not None:
            undo.callback(remove_snapshot, plan.snapshot)
            write_snapshot(plan.snapshot)
        check_store(run, loaded)
        script = next_script(run.path)
        sent_at = time.time()
        job = _send(plan.script, script, loaded, sent_at, undo)
        code = plan.snapshot.name if plan.snapshot else None
        submission = Submission(
            job, nodes=config.slurm.nodes, code=code, script=f"slurm/{script.name}", time=sent_at
        )
        add_job(run, submission)
        undo.pop_all()
    return Sent(run, job, config, plan.estimate, plan.snapshot, script)


def _make(folder: Path, config: Config, plan: Plan, undo: ExitStack) -> RunFolder:
    if not folder.exists():
        undo.callback(shutil.rmtree, folder, ignore_errors=True)
    run = RunFolder.create(folder, dump_config(config), working_folder=plan.working_folder)
    undo.callback((folder / "run.json").unlink, missing_ok=True)
    return run


def _change(run: RunFolder, config: Config, undo: ExitStack) -> RunFolder:
    """Give the run its configuration as it now is; a finished one goes on."""
    with run.lock(job_is_over=job_is_over):
        if (ended := reopen(run, run_again=True)) is not None:
            undo.callback(run.write_status, ended)
        before, there = run.config_path.read_bytes(), set(run.path.glob("config-*.yaml"))
        rewrite_config(run, config)
        for kept in set(run.path.glob("config-*.yaml")) - there:
            undo.callback(kept.unlink)
            undo.callback(replace_file, run.config_path, before)
    return run


def _send(text: str, path: Path, loaded: Loaded, since: float, undo: ExitStack) -> str:
    """The job's id. From here on what the job needs stays, unless SLURM says that it does not have the job."""
    undo.callback(path.unlink, missing_ok=True)
    try:
        job = send(text, path, loaded.config.slurm)
    except Refused as error:
        raise refusal(loaded, str(error)) from error
    except (Unanswered, KeyboardInterrupt):
        found = _find_sent(loaded.config.name, path, since)
        if found is None:
            undo.pop_all()
            raise
        job = found
    undo.callback(scheduler.cancel, job)
    return job


def _find_sent(name: str, script: Path, since: float) -> str | None:
    """The job of our script that came into the queue just now, whose id did not reach us.

    Runs in other folders may have the name too; no other job has the script.
    """
    with suppress(scheduler.SchedulerUnavailable):
        for record in scheduler.my_jobs().values():
            if record.name == name and (record.submitted or 0) > since - CLOCKS_DIFFER_S:
                told = scheduler.find_by_scontrol(record.job)
                if told is not None and told.script == str(script):
                    return record.job
    return None


@contextmanager
def _named(folder: Path) -> Iterator[None]:
    """Says which folder it was that could not be written."""
    try:
        yield
    except OSError as error:
        why = (error.strerror or str(error)).lower()
        raise UsageError(
            f"the run folder {folder} cannot be written: {error.filename or ''} {why}"
        ) from error


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Be the only one who submits the run; UsageError names the other."""
    path = folder.with_name(f".{folder.name}.submitting")

    def held(owner: Owner | None) -> UsageError:
        who = f"by pid {owner.pid} on {owner.host}" if owner else "by another command"
        return UsageError(f"run {folder.name} is being submitted {who} just now; dist-trainer jobs shows it")

    with ExitStack() as stack:
        with _named(folder):
            folder.parent.mkdir(parents=True, exist_ok=True)
            stack.enter_context(hold(path, held=held, patience_s=0.2))
        stack.callback(path.unlink, missing_ok=True)  # while it is held: who waits for it looks for it again
        yield


def _wait(run: RunFolder, wishes: Wishes) -> int:
    from dist_trainer.slurm.wait import wait_for_end

    code = wait_for_end(run)
    say_ended(run, code, as_json=wishes.as_json)
    return code
