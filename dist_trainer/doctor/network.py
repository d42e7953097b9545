"""Whether processes can speak to each other: this machine's name, its interfaces, and real ranks over each."""

import json
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, replace

from dist_trainer.adapters.interfaces import NAMING, interfaces, named_interfaces
from dist_trainer.adapters.records import read_record
from dist_trainer.doctor.findings import Finding
from dist_trainer.doctor.ranks import Meeting, Plan
from dist_trainer.doctor.subject import Subject
from dist_trainer.launchers.workers import gpus_by_driver

_LAST_WORDS = 300
_AT_MOST, _AT_MOST_ACROSS = 8, 4  # a machine with containers may have any number of interfaces
_TO_END_S = 5.0


@dataclass(frozen=True)
class Across:
    """How this node's rank meets those of the others, and the interfaces that all of them have."""

    meeting: Meeting
    interfaces: tuple[str, ...]


def check_names(subject: Subject) -> Iterator[Finding]:
    """The interfaces that variables name, and the address that this machine's own name leads to."""
    there = {each.name: each for each in interfaces()}
    named = named_interfaces(subject.config.launch.env)
    for variable, value in named.items():
        yield _named(variable, value, list(there))
    if "GLOO_SOCKET_IFNAME" in named:
        return  # the name is not asked then
    name = socket.gethostname()
    try:
        address = socket.getaddrinfo(name, None)[0][4][0]
    except OSError as error:
        advice = "a line for it in /etc/hosts, or launch.env: {GLOO_SOCKET_IFNAME: ...}"
        yield Finding("host name", "broken", f"{name} leads nowhere: {error.strerror}", advice)
        return
    yield _host_name(
        subject, name, str(address), [each.name for each in there.values() if not each.is_loopback]
    )


def _named(variable: str, value: str, there: Sequence[str]) -> Finding:
    """gloo takes a list of whole names; NCCL one of beginnings, of exact names after =, of others after ^."""
    if variable.startswith("NCCL") and value.startswith("^"):
        return Finding(variable, "fine", value)
    wanted = value.lstrip("=").split(",")
    is_exact = variable.startswith("GLOO") or value.startswith("=")
    lost = [name for name in wanted if not any(_chooses(variable, value, name, one) for one in there)]
    if not lost or (not is_exact and len(lost) < len(wanted)):
        return Finding(variable, "fine", value)
    advice = f"name one of {', '.join(there)} in launch.env, or in the shell if it is not there"
    return Finding(variable, "broken", f"no interface {', '.join(lost)} that is up here", advice)


def _host_name(subject: Subject, name: str, address: str, others: Sequence[str]) -> Finding:
    found = f"{name} is {address}"
    is_own = address.startswith("127.") or address == "::1"
    if not is_own or subject.config.slurm.nodes == 1 or not others:
        return Finding("host name", "fine", found)
    advice = f"other nodes cannot reach it: launch.env: {{GLOO_SOCKET_IFNAME: {others[0]}}} in the profile"
    return Finding("host name", "warning", found, advice)


def check_ranks(subject: Subject, across: Callable[[], Across | None] = lambda: None) -> Iterator[Finding]:
    """Two ranks over each interface, and one on each GPU; `across` is waited for, and adds those of other nodes."""
    plan = _plan(subject, across())
    yield from _as_it_matters(_run(plan), named_interfaces(subject.config.launch.env))


def ranks_within_s(subject: Subject, *, meet_within_s: float | None) -> float:
    """How long they may take; with nodes that have to meet within some time also across those."""
    if meet_within_s is None:
        return _plan(subject, None).within_s + _TO_END_S
    names = tuple(map(str, range(_AT_MOST_ACROSS)))
    others = Across(Meeting("", 0, 0, 2), names)
    return _plan(subject, others).within_s + _TO_END_S + meet_within_s


def _plan(subject: Subject, others: Across | None) -> Plan:
    env, device = subject.config.launch.env, subject.config.launch.device
    here = (each.name for each in interfaces())
    return Plan(
        interfaces=_some(here, named_interfaces(env), _AT_MOST),
        has_to_have_gpus=device == "cuda" or (device == "auto" and gpus_by_driver() > 0),
        uses_gpus=device != "cpu",
        across=others.meeting if others else None,
        # by the configuration alone, which is the same on all nodes: so they go through them in one order
        common=_some(others.interfaces, env, _AT_MOST_ACROSS) if others else (),
    )


def _some(names: Iterable[str], named: Mapping[str, str], at_most: int) -> tuple[str, ...]:
    """As many as there is time for, those that variables name first."""
    return tuple(sorted(names, key=lambda name: not _is_named(name, named))[:at_most])


def _is_named(interface: str, named: Mapping[str, str]) -> bool:
    """Whether a variable chooses it."""
    return any(
        not value.startswith("^")
        and any(_chooses(variable, value, word, interface) for word in value.lstrip("=").split(","))
        for variable, value in named.items()
        if variable in NAMING and value
    )


def _chooses(variable: str, value: str, word: str, interface: str) -> bool:
    """gloo takes whole names; NCCL beginnings, and whole ones after =."""
    is_exact = variable.startswith("GLOO") or value.startswith("=")
    return interface == word or (not is_exact and interface.startswith(word))


def _as_it_matters(findings: Iterator[Finding], named: Mapping[str, str]) -> Iterator[Finding]:
    """An interface that nobody asked for may be without a way; one that was named, or lo, may not."""
    for finding in findings:
        interface = finding.name.rpartition(" ")[2]
        matters = interface == "lo" or _is_named(interface, named)
        yield replace(finding, state="broken") if finding.state == "warning" and matters else finding


def _run(plan: Plan) -> Iterator[Finding]:
    """What the process says, line by line, until it ends; it dies with us, and after its time."""
    listening = (plan.across.listens_by,) if plan.across and plan.across.listens_by is not None else ()
    command = [sys.executable, "-m", "dist_trainer.doctor.ranks", json.dumps(asdict(plan))]
    with (
        tempfile.TemporaryFile() as errors,
        subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=errors, pass_fds=listening
        ) as process,
    ):
        ending = threading.Timer(plan.within_s, process.kill)  # its ranks die with it
        ending.daemon = True
        ending.start()
        last = ""
        try:
            assert process.stdout is not None
            for line in process.stdout:
                with suppress(ValueError):
                    finding = read_record(Finding, line)
                    last = finding.name
                    yield finding
            code = process.wait()
        finally:
            is_late = not ending.is_alive()
            ending.cancel()
            process.kill()
        if is_late:
            yield _late(plan.within_s, last)
        elif code:
            errors.seek(0)
            yield _ended(code, errors.read().decode(errors="replace"))


def _late(within_s: float, last: str) -> Finding:
    if not last:
        advice = "the disk with Python's packages is slow, or hangs: time python -c 'import torch'"
        return Finding("torch", "broken", f"not imported within {within_s:g} s", advice)
    advice = "what comes next hangs; on a good machine all of it takes a few seconds"
    return Finding("ranks", "broken", f"nothing more within {within_s:g} s after {last}", advice)


def _ended(code: int, said: str) -> Finding:
    if code < 0:
        words = f"ended by signal {-code}"
    else:
        words = (said.strip().splitlines() or [f"exit code {code}"])[-1][-_LAST_WORDS:]
    return Finding(
        "torch", "broken", words, "python -c 'import torch' shows it; pip install --force-reinstall torch"
    )
