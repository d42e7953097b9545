"""What is drilled, and where: a scratch folder below the runs, gone afterwards unless something failed there."""

import json
import shutil
import sys
import tempfile
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from dist_trainer.config.command_line import split_arguments
from dist_trainer.config.load import load_config, read_config
from dist_trainer.config.redact import redact
from dist_trainer.config.schema import Config
from dist_trainer.config.yaml_rules import read_yaml
from dist_trainer.diagnose.drill import Drill, drill
from dist_trainer.diagnose.drill_plan import USUAL_STEPS, Plan
from dist_trainer.diagnose.faults import Fault, store_of
from dist_trainer.diagnose.words import count, typed
from dist_trainer.errors import DistTrainerError, UsageError
from dist_trainer.run_folder import RunFolder, find_run

_FOLDER = ".drills"


@dataclass(frozen=True)
class Subject:
    """The configuration that is drilled, and the folder that its relative paths begin at."""

    config: Config
    working_folder: Path
    workers: int | None = None  # as many as the run was trained with


def subject_of(arguments: Sequence[str], runs: Path) -> Subject:
    """A run by its name or folder, or a configuration as for `train`; either with KEY=VALUE over it."""
    first, *rest = arguments
    try:
        run = find_run(first, runs)
    except UsageError:
        if not Path(first).is_file():
            raise
        return Subject(load_config(*split_arguments(arguments)).config, Path.cwd())
    tree, _ = read_yaml(run.config_path.read_text(), str(run.config_path))
    if tree is not None and "model" not in (tree.plain() or {}):
        raise UsageError(
            f"run {run.path.name} was begun from Python: what it trains is in no configuration, and cannot be drilled"
        )
    config = load_config([run.config_path], rest).config
    return Subject(config, run.info().working_folder, _workers(run))


def _workers(run: RunFolder) -> int | None:
    starts = [line for line in run.attempts() if line["event"] == "start"]
    on_one_node = starts and len(starts[-1].get("nodes", ())) == 1
    return int(starts[-1]["world_size"]) if on_one_node else None


def drill_in_folder(
    subject: Subject,
    faults: Sequence[Fault],
    *,
    runs: Path,
    steps: int | None,
    workers: int | None,
    keep: bool,
    as_json: bool,
) -> int:
    """Drill, print what came of it, and clear away; the command's exit code."""
    parent = runs.absolute() / _FOLDER
    say = (lambda text: None) if as_json else partial(print, flush=True)
    plan = Plan(
        config=subject.config,
        scratch=parent / subject.config.name,
        working_folder=subject.working_folder,
        steps=USUAL_STEPS if steps is None else steps,
        workers=workers or subject.workers,
    )
    parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    plan = plan.at(Path(tempfile.mkdtemp(prefix=f"{subject.config.name}-", dir=parent)))
    stays = True
    try:
        done = drill(plan, faults, say)
        stays = keep or not done.passed
    except (DistTrainerError, KeyboardInterrupt):
        stays = keep
        raise
    finally:
        if not stays:
            _clear(plan.scratch, remote="://" in (subject.config.checkpoint.folder or ""))
    _show(done, subject, plan.scratch if stays else None, as_json=as_json)
    return 0 if done.passed else 1


def _clear(scratch: Path, *, remote: bool) -> None:
    """Remove the drill's runs, and their checkpoints where those are elsewhere; says which could not be."""
    for path in scratch.glob("*/run.json"):
        run, url = RunFolder(path.parent), ""
        try:
            config = read_config(run.config_path)
            url = run.checkpoint_url(config.checkpoint.folder)
            if remote or not Path(url).is_relative_to(scratch):
                store_of(run).storage.delete_folder("")
        except (OSError, ValueError, DistTrainerError) as error:
            if url and (remote or not Path(url).is_relative_to(scratch)):
                _say_left(url, error)
    shutil.rmtree(scratch, ignore_errors=True)
    with suppress(OSError):  # another drill may be there
        scratch.parent.rmdir()


def _say_left(url: str, error: Exception) -> None:
    why = f"{error}".partition("\n")[0]
    print(redact(f"warning: the drill's checkpoints are left in {url}: {why}"), file=sys.stderr)


def _show(done: Drill, subject: Subject, kept: Path | None, *, as_json: bool) -> None:
    if as_json:
        print(json.dumps({"run": subject.config.name, **done.as_json(), "kept": kept and str(kept)}))
        return
    failed = [result.fault for result in done.results if not result.passed]
    if failed:
        print(f"{subject.config.name} does not survive {', '.join(failed)}")
    elif done.results:
        survived = count(len(done.results), "fault")
        print(f"{subject.config.name} survives {survived}: the same weights as untouched, bit for bit")
    else:
        print(f"{subject.config.name}: nothing was rehearsed")
    if kept is not None:
        print(
            f"the drill's runs: {typed(kept)}; dist-trainer explain NAME --runs {typed(kept)} tells more of each"
        )
