"""Whether MLflow, where tracking.uri says it is, takes metrics: a warning at most, for training goes on without."""

import re
import sqlite3
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from urllib.parse import urlsplit

from dist_trainer.doctor.file_system import nearest, scratch, words_of
from dist_trainer.doctor.findings import Finding
from dist_trainer.doctor.mlflow_login import authorization
from dist_trainer.doctor.mounts import mount_of
from dist_trainer.doctor.subject import Subject
from dist_trainer.errors import DistTrainerError
from dist_trainer.tracking.settings import database_of

NAME = "MLflow"
_ANSWERS_WITHIN_S = 3.0
_SLOW_S = 1.0
_LATER = "the run trains without it, and dist-trainer sync brings it the metrics"


def check_mlflow(subject: Subject) -> Iterator[Finding]:
    """The server's own word that it is well, or whether its database or folder can be written."""
    uri = subject.tracking_uri
    if not uri:
        yield Finding(NAME, "skipped", "tracking.uri is null: metrics stay in the journal")
    elif uri.startswith(("http://", "https://")):
        yield _server(uri)
    elif (file := database_of(uri)) is not None:
        yield _database(file)
    elif ":" in uri or uri == "databricks":
        yield Finding(NAME, "skipped", f"nobody can look at {shown(uri)} from outside")
    else:
        yield _folder(Path(uri))


def shown(uri: str) -> str:
    """Without a user and a password."""
    return re.sub(r"//[^/@]*@", "//", uri)


def _server(uri: str) -> Finding:
    place, login, began = shown(uri).rstrip("/"), authorization(uri), time.monotonic()
    try:
        _ask(uri, "health", login)
        took_s = time.monotonic() - began
        theirs = _ask(uri, "version", login).strip()
    except urllib.error.HTTPError as error:
        error.close()
        return _no_mlflow(place, error.code, has_login=login is not None)
    except TimeoutError:
        words = f"{place} took the connection and said nothing for {_ANSWERS_WITHIN_S:g} s"
        return Finding(NAME, "warning", words, f"restart it, or whatever stands before it; {_LATER}")
    except (OSError, ValueError) as error:  # urllib's own errors are OSErrors
        reason = getattr(error, "reason", error)
        if isinstance(reason, TimeoutError):
            words = f"{place} does not answer within {_ANSWERS_WITHIN_S:g} s"
        else:
            words = f"{place} does not answer: {getattr(reason, 'strerror', None) or reason}".lower()
        return Finding(NAME, "warning", words, f"start it, or mend tracking.uri; {_LATER}")
    return _well(place, theirs, took_s)


def _no_mlflow(place: str, code: int, *, has_login: bool) -> Finding:
    if code in (401, 403) and has_login:
        words = f"{place} refuses the login (HTTP {code})"
        advice = "mend MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD, or MLFLOW_TRACKING_TOKEN"
    elif code in (401, 403):
        words = f"{place} wants a login (HTTP {code})"
        advice = "set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD"
    else:
        words = f"{place} answers with HTTP {code}"
        advice = "tracking.uri: is it MLflow that answers there?"
    return Finding(NAME, "warning", words, f"{advice}; {_LATER}")


def _well(place: str, theirs: str, took_s: float) -> Finding:
    ours, found = _client(), f"{place} is {theirs}"
    if re.fullmatch(r"\d+(\.\w+)+", theirs) is None:
        return Finding(
            NAME, "warning", f"{place} answers, and not as MLflow does", f"mend tracking.uri; {_LATER}"
        )
    if theirs.split(".")[0] != ours.split(".")[0]:
        advice = f"pip install 'mlflow=={theirs}' here, or a server of the client's version"
        return Finding(NAME, "warning", f"{found}, the client here {ours}", advice)
    if took_s > _SLOW_S:
        advice = "metrics come late; training does not wait for it"
        return Finding(NAME, "warning", found, advice, {"took_s": took_s})
    return Finding(NAME, "fine", f"{found}, the client {ours}")


def _client() -> str:
    try:
        return version("mlflow")
    except PackageNotFoundError:
        return "none"


def _ask(uri: str, what: str, login: str | None) -> str:
    parts = urlsplit(uri)
    host = parts.netloc.rpartition("@")[2]
    request = urllib.request.Request(f"{parts.scheme}://{host}{parts.path.rstrip('/')}/{what}")
    if login is not None:
        request.add_unredirected_header("Authorization", login)  # who it is sent on to is not to have it
    with urllib.request.urlopen(request, timeout=_ANSWERS_WITHIN_S) as answer:
        content: bytes = answer.read(4096)
    return content.decode(errors="replace")


def _database(file: Path) -> Finding:
    problem = _unwritable(file.parent)
    if problem is None and file.exists():
        problem = _unreadable(file)
    if problem is not None:
        return Finding(NAME, "warning", f"{file}: {problem}", f"mend it, or tracking.uri; {_LATER}")
    mount = mount_of(nearest(file.parent).resolve())
    if mount is not None and mount.is_shared:
        advice = "its locks are not made for that; for several machines start a server: mlflow server"
        return Finding(NAME, "warning", f"{file}: sqlite on {mount.kind}", advice)
    return Finding(NAME, "fine", f"sqlite, {file}")


def _unreadable(file: Path) -> str | None:
    try:
        with sqlite3.connect(f"{file.absolute().as_uri()}?mode=rw", uri=True, timeout=1.0) as database:
            database.execute("select count(*) from sqlite_master").fetchone()
        database.close()
    except sqlite3.Error as error:
        return str(error)
    return None


def _folder(folder: Path) -> Finding:
    if problem := _unwritable(folder):
        return Finding(NAME, "warning", f"{folder}: {problem}", f"mend tracking.uri; {_LATER}")
    return Finding(NAME, "fine", f"files in {folder}")


def _unwritable(folder: Path) -> str | None:
    try:
        with scratch(nearest(folder)):
            return None
    except (OSError, DistTrainerError) as error:
        return words_of(error)
