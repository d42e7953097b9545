"""torch's compiler is not imported by what does not compile, and is the real one for whoever asks for it.

Each is an assumption on torch's internals; the forkserver of tests.ranks defers the compiler, as that of a training.
"""

import sys
import threading
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader, TensorDataset

from dist_trainer.adapters.distributed import join
from dist_trainer.adapters.lazy_compiler import COMPILER, when_compiler_loads
from tests.ranks import run_ranks

pytestmark = pytest.mark.timeout(90)
OPTIMIZERS = ("SGD", "Adam", "AdamW", "Adagrad", "Adadelta", "Adamax", "NAdam", "RAdam", "RMSprop", "LBFGS")


def is_there() -> bool:
    return f"{COMPILER}.convert_frame" in sys.modules


def net() -> nn.Module:
    return nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 2))


def take_step(name: str, model: nn.Module) -> None:
    optimizer = getattr(torch.optim, name)(model.parameters(), lr=0.01)

    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        loss: torch.Tensor = model(torch.ones(5, 3)).square().mean()
        loss.backward()
        return loss

    optimizer.step(closure)
    optimizer.load_state_dict(optimizer.state_dict())
    optimizer.zero_grad()


def train_plainly() -> list[str]:
    join("cpu", timeout_s=20)
    importers = []
    for name in OPTIMIZERS:
        take_step(name, DistributedDataParallel(net()))
        importers += [name] if is_there() else []
    with torch.autocast("cpu", dtype=torch.bfloat16), torch.no_grad():
        net()(torch.ones(2, 3))
    list(DataLoader(TensorDataset(torch.ones(4, 3)), batch_size=2, shuffle=True))
    torch.manual_seed(1)
    dist.destroy_process_group()
    return [*importers, *(["something else"] if is_there() else [])]


def test_neither_the_optimizers_nor_ddp_nor_a_loader_imports_it() -> None:
    assert run_ranks(2, train_plainly) == [[], []]


def import_a_part() -> bool:
    import torch._dynamo.config as part

    return part is torch._dynamo.config is sys.modules[part.__name__] and part.__spec__ is not None


def import_a_part_it_has_functions_in() -> bool:
    import torch._dynamo.utils

    return torch._dynamo.utils is sys.modules["torch._dynamo.utils"] and torch._dynamo.utils.counters == {}


def import_a_name() -> bool:
    from torch._dynamo import reset

    return callable(reset)


def compile_a_function() -> bool:
    calls = []

    def backend(graph: torch.fx.GraphModule, inputs: Any) -> Any:
        calls.append(graph)
        return graph.forward

    doubled = torch.compile(lambda x: 2 * x, backend=backend)(torch.ones(3))
    return len(calls) == 1 and doubled.tolist() == [2, 2, 2]


def leave_a_function_out() -> bool:
    @torch.compiler.disable
    def left_out(x: torch.Tensor) -> bool:
        return torch.compiler.is_compiling()

    compiled = torch.compile(lambda x: (left_out(x), torch.compiler.is_compiling()), backend="eager")
    return compiled(torch.ones(2)) == (False, True)


def ask_from_two_threads() -> bool:
    found: list[Any] = []
    threads = [threading.Thread(target=lambda: found.append(torch._dynamo.config)) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return len(found) == 2 and found[0] is found[1]


def use(way: Callable[[], bool]) -> dict[str, Any]:
    """After a plain step, so that torch's own functions were told they need no leaving out."""
    told: list[str] = []
    when_compiler_loads(lambda: told.append("loaded"))
    early: Any = vars(torch._dynamo)["graph_break"]  # who imported it by name has this one
    take_step("AdamW", net())
    before = is_there()
    worked = way()
    when_compiler_loads(lambda: told.append("there"))
    graphs = []

    def backend(graph: torch.fx.GraphModule, inputs: Any) -> Any:
        graphs.append(graph)
        return graph.forward

    def breaks(x: torch.Tensor) -> torch.Tensor:
        x = x + 1
        early()
        return x * 2

    torch.compile(breaks, backend=backend)(torch.ones(2))
    take_step("AdamW", net())
    cached: Any = torch.optim.Optimizer.zero_grad
    left_out = vars(cached.__wrapped__)["__dynamo_disable"] is not cached.__wrapped__
    finders = [finder for finder in sys.meta_path if type(finder).__module__.startswith("dist_trainer")]
    return {
        "before": before,
        "worked": worked,
        "told": told,
        "graphs": len(graphs),
        "left out": left_out,
        "finders": len(finders),
    }


@pytest.mark.parametrize(
    "way",
    [
        import_a_part,
        import_a_part_it_has_functions_in,
        import_a_name,
        compile_a_function,
        leave_a_function_out,
        ask_from_two_threads,
    ],
)
def test_whoever_asks_for_it_has_the_real_one(way: Callable[[], bool]) -> None:
    (found,) = run_ranks(1, use, way)
    assert found == {
        "before": False,
        "worked": True,
        "told": ["loaded", "there"],
        "graphs": 2,
        "left out": True,
        "finders": 0,
    }
