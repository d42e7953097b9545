"""Starts this node's workers, watches them, restarts them: the only importer of torch.distributed.elastic.

torch's agent gives the rendezvous, the workers' environment and the loop of restarts. Ours are the signals,
the logs, who ends whom after a failure, and the choice of another attempt.
"""

import json
import os
import signal
import socket
from collections.abc import Callable, Mapping
from contextlib import ExitStack, suppress
from dataclasses import astuple, dataclass
from datetime import timedelta
from types import MappingProxyType
from typing import Any

import torch
from torch.distributed import DistStoreError, TCPStore  # type: ignore[attr-defined]
from torch.distributed.elastic.agent.server.api import RunResult, WorkerGroup, WorkerSpec, WorkerState
from torch.distributed.elastic.agent.server.local_elastic_agent import LocalElasticAgent
from torch.distributed.elastic.multiprocessing import LogsDest, LogsSpecs
from torch.distributed.elastic.rendezvous import (
    RendezvousHandler,
    RendezvousInfo,
    RendezvousParameters,
    RendezvousStoreInfo,
)
from torch.distributed.elastic.rendezvous.api import RendezvousError
from torch.distributed.elastic.rendezvous.c10d_rendezvous_backend import create_backend
from torch.distributed.elastic.rendezvous.dynamic_rendezvous import create_handler

from dist_trainer.adapters.listening import listen_on
from dist_trainer.adapters.place import FENCE_VARIABLE
from dist_trainer.config.schema import Config
from dist_trainer.errors import FencedOut
from dist_trainer.launchers import forkserver
from dist_trainer.launchers.plain_log import plain_log
from dist_trainer.launchers.processes import Worker
from dist_trainer.launchers.signals import StopRequested, StopRequests
from dist_trainer.launchers.supervisor import NodeEnd, Outcome, Supervisor
from dist_trainer.run_folder import RunFolder

_POLL_S = 0.1
_FENCE = "fence"
_OTHERS_MAY_TAKE_S = 3.0
_RENDEZVOUS_TIMEOUT_S = 600
# torch's agent installs handlers of its own that raise; it may have a signal that nobody ever sends
_ELASTIC_ENVIRONMENT = {
    "TORCHELASTIC_SIGNALS_TO_HANDLE": "SIGRTMAX",
    # several nodes: a fresh store for every start, or workers read the addresses of dead peers
    "TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1",
}


@dataclass(frozen=True)
class Nodes:
    """This node among those of a run; `endpoint` is host:port on node 0, where the agents meet.

    Node 0 may give port 0 for any free one, and is told by `publish` which it is. It writes for all.
    """

    count: int = 1
    rank: int = 0
    endpoint: str | None = None
    address: str | None = None  # by which the other nodes reach this one; default: its full host name
    publish: Callable[[int], None] = lambda port: None


def visible_gpus() -> int:
    """How many GPUs a worker would see."""
    return torch.cuda.device_count()


def launch(
    run: RunFolder,
    config: Config,
    *,
    workers: int,
    entry: str = "dist_trainer.worker:main",
    nodes: Nodes = Nodes(),
    requests: StopRequests | None = None,
    variables: Mapping[str, str] = MappingProxyType({}),
    leave_after_s: float | None = None,
    on_tick: Callable[[], None] = lambda: None,
    report: Callable[[str], None] = print,
) -> Outcome:
    """Run `entry` in this node's workers until the run ends, restarting them from the last checkpoint.

    One caller per node; with several, each gives the same count and endpoint. Workers get `variables` beside
    launch.env, and are ended `leave_after_s` after TERM where whoever sent it kills soon. `on_tick` is called
    ten times a second in between, `report` with each sentence the user should read. Signals are ours meanwhile:
    through `requests` where the caller listens already.
    """
    environment = forkserver.variables_for(config, workers) | dict(variables)
    name = nodes.address or socket.gethostname()
    supervisor = Supervisor(
        run,
        config.launch,
        report=report,
        leads=nodes.rank == 0,
        node=name,
        leave_after_s=leave_after_s,
    )
    with ExitStack() as stack:
        supervisor.requests = requests or stack.enter_context(StopRequests().listening())
        forkserver.start(environment)
        stack.enter_context(plain_log(run.path / "logs" / f"agent-{nodes.rank}.log"))
        stack.enter_context(forkserver.variables(_ELASTIC_ENVIRONMENT))
        spec = _spec(run, config, workers, entry, nodes)
        agent = _Agent(spec, supervisor, environment, on_tick, leads=nodes.rank == 0)
        return agent.supervise()


def _spec(run: RunFolder, config: Config, workers: int, entry: str, nodes: Nodes) -> WorkerSpec:
    return WorkerSpec(
        role="worker",
        local_world_size=workers,
        entrypoint=forkserver.work,
        args=(entry, str(run.path)),
        rdzv_handler=_OneNode() if nodes.count == 1 else _many_nodes(run.info().run_id, nodes),
        max_restarts=config.launch.max_restarts,
        monitor_interval=_POLL_S,
    )


class _Agent(LocalElasticAgent):
    """torch's agent with the supervisor's judgement in the two places where it decides."""

    def __init__(
        self,
        spec: WorkerSpec,
        supervisor: Supervisor,
        environment: dict[str, str],
        on_tick: Callable[[], None],
        *,
        leads: bool,
    ) -> None:
        super().__init__(
            spec, _Streams(supervisor, environment), start_method="forkserver", exit_barrier_timeout=60
        )
        self._supervisor = supervisor
        self._environment = environment
        self._on_tick = on_tick
        self._handler = spec.rdzv_handler
        self._leads = leads
        if not isinstance(self._handler, _OneNode):
            supervisor.share = self._share

    def supervise(self) -> Outcome:
        """Run to the end, whatever it is."""
        try:
            self.run()
        except RendezvousError as error:
            self._supervisor.lost_nodes(error)
        except FencedOut as error:
            self._supervisor.fenced_out(error)
        except StopRequested:
            self._supervisor.stop_without_workers()
        finally:
            self._handler.shutdown()
        return self._supervisor.outcome()

    def _rendezvous(self, worker_group: WorkerGroup) -> None:
        with self._supervisor.requests.interrupting():  # other nodes may take minutes, or never come
            super()._rendezvous(worker_group)

    def _start_workers(self, worker_group: WorkerGroup) -> dict[int, Any]:
        forkserver.start(self._environment)  # it may have been killed
        self._supervisor.attempt = self._agree_on_fence(worker_group.store)
        with forkserver.without_main_module():
            pids: dict[int, Any] = super()._start_workers(worker_group)
        self._supervisor.started(self._workers(worker_group))
        return pids

    def _agree_on_fence(self, store: Any) -> int:
        """Node 0 takes it and tells the others through the store, which is new for each start."""
        if self._leads:
            try:
                store.set(_FENCE, str(self._supervisor.take_fence()))
            except FencedOut:
                store.set(_FENCE, "0")
                raise
        fence = int(store.get(_FENCE))
        if fence == 0:
            raise FencedOut("the run went on elsewhere")
        return fence

    def _share(self, own: NodeEnd) -> list[NodeEnd]:
        """Tell the other nodes how ours ended, and hear how theirs did, if they still can say so."""
        group = self._worker_group
        store: Any = group.store
        store.set(f"end-{group.group_rank}", json.dumps(astuple(own)))
        others = [f"end-{rank}" for rank in range(group.group_world_size or 1) if rank != group.group_rank]
        with suppress(DistStoreError, RuntimeError):  # a node that is gone says nothing
            store.wait(others, timedelta(seconds=_OTHERS_MAY_TAKE_S))
        told = [json.loads(store.get(key)) for key in others if store.check([key])]
        ends = [
            NodeEnd(n, ranks, {int(rank): code for rank, code in codes.items()}) for n, ranks, codes in told
        ]
        return [own, *ends]

    def _monitor_workers(self, worker_group: WorkerGroup) -> RunResult:
        self._on_tick()
        state = self._supervisor.watch()
        if state == "succeeded":
            nothing = {worker.global_rank: None for worker in worker_group.workers}
            return RunResult(state=WorkerState.SUCCEEDED, return_values=nothing)
        if state == "failed":
            if not self._supervisor.may_restart(self._remaining_restarts):
                self._remaining_restarts = 0
            return RunResult(state=WorkerState.FAILED)
        return RunResult(state=WorkerState.HEALTHY)

    def _shutdown(self, death_sig: signal.Signals = signal.SIGTERM, timeout: int = 30) -> None:
        self._supervisor.clean_up()
        super()._shutdown(death_sig, timeout)

    def _workers(self, group: WorkerGroup) -> list[Worker]:
        assert self._pcontext is not None
        # torch gives pids, and exit codes nowhere else
        processes = self._pcontext._pc.processes  # type: ignore[attr-defined]
        return [Worker(worker.global_rank, processes[worker.local_rank]) for worker in group.workers]


class _Streams(LogsSpecs):
    """Gives each worker its attempt's number; the worker writes its own log (see forkserver.work)."""

    def __init__(self, supervisor: Supervisor, environment: dict[str, str]) -> None:
        super().__init__()
        self._supervisor = supervisor
        self._environment = environment

    def reify(self, envs: dict[int, dict[str, str]]) -> LogsDest:
        for variables in envs.values():
            variables.update(self._environment)
            variables[FENCE_VARIABLE] = str(self._supervisor.attempt)
            variables["TORCHELASTIC_ERROR_FILE"] = ""
        nothing = dict.fromkeys(envs, "")
        return LogsDest(stdouts=nothing, stderrs=nothing, error_files=dict.fromkeys(envs, os.devnull))

    @property
    def root_log_dir(self) -> str:
        return os.devnull


class _OneNode(RendezvousHandler):
    """One agent has nobody to wait for: a fresh store in this process, on a free port, for every start."""

    _ADDRESS = "127.0.0.1"

    def next_rendezvous(self) -> RendezvousInfo:
        port, listening = listen_on(self._ADDRESS)  # torch itself would listen on every interface
        store = TCPStore(
            self._ADDRESS, port, is_master=True, wait_for_workers=False, master_listen_fd=listening
        )
        return RendezvousInfo(store, 0, 1, RendezvousStoreInfo(self._ADDRESS, store.port))

    @property
    def use_agent_store(self) -> bool:
        return True

    def get_backend(self) -> str:
        return "one-node"

    def get_run_id(self) -> str:
        return "one-node"

    def num_nodes_waiting(self) -> int:
        return 0

    def is_closed(self) -> bool:
        return False

    def set_closed(self) -> None:
        """Nobody else could join."""

    def shutdown(self) -> bool:
        return True


def _many_nodes(run_id: str, nodes: Nodes) -> RendezvousHandler:
    assert nodes.endpoint, "several nodes need an endpoint to meet at"
    parameters = RendezvousParameters(
        "c10d",
        nodes.endpoint,
        run_id,
        min_nodes=nodes.count,
        max_nodes=nodes.count,
        local_addr=nodes.address or socket.getfqdn(),
        is_host=nodes.rank == 0,
        join_timeout=_RENDEZVOUS_TIMEOUT_S,
    )
    backend, store = create_backend(parameters)
    if nodes.rank == 0:
        nodes.publish(store.port)  # type: ignore[attr-defined]
    return create_handler(store, backend, parameters)
