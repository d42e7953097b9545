"""What `submit` says: to people on standard output, warnings on standard error, or one JSON object."""

import json
import sys
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dist_trainer.config.schema import Config
from dist_trainer.errors import FINISHED
from dist_trainer.launchers.results import in_folder
from dist_trainer.run_folder import RunFolder
from dist_trainer.slurm.code_snapshot import Snapshot
from dist_trainer.slurm.submissions import last_job


@dataclass(frozen=True)
class Sent:
    """A job that SLURM has taken."""

    run: RunFolder
    job: str
    config: Config
    estimate: str
    snapshot: Snapshot | None
    script: Path


def say_sent(sent: Sent, *, as_json: bool) -> None:
    """The job, the run folder, what is known, and the two next commands."""
    run, slurm, name = sent.run, sent.config.slurm, sent.config.name
    if as_json:
        _print_json(run, "submitted", estimated_start=sent.estimate or None, script=str(sent.script))
        return
    nodes = f"{slurm.nodes} node{'s' * (slurm.nodes > 1)}"
    where = f"{nodes}, partition {slurm.partition}" if slurm.partition else nodes
    lines = [("run folder", str(run.path)), ("code", _code_of(sent))]
    if sent.estimate:
        lines.append(("start", f"{_shown_time(sent.estimate)}, as SLURM estimates"))
    folder = in_folder(run.path.parent)
    lines += [
        ("its output", f"dist-trainer logs {name} -f{folder}"),
        ("all jobs", f"dist-trainer jobs{folder}"),
    ]
    print(f"{name}: submitted as job {sent.job} ({where})")
    for title, text in lines:
        print(f"  {title:<12}{text}")


def _code_of(sent: Sent) -> str:
    if sent.snapshot is None:
        return "as it is when the job starts (--no-snapshot)"
    code = sent.snapshot.code
    again = ", as submitted before" if sent.snapshot.is_there else ""
    count = len(code.files) + len(code.links)
    return f"{sent.snapshot.name}: {count} file{'s' * (count != 1)}, {shown_size(code.bytes)}{again}"


def shown_size(count: int) -> str:
    """So many bytes: 14 kB, 3.2 MB."""
    if count < 1000:
        return f"{count} bytes"
    return f"{count / 1e3:.0f} kB" if count < 999_500 else f"{count / 1e6:.1f} MB"


def _shown_time(text: str) -> str:
    """SLURM's local time, without its T; today's without the day."""
    with suppress(ValueError):
        moment = time.strptime(text, "%Y-%m-%dT%H:%M:%S")
        today = time.strftime("%Y-%m-%d")
        return time.strftime(
            "%H:%M:%S" if time.strftime("%Y-%m-%d", moment) == today else "%Y-%m-%d %H:%M", moment
        )
    return text


def say_finished(run: RunFolder, why: str, *, as_json: bool) -> int:
    """There is nothing to submit."""
    if as_json:
        _print_json(run, "finished")
    else:
        print(why)
    return FINISHED


def say_ended(run: RunFolder, code: int, *, as_json: bool) -> None:
    """The run's end, for who waited: the results, or where the reason is."""
    status = run.read_status()
    if as_json:
        _print_json(run, status.state, exit_code=code)
        return
    where = f" at step {status.step}" if status.step is not None else ""
    print(f"{run.path.name}: {status.state}{where}", file=sys.stderr)
    for name, value in sorted(status.results.items()):
        print(f"  {name:<15} {value:.4g}", file=sys.stderr)
    if status.state != "finished":
        name = f"{run.path.name}{in_folder(run.path.parent)}"
        print(f"  its output      dist-trainer logs {name}", file=sys.stderr)


def show_script(folder: Path, text: str, *, as_json: bool, is_checked: bool) -> int:
    """The exact script, and nothing else, on standard output."""
    if not is_checked:
        warn("no SLURM answers here: options, partition and limits were not checked")
    if as_json:
        print(
            json.dumps({"run": folder.name, "folder": str(folder), "dry_run": True, "script": text}, indent=2)
        )
    else:
        sys.stdout.write(text)
    return FINISHED


def warn(text: str) -> None:
    """Something to know that stops nothing."""
    print(text, file=sys.stderr)


def _print_json(run: RunFolder, state: str, **more: Any) -> None:
    last = last_job(run)
    known = {"run": run.path.name, "job": last.job if last else None, "folder": str(run.path), "state": state}
    known["code"] = last.code if last else None
    print(json.dumps({**known, **more}, indent=2))
