"""A training loop written by hand that goes on after a restart: `torchrun --max-restarts=3 restarting.py STEPS`.

In the current folder: checkpoint.pt; clock.jsonl, in which rank 0 says when each step ended, as
benchmarks/trained.py's does; and pid-RANK, which names the rank's process once it trains.
"""

import json
import os
import sys
import time
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.distributed import barrier, destroy_process_group, init_process_group
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader, TensorDataset
from torch.utils.data.distributed import DistributedSampler

SAVES_EVERY = 50  # steps
ROWS, FEATURES, CLASSES, HIDDEN, BATCH = 4096, 6, 4, 256, 64
CHECKPOINT = Path("checkpoint.pt")


def main(steps: int) -> None:
    """One rank, from the last checkpoint to the last step."""
    init_process_group("gloo")
    rank, attempt = int(os.environ["RANK"]), 1 + int(os.environ["TORCHELASTIC_RESTART_COUNT"])
    model = nn.Sequential(
        nn.Linear(FEATURES, HIDDEN),
        nn.ReLU(),
        nn.Linear(HIDDEN, HIDDEN),
        nn.ReLU(),
        nn.Linear(HIDDEN, CLASSES),
    )
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    step = load(model, optimizer)
    wrapped, loss = DistributedDataParallel(model), nn.CrossEntropyLoss()
    sampler: DistributedSampler[tuple[Tensor, ...]] = DistributedSampler(data := make_data())
    loader = DataLoader(data, batch_size=BATCH, sampler=sampler)
    Path(f"pid-{rank}").write_text(str(os.getpid()))
    with Path("clock.jsonl").open("a") as clock:
        for epoch in range(step * BATCH * 2 // ROWS, sys.maxsize):
            sampler.set_epoch(epoch)
            for inputs, targets in loader:
                optimizer.zero_grad()
                loss(wrapped(inputs), targets).backward()
                optimizer.step()
                step += 1
                if rank == 0:
                    clock.write(json.dumps({"attempt": attempt, "step": step, "time": time.time()}) + "\n")
                    clock.flush()
                if step % SAVES_EVERY == 0:
                    save(step, model, optimizer, rank)
                if step >= steps:
                    destroy_process_group()
                    return


def make_data() -> TensorDataset:
    """Separable classes."""
    generator = torch.Generator().manual_seed(1)
    targets = torch.randint(0, CLASSES, (ROWS,), generator=generator)
    centers = torch.randn(CLASSES, FEATURES, generator=generator) * 2
    return TensorDataset(centers[targets] + torch.randn(ROWS, FEATURES, generator=generator), targets)


def load(model: nn.Module, optimizer: torch.optim.Optimizer) -> int:
    """Take the last checkpoint; the step that it is of."""
    if not CHECKPOINT.exists():
        return 0
    state = torch.load(CHECKPOINT)
    model.load_state_dict(state["model"])
    optimizer.load_state_dict(state["optimizer"])
    return int(state["step"])


def save(step: int, model: nn.Module, optimizer: torch.optim.Optimizer, rank: int) -> None:
    """Rank 0 writes, and all wait for it."""
    if rank == 0:
        temporary = CHECKPOINT.with_suffix(".tmp")
        torch.save(
            {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "step": step}, temporary
        )
        temporary.replace(CHECKPOINT)
    barrier()


if __name__ == "__main__":
    main(int(sys.argv[1]))
