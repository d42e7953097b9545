"""What a plan assumes about a cluster where nobody says: links, failures, restarts; where each number is from."""

from collections.abc import Iterator
from dataclasses import dataclass, replace

from dist_trainer.errors import UsageError
from dist_trainer.planning.all_reduce import Algorithm, Link, Network


@dataclass(frozen=True)
class Given:
    """What the command was told; None for what it was not."""

    bandwidth_gb_s: float | None = None
    latency_us: float | None = None
    local_bandwidth_gb_s: float | None = None
    local_latency_us: float | None = None
    failures_per_node_year: float | None = None
    restart_s: float | None = None

    def __post_init__(self) -> None:
        for flag, value in (
            ("--bandwidth", self.bandwidth_gb_s),
            ("--local-bandwidth", self.local_bandwidth_gb_s),
        ):
            if value is not None and value <= 0:
                raise UsageError(f"{flag} must be more than 0 GB/s, got {value:g}")
        for flag, value, unit in (
            ("--latency", self.latency_us, "microseconds"),
            ("--local-latency", self.local_latency_us, "microseconds"),
            ("--failures", self.failures_per_node_year, "failures per node and year"),
            ("--restart", self.restart_s, "seconds"),
        ):
            if value is not None and value < 0:
                raise UsageError(f"{flag} must be 0 {unit} or more, got {value:g}")


@dataclass(frozen=True)
class _Usual:
    network: Network
    between: str
    within: str


_USUAL = {
    "cpu": _Usual(
        Network(Link(1.25, 80), Link(2, 50), "ring"),
        "10 Gb/s Ethernet",
        "loopback, which a node's ranks share",
    ),
    "cuda": _Usual(
        Network(Link(12.5, 10), Link(100, 5), "auto"), "100 Gb/s InfiniBand", "NVLink, for each GPU"
    ),
}
# 419 unexpected interruptions in 54 days on 16,384 GPUs in nodes of eight:
# Grattafiori et al., The Llama 3 Herd of Models, arXiv:2407.21783, 2024, section 3.3.4
FAILURES_PER_NODE_YEAR = 1.4
RESTART_S = 120.0  # launch.timeout_s bounds how long a hang goes unnoticed; then start-up, join and read


@dataclass(frozen=True)
class Assumptions:
    """A plan's numbers that nobody measured, and a line on each with its option."""

    network: Network
    failures_per_node_year: float
    restart_s: float
    lines: tuple[str, ...]


def assume(given: Given, device: str, *, workers: int, cores: int) -> Assumptions:
    """What was given, and for the rest what is usual for the device: gloo on a CPU, NCCL on a GPU.

    `workers` CPU ranks of a node share `cores` cores, and its loopback.
    """
    usual = _USUAL[device]
    between = _link(usual.network.between, given.bandwidth_gb_s, given.latency_us)
    within = _link(usual.network.within, given.local_bandwidth_gb_s, given.local_latency_us)
    shared = replace(within, shared_cores=cores) if device == "cpu" else within
    algorithm: Algorithm = usual.network.algorithm
    failures = _or(given.failures_per_node_year, FAILURES_PER_NODE_YEAR)
    restart_s = _or(given.restart_s, RESTART_S)
    lines = (
        _link_line("between nodes", between, usual.network.between, usual.between, "--"),
        _link_line("in a node", within, usual.network.within, usual.within, "--local-"),
        "gloo's ring" if algorithm == "ring" else "NCCL's ring or tree, whichever is faster",
        *_failure_lines(given, failures, restart_s),
    )
    if device == "cpu" and workers > cores:
        lines += (f"{workers} workers of a node take turns on {cores} cores, as many as here: --workers",)
    return Assumptions(Network(between, shared, algorithm), failures, restart_s, lines)


def _or(given: float | None, usual: float) -> float:
    return usual if given is None else given


def _link(usual: Link, bandwidth_gb_s: float | None, latency_us: float | None) -> Link:
    return Link(_or(bandwidth_gb_s, usual.bandwidth_gb_s), _or(latency_us, usual.latency_us))


def _link_line(where: str, link: Link, usual: Link, name: str, dashes: str) -> str:
    source = f" ({name})" if link == usual else ""
    return (
        f"{where} {link.bandwidth_gb_s:g} GB/s and {link.latency_us:g} us{source}: "
        f"{dashes}bandwidth, {dashes}latency"
    )


def _failure_lines(given: Given, failures: float, restart_s: float) -> Iterator[str]:
    source = " (as for Llama 3)" if given.failures_per_node_year is None else ""
    yield f"{failures:g} failures per node and year{source}: --failures"
    yield f"{restart_s:g} s from a failure until steps are done again: --restart"
