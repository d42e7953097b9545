"""What an all-reduce costs over nodes and workers: latency and bandwidth of the ring and the double binary tree."""

import math
from dataclasses import dataclass
from typing import Literal

Algorithm = Literal["ring", "auto"]  # auto: the faster of ring and tree, as NCCL chooses


@dataclass(frozen=True)
class Link:
    """What a message goes over: `latency_us` to begin, then `bandwidth_gb_s`, in 10^9 bytes a second, each way.

    With `shared_cores` ranks that send at once share it: the bandwidth is of all of them together, and each waits for
    its turn where they are more than the cores that copy for them.
    """

    bandwidth_gb_s: float
    latency_us: float
    shared_cores: int | None = None  # None: each rank has a link of its own

    def latency_s(self, ranks: int) -> float:
        """Seconds from the send to the first byte, where `ranks` ranks send at once."""
        turns = 1.0 if self.shared_cores is None else max(1.0, ranks / self.shared_cores)
        return self.latency_us * 1e-6 * turns

    def rate(self, ranks: int) -> float:
        """Bytes a second that one of `ranks` ranks has, all of which send at once."""
        return self.bandwidth_gb_s * 1e9 / (1 if self.shared_cores is None else ranks)


@dataclass(frozen=True)
class Network:
    """The links between nodes (one node's, for all its workers) and within a node, and who adds up over them."""

    between: Link
    within: Link
    algorithm: Algorithm


@dataclass(frozen=True)
class Cluster:
    """Nodes with equally many workers each."""

    nodes: int
    workers: int
    network: Network

    @property
    def ranks(self) -> int:
        """The world size."""
        return self.nodes * self.workers

    def latency_s(self, hops_between: int, hops_within: int) -> float:
        """Of so many hops one after another, between nodes and within one."""
        between, within = self.network.between, self.network.within
        return hops_between * between.latency_s(1) + hops_within * within.latency_s(self.workers)

    @property
    def rate(self) -> float:
        """Bytes a second over the slowest link that is used.

        Neighbours in a ring or a chain are on one node where that goes, so one flow leaves a node and one enters.
        """
        network = self.network
        rates = [network.between.rate(1)] if self.nodes > 1 else []
        rates += [network.within.rate(self.workers)] if self.workers > 1 else []
        return min(rates, default=math.inf)


def all_reduce_s(size_bytes: float, cluster: Cluster) -> float:
    """Seconds until every rank has the sum, by the cluster's algorithm."""
    ring = ring_s(size_bytes, cluster)
    return ring if cluster.network.algorithm == "ring" else min(ring, tree_s(size_bytes, cluster))


def ring_s(size_bytes: float, cluster: Cluster) -> float:
    """Reduce-scatter and all-gather around a ring of p ranks: 2 (p-1) steps, each with 1/p of the bytes.

    No algorithm moves fewer bytes: Patarasuk and Yuan, Bandwidth optimal all-reduce algorithms for clusters of
    workstations, J. Parallel Distrib. Comput. 69(2), 2009. Gloo's and NCCL's rings are this one. Of the steps
    2 (nodes-1) have the latency between nodes, the others that within one.
    """
    ranks = cluster.ranks
    if ranks == 1:
        return 0.0
    steps_between = 2 * (cluster.nodes - 1)
    latency_s = cluster.latency_s(steps_between, 2 * (ranks - 1) - steps_between)
    return latency_s + 2 * (ranks - 1) / ranks * size_bytes / cluster.rate


def tree_s(size_bytes: float, cluster: Cluster) -> float:
    """Reduce and broadcast along two binary trees over the nodes at once, a chain within each node: NCCL's tree.

    Each tree carries one half, and who is inside in one is a leaf in the other, so that both directions of a link
    are full: Sanders, Speck and Träff, Two-tree algorithms for full bandwidth broadcast, reduction and scan,
    Parallel Computing 35(12), 2009. Logarithmic latency; twice the bytes. Filling the pipeline is not counted.
    """
    if cluster.ranks == 1:
        return 0.0
    latency_s = cluster.latency_s(math.ceil(math.log2(cluster.nodes)), cluster.workers - 1)
    return 2 * latency_s + 2 * size_bytes / cluster.rate


def broadcast_s(size_bytes: float, cluster: Cluster) -> float:
    """A binomial tree, as DDP's broadcast of buffers: Thakur, Rabenseifner and Gropp, Optimization of collective
    communication operations in MPICH, Int. J. High Perform. Comput. Appl. 19(1), 2005."""
    if cluster.ranks == 1 or not size_bytes:
        return 0.0
    between, within = (math.ceil(math.log2(each)) for each in (cluster.nodes, cluster.workers))
    return cluster.latency_s(between, within) + (between + within) * size_bytes / cluster.rate
