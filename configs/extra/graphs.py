"""What graphs.yaml names: graphs to classify, many of them as one batch, and a graph network."""

import networkx
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.data import Dataset
from torch_geometric.data import Batch, Data
from torch_geometric.nn import GINConv, global_add_pool, global_mean_pool
from torch_geometric.utils import degree, from_networkx


class Grown(Dataset[Data]):
    """`graphs` graphs from number `first` on, of 20 to 39 nodes and about four edges a node.

    The class is how it grew: 0 at random (Erdos and Renyi), 1 a ring with shortcuts (Watts and Strogatz), 2 rich
    get richer (Barabasi and Albert). A node's features are its number of edges, one-hot, up to 7 and more.
    """

    def __init__(self, graphs: int, first: int = 0) -> None:
        self.targets = [number % 3 for number in range(first, first + graphs)]
        self.samples = [grown(number) for number in range(first, first + graphs)]

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> Data:
        return self.samples[index]


def grown(number: int) -> Data:
    """The graph of this number: always the same one."""
    nodes = 20 + number % 20
    graph = (
        networkx.gnm_random_graph(nodes, 2 * nodes, seed=number),
        networkx.watts_strogatz_graph(nodes, 4, 0.3, seed=number),
        networkx.barabasi_albert_graph(nodes, 2, seed=number),
    )[number % 3]
    edges = from_networkx(graph).edge_index
    edges_of_node = degree(edges[0], nodes, dtype=torch.long).clamp(max=7)
    return Data(functional.one_hot(edges_of_node, 8).float(), edges, y=torch.tensor([number % 3]))


def joined(graphs: list[Data]) -> tuple[dict[str, Tensor | int], Tensor]:
    """Many graphs as one that falls into parts: (keywords of the model, classes).

    Plain tensors in a dict, so that the toolkit can make the batch of no graphs that a rank may need: `graphs`,
    their number, is then 0.
    """
    batch = Batch.from_data_list(graphs)
    inputs = {"x": batch.x, "edges": batch.edge_index, "graph_of_node": batch.batch, "graphs": len(graphs)}
    return inputs, batch.y


class GraphNet(nn.Module):
    """Two rounds of messages (GIN) between neighbours, then sum and mean over a graph's nodes."""

    def __init__(self, features: int, hidden: int, classes: int) -> None:
        super().__init__()
        self.first = GINConv(layers(features, hidden))
        self.second = GINConv(layers(hidden, hidden))
        self.head = nn.Linear(2 * hidden, classes)

    def forward(self, x: Tensor, edges: Tensor, graph_of_node: Tensor, graphs: int) -> Tensor:
        x = self.first(x, edges).relu()
        x = self.second(x, edges).relu()
        mean = global_mean_pool(x, graph_of_node, graphs)
        total = global_add_pool(x, graph_of_node, graphs)
        return self.head(torch.cat([mean, total / 30], dim=1))


def layers(width: int, following: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(width, following), nn.ReLU(), nn.Linear(following, following))
