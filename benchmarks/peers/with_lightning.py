"""The same training as a LightningModule with PyTorch Lightning's Trainer, its progress bar on."""

import os
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import MLFlowLogger
from torch import Tensor, nn

from benchmarks.peers.protocol import Asked, Stamps, asked, leave
from benchmarks.peers.work import Work, work


class Module(LightningModule):
    """Nothing is logged in training but for MLflow; an evaluation logs loss and accuracy over all ranks."""

    def __init__(self, parts: Work, *, logs: bool) -> None:
        super().__init__()
        self.model = parts.model
        self._parts = parts
        self._logs = logs
        self._criterion = nn.CrossEntropyLoss()

    def training_step(self, batch: Any, number: int) -> Tensor:
        """One loss."""
        inputs, targets = batch
        loss: Tensor = self._criterion(self.model(inputs), targets)
        if self._logs:
            self.log("loss", loss)
        return loss

    def validation_step(self, batch: Any, number: int) -> None:
        """Means over rows, which are exact where every rank has as many of them, as here."""
        inputs, targets = batch
        outputs = self.model(inputs)
        accuracy = (outputs.argmax(dim=1) == targets).float().mean()
        values = {"loss": self._criterion(outputs, targets), "accuracy": accuracy}
        self.log_dict(values, sync_dist=True, batch_size=len(targets))

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Everybody's."""
        return self._parts.optimizer(self)


class Stamped(Callback):
    """When each step ended, and when each evaluation began and ended."""

    def __init__(self, stamps: Stamps) -> None:
        self._stamps = stamps

    def on_train_batch_end(self, trainer: Any, *others: Any) -> None:
        """A step."""
        if trainer.is_global_zero:
            self._stamps.tick()

    def on_validation_start(self, trainer: Any, module: Any) -> None:
        """Loaders and model are ready by then."""
        self._stamps.tick()

    def on_validation_end(self, trainer: Any, module: Any) -> None:
        """The values are reduced by then."""
        self._stamps.tick()


def main() -> None:
    """Train or evaluate."""
    given = asked()
    parts, stamps = work(given), Stamps()
    trainer = Trainer(
        accelerator="cpu",
        devices=2,
        strategy="ddp",
        max_steps=given.steps,
        logger=_logger(given),
        log_every_n_steps=1,
        callbacks=[Stamped(stamps)],
        enable_checkpointing=False,
        enable_model_summary=False,
    )
    module = Module(parts, logs=given.mlflow is not None)
    if given.task == "evaluate":
        for _ in range(given.steps):
            trainer.validate(module, parts.loader(), verbose=False)
    else:
        trainer.fit(module, parts.loader(shuffle=True))
    if trainer.is_global_zero:
        stamps.write(given.times)
    leave()


def _logger(given: Asked) -> Any:
    """Rank 0's only: when each rank makes one, both create the same new file of SQLite, and one fails."""
    if os.environ["RANK"] != "0":
        return False
    return given.mlflow is not None and MLFlowLogger("benchmark", tracking_uri=given.mlflow)


if __name__ == "__main__":
    main()
