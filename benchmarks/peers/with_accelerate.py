"""The same loop with HF Accelerate: its prepare, its backward, its gather_for_metrics."""

from typing import Any

import torch
from accelerate import Accelerator
from torch import nn

from benchmarks.peers.protocol import Asked, Stamps, asked, leave
from benchmarks.peers.work import Work, batches, work


def main() -> None:
    """Train or evaluate."""
    accelerator = Accelerator(cpu=True)
    given = asked()
    stamps = Stamps()
    do = evaluate if given.task == "evaluate" else train
    do(accelerator, given, work(given), stamps)
    if accelerator.is_main_process:
        stamps.write(given.times)
    accelerator.end_training()
    leave()


def train(accelerator: Any, given: Asked, parts: Work, stamps: Stamps) -> None:
    """As its documentation's first page has it."""
    model, optimizer, loader = accelerator.prepare(
        parts.model, parts.optimizer(parts.model), parts.loader(shuffle=True)
    )
    criterion = nn.CrossEntropyLoss()
    for inputs, targets in batches(loader, loader, steps=given.steps):
        optimizer.zero_grad()
        loss = criterion(model(inputs), targets)
        accelerator.backward(loss)
        optimizer.step()
        if accelerator.is_main_process:
            stamps.tick()


@torch.no_grad()
def evaluate(accelerator: Any, given: Asked, parts: Work, stamps: Stamps) -> None:
    """Loss and accuracy of every row, none of them twice: gather_for_metrics drops what was padded."""
    model, loader = accelerator.prepare(parts.model, parts.loader())
    criterion = nn.CrossEntropyLoss(reduction="none")
    model.eval()
    for _ in range(given.steps):
        stamps.tick()
        loss = right = rows = 0.0
        for inputs, targets in loader:
            outputs = model(inputs)
            losses, hits = accelerator.gather_for_metrics(
                (criterion(outputs, targets), outputs.argmax(dim=1) == targets)
            )
            loss, right, rows = loss + float(losses.sum()), right + float(hits.sum()), rows + len(hits)
        stamps.tick()
        assert rows == len(parts.dataset), f"{rows} of {len(parts.dataset)} rows"  # type: ignore[arg-type]


if __name__ == "__main__":
    main()
