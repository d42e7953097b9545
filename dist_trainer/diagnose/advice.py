"""What to do next: the command exactly as it is to be typed, and what to change before, where something is to be."""

import re
from dataclasses import dataclass

from dist_trainer import errors
from dist_trainer.config.schema import CheckpointConfig
from dist_trainer.diagnose.evidence import Evidence, whole
from dist_trainer.diagnose.machine import SlurmWord, memory_word
from dist_trainer.diagnose.ranks import FirstFailed
from dist_trainer.diagnose.saved import Saved
from dist_trainer.diagnose.verdict import State
from dist_trainer.diagnose.way_on import FRESH, PROFILE, changed, way_on
from dist_trainer.launchers.results import in_folder

_MEND = "mend the error above; nothing that was saved is lost"
_ONE_SAMPLE = "a micro-batch is one sample already: it takes a smaller model, or more memory"
_LARGEST_NORM = 1.0


@dataclass(frozen=True)
class Advice:
    """`first` is what to change or know before `command` is given."""

    first: str
    command: str


def advise(
    state: State, evidence: Evidence, *, first: FirstFailed | None, saved: Saved, slurm: SlurmWord | None
) -> Advice:
    """The way on."""
    run = evidence.run
    where = f"{run.path.name}{in_folder(run.path.parent)}"
    if not evidence.is_newest:
        return Advice("", f"dist-trainer explain {where}")
    if state in ("running", "starting", "waiting"):
        return Advice("", f"dist-trainer logs {where} -f")
    if state == "finished":
        return Advice("", f"dist-trainer {'evaluate' if _has_test(evidence) else 'checkpoint list'} {where}")
    kind = first.type if first else ""
    if kind == errors.NoUsableCheckpoint.__name__:
        anew = way_on(evidence, slurm, saved, FRESH)
        bring_back = f"bring a checkpoint back from a copy; else {anew} starts anew, and keeps this folder"
        return Advice(bring_back, f"dist-trainer checkpoint verify {where}")
    if kind == errors.FencedOut.__name__:
        return Advice("another command has taken the run over; nothing is lost", f"dist-trainer jobs {where}")
    if saved.problem:
        return Advice(f"{saved.problem}: make that work first", way_on(evidence, slurm, saved))
    change, options = _change(state, evidence, first, slurm, saved)
    command = way_on(evidence, slurm, saved, options)
    if PROFILE in command:
        change = "; ".join(filter(None, (change, f"{PROFILE} is your profile with slurm.setup")))
    return Advice(change, command)


def _change(
    state: State, evidence: Evidence, first: FirstFailed | None, slurm: SlurmWord | None, saved: Saved
) -> tuple[str, str]:
    """What is to be changed, and how the command says it."""
    said = f"{first.type} {first.what}" if first else ""
    memory = "OutOfMemory" in said or "out of memory" in said.replace("(out of memory?)", "")
    if memory or (slurm is not None and slurm.state == "OUT_OF_MEMORY"):
        return _less_memory(evidence, slurm, saved)
    if state == "given up":
        return _given_up(evidence, first, slurm, saved)
    if first is None:
        return "", ""
    if first.killed:
        return _if_killed(evidence, first), ""
    if first.type == errors.NonFiniteError.__name__:
        return _not_finite(evidence, first, saved)
    if first.type == errors.DataError.__name__:
        return _data(evidence, first, saved)
    if first.type == "RankStuck":
        return "if it comes again at the same place, look at what that rank waits for", ""
    if first.exit_code == errors.ConfigError.exit_code:
        return "put right what the message names, in your configuration or as KEY=VALUE", "KEY=VALUE"
    if first.exit_code == 1 and first.type and not _is_ours(first.type):
        return _MEND, ""
    return "", ""


def _is_ours(name: str) -> bool:
    return hasattr(errors, name)


def _if_killed(evidence: Evidence, first: FirstFailed) -> str:
    if "SIGKILL" not in first.what:
        return ""
    parts = _more_parts(evidence)
    halves = f"train.accumulate_steps={parts} halves what a step needs" if parts else _ONE_SAMPLE
    return _with_memory_word(f"if memory ran out, {halves}")


def _with_memory_word(text: str) -> str:
    return "; ".join(filter(None, (text, memory_word())))


def _less_memory(evidence: Evidence, slurm: SlurmWord | None, saved: Saved) -> tuple[str, str]:
    if slurm is not None and slurm.state == "OUT_OF_MEMORY":
        return (
            "ask for more memory (slurm.options.mem), or for fewer samples at a time",
            "slurm.options.mem=MORE",
        )
    parts = _more_parts(evidence)
    if parts is None:
        return _ONE_SAMPLE, ""
    return (
        "smaller micro-batches train the same and need less memory",
        changed("train.accumulate_steps", str(parts), saved),
    )


def _more_parts(evidence: Evidence) -> int | None:
    """Twice as many micro-batches as now; None where each is a single sample."""
    now = whole(evidence.setting("train.accumulate_steps")) or 1
    ranks = whole((evidence.last_start or {}).get("world_size")) or 1
    samples = whole(evidence.setting("data.global_batch_size"))
    return None if samples is not None and now * ranks >= samples else 2 * now


def _not_finite(evidence: Evidence, first: FirstFailed, saved: Saved) -> tuple[str, str]:
    """By the words of training/step.py: clipping bounds a gradient, and mends no loss that is not finite itself."""
    if not re.search(r"\(loss [-+]?(nan|inf), ", first.what):
        return _smaller_gradient(evidence, saved)
    step = re.search(r"\bstep (\d+): ", first.what)
    start = evidence.start
    if step and start and int(step[1]) == (whole(start.get("first_step")) or 0) + 1:
        return (
            "the loss was not finite before the attempt's first update, so a lower rate alone does not help: look at "
            "the data of that step, and at the loss",
            "",
        )
    rate = evidence.setting("optimizer.lr")
    if isinstance(rate, bool) or not isinstance(rate, int | float):
        return "the loss itself was not finite: lower the rate, or look at the data of that step", ""
    return (
        "the loss itself was not finite: a tenth of the rate, or look at the data of that step",
        changed("optimizer.lr", f"{rate / 10:g}", saved),
    )


def _smaller_gradient(evidence: Evidence, saved: Saved) -> tuple[str, str]:
    now = evidence.setting("train.clip_grad_norm")
    is_limited = isinstance(now, int | float) and not isinstance(now, bool) and now <= _LARGEST_NORM
    norm, further = (f"{now / 2:g}", " further") if is_limited else (str(_LARGEST_NORM), "")
    return (
        f"it would come to the same step again: limit the gradient{further} or lower the rate",
        changed("train.clip_grad_norm", norm, saved),
    )


def _data(evidence: Evidence, first: FirstFailed, saved: Saved) -> tuple[str, str]:
    """By the words of training/fetch.py, readers.py and recorder.py."""
    if re.search(r"\brow \d+: ", first.what) and "`data.bad_rows: skip`" in first.what:
        return (
            "mend that row; data.bad_rows=skip leaves out such rows, and counts them",
            changed("data.bad_rows", "skip", saved),
        )
    if "(data.bad_rows: skip)" in first.what:
        return (
            "every row was bad: data.bad_rows=raise shows the first one's error",
            changed("data.bad_rows", "raise", saved),
        )
    if "a loader process (data.num_workers) died" in first.what:
        now = whole(evidence.setting("data.num_workers"))
        than = f" than {now}" if now else ""
        return _with_memory_word(f"if memory ran out, fewer loader processes{than} need less"), ""
    return _MEND, ""


def _given_up(
    evidence: Evidence, first: FirstFailed | None, slurm: SlurmWord | None, saved: Saved
) -> tuple[str, str]:
    said = (first.what if first else "") + (evidence.status.reason if evidence.status else "")
    if "(slurm.time)" in said:  # see training/time_limit.py
        return _more_time(evidence, slurm)
    between = (_reached(evidence, saved.step or 0) - (saved.step or 0)) // 2
    now = whole(evidence.setting("checkpoint.every_steps")) or CheckpointConfig().every_steps
    ends = "something ends it before the next checkpoint"
    if 2 <= between < now:
        return (
            f"{ends}: find out what (logs); saving sooner gets past it",
            f"checkpoint.every_steps={between}",
        )
    return f"{ends}: mend that error (logs); saving sooner would not get past it", ""


def _more_time(evidence: Evidence, slurm: SlurmWord | None) -> tuple[str, str]:
    now = evidence.setting("slurm.time")
    than = f" than slurm.time={now}" if now is not None else ""
    text = f"give the job more time{than}, or the evaluation more ranks or fewer rows"
    return text, "slurm.time=MORE" if slurm is not None else ""


def _reached(evidence: Evidence, saved: int) -> int:
    """The last step that an attempt did which began at what is saved."""
    began = {
        line["attempt"]
        for line in evidence.lines
        if line["event"] == "start" and whole(line.get("first_step")) == saved
    }
    ends = (line.get("last_step") for line in evidence.lines if line["attempt"] in began)
    return max((whole(step) or 0 for step in ends), default=0)


def _has_test(evidence: Evidence) -> bool:
    data = evidence.config.get("data")
    split = data.get("split") if isinstance(data, dict) else None
    return isinstance(data, dict) and bool(
        data.get("test") or (isinstance(split, dict) and split.get("test"))
    )
