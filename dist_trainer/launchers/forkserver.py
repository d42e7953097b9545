"""The process that imports torch once and forks every worker, and what runs first in each of them."""

import importlib
import io
import multiprocessing
import os
import signal
import sys
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from multiprocessing import forkserver, resource_tracker
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, NoReturn

from dist_trainer.adapters.files import open_private
from dist_trainer.adapters.lazy_compiler import COMPILES_VARIABLE
from dist_trainer.adapters.parent_death import AGENT_PID_VARIABLE, kill_me_with_my_parent
from dist_trainer.config.imports import code_folder
from dist_trainer.config.redact import redact
from dist_trainer.config.references import resolve
from dist_trainer.config.schema import Config
from dist_trainer.errors import STOPPED, DistTrainerError, LeftEarly
from dist_trainer.launchers.hangs import write_stacks_when_asked
from dist_trainer.launchers.workers import guess_workers
from dist_trainer.run_folder import RunFolder
from dist_trainer.tracking.heartbeat import Beat, read_heartbeat

_PRELOAD = "dist_trainer.launchers.preload"
_GROUP_SIGNALS = {signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2}


def start(environment: Mapping[str, str]) -> None:
    """Start the forkserver with these variables added, unless it runs; it imports torch while we go on.

    Signals stay blocked until it ignores them: one to the process group in between would end it.
    """
    multiprocessing.set_forkserver_preload([_PRELOAD])
    before = signal.pthread_sigmask(signal.SIG_BLOCK, _GROUP_SIGNALS)
    try:
        with variables({**environment, AGENT_PID_VARIABLE: str(os.getpid())}):
            resource_tracker.ensure_running()  # this one unblocks INT and TERM when it starts
            signal.pthread_sigmask(signal.SIG_BLOCK, _GROUP_SIGNALS)
            forkserver.ensure_running()
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def start_for(config: Config, workers: int | None = None) -> None:
    """Start the forkserver for so many workers, or as many as the configuration may want here."""
    start(variables_for(config, workers or guess_workers(config)))


def variables_for(config: Config, workers: int) -> dict[str, str]:
    """What `start` needs to know of a configuration, launch.env first of all."""
    compiles = {COMPILES_VARIABLE: "1"} if config.train.compile else {}
    environment: dict[str, str] = resolve(config.launch.env)
    return thread_variables(workers) | compiles | environment


def thread_variables(workers: int) -> dict[str, str]:
    """OMP_NUM_THREADS so that the workers share the cores, unless the user chose a number."""
    cores = len(os.sched_getaffinity(0))
    return {"OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS") or str(max(1, cores // workers))}


@contextmanager
def variables(added: Mapping[str, str]) -> Iterator[None]:
    """Environment variables that this process has while the context lasts."""
    before = {name: os.environ.get(name) for name in added}
    os.environ.update(added)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


@contextmanager
def without_main_module() -> Iterator[None]:
    """Keep multiprocessing from importing our `__main__` again in each child.

    It would load the command line in every worker, and run a script that has no `if __name__` guard.
    """
    main = sys.modules["__main__"]
    hidden: dict[str, Any] = {
        name: main.__dict__.pop(name) for name in ("__file__", "__spec__") if name in main.__dict__
    }
    main.__spec__ = None
    try:
        yield
    finally:
        main.__dict__.update(hidden)


def call(
    function: Callable[..., Any],
    *arguments: Any,
    folder: Path,
    until: Callable[[], bool] = lambda: False,
) -> Any:
    """What an importable function returns in a child of the forkserver, in `folder`; its error too.

    The child is killed, and InterruptedError raised, as soon as `until` says so.
    """
    ours, theirs = multiprocessing.Pipe(duplex=False)
    context = multiprocessing.get_context("forkserver")
    child = context.Process(target=_reply, args=(theirs, function, arguments, str(folder)), daemon=True)
    with ours, without_main_module():
        child.start()
        theirs.close()
        try:
            while not ours.poll(0.05) and not until():
                pass
            if until():
                raise InterruptedError
            returned, value = ours.recv()
        except EOFError:
            child.join()
            raise DistTrainerError(f"{function.__name__} ended without a word: {ending(child)}") from None
        finally:
            child.kill()
            child.join()
            child.close()
    if not returned:
        raise value
    return value


def ending(child: Any) -> str:
    """How a process ended, in words."""
    code = child.exitcode
    if code is not None and code < 0:
        return f"killed by {signal.Signals(-code).name}"
    return f"exit code {code}"


def _reply(pipe: Connection, function: Callable[..., Any], arguments: tuple[Any, ...], folder: str) -> None:
    from dist_trainer.launchers import preload

    kill_me_with_my_parent(parent_pid=preload.FORKSERVER_PID)
    os.dup2(2, 1)  # what imported modules print is not the command's result
    _enter(Path(folder))
    try:
        pipe.send((True, function(*arguments)))
    except Exception as error:
        try:
            pipe.send((False, error))
        except Exception:  # an error that does not travel: its text does
            pipe.send((False, DistTrainerError(f"{type(error).__name__}: {error}")))


def work(entry: str, run_folder: str) -> NoReturn:
    """Run `entry` ("module:function") on the run folder, as one rank, with both streams in the rank's log.

    Never returns: torch would have a worker that returns wait for the others, and an error written once more,
    as a pickle in the temporary folder.
    """
    from dist_trainer.adapters.place import Place
    from dist_trainer.launchers import preload

    kill_me_with_my_parent(parent_pid=preload.FORKSERVER_PID)
    place, run = Place.from_environment(), RunFolder(Path(run_folder))
    assert place.fence is not None, "the agent gives every worker its attempt's number"
    _write_streams_to(run.log_path(place.fence, place.rank))
    write_stacks_when_asked()
    try:
        _enter(run.info().working_folder)
        module, _, function = entry.partition(":")
        getattr(importlib.import_module(module), function)(run_folder)
    except SystemExit as leaving:
        _fail(run, place.fence, place.rank, LeftEarly(leaving), _failing(leaving.code))
    except BaseException as error:
        code = error.exit_code if isinstance(error, DistTrainerError) else 1
        _fail(run, place.fence, place.rank, error, code)
    raise SystemExit  # without a code: torch takes 0 for a return


def _failing(code: str | int | None) -> int:
    """The exit code of a failure: 1 for that of a success or a stop, and for what is none."""
    return code if isinstance(code, int) and 0 < code < 256 and code != STOPPED else 1


def _fail(run: RunFolder, attempt: int, rank: int, error: BaseException, code: int) -> NoReturn:
    """Leave word and end, without waiting for threads that may be stuck in a collective."""
    sys.stderr.write(redact("".join(traceback.format_exception(error))))
    with suppress(OSError):  # the disk may be full, which may be the error
        if not any(known.rank == rank for known in run.read_errors(attempt)):
            step = beat.trained_step if (beat := _last_beat(run, attempt, rank)) else None
            run.write_error(attempt, rank, error=error, step=step, exit_code=code)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def _last_beat(run: RunFolder, attempt: int, rank: int) -> Beat | None:
    beat = read_heartbeat(run.heartbeat_path(rank))
    return beat if beat and beat.attempt == attempt else None


def _enter(folder: Path) -> None:
    """Where the configuration's relative paths and the user's own modules are: modules of a job in its snapshot."""
    os.chdir(folder)
    os.environ.pop(
        "PYTHONSAFEPATH", None
    )  # a job keeps the current folder out of ours, not out of the user's own
    sys.path.insert(0, str(code_folder()))


def _write_streams_to(path: Path) -> None:
    log = open_private(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    sys.stdout.flush()
    sys.stderr.flush()
    os.dup2(log, 1)
    os.dup2(log, 2)
    os.close(log)
    sys.stdout, sys.stderr = _Log.open(1), _Log.open(2)


class _Log(io.FileIO):
    """A stream of a worker's: what a full disk does not take is lost, and training goes on."""

    def write(self, content: Any, /) -> int:
        try:
            return super().write(content) or 0
        except OSError:
            return memoryview(content).nbytes

    @classmethod
    def open(cls, descriptor: int) -> io.TextIOWrapper:
        """The stream over an open file that stays open."""
        raw = cls(descriptor, "w", closefd=False)
        return io.TextIOWrapper(
            io.BufferedWriter(raw), encoding="utf-8", errors="backslashreplace", line_buffering=True
        )
