"""A hook that draws what a forecaster says of the test data over what really came."""

from contextlib import nullcontext

import torch

from dist_trainer.adapters.files import make_private_folder, new_private_file
from dist_trainer.data.series import plot_forecast
from dist_trainer.training.evaluation import predict
from dist_trainer.training.hooks import Hook
from dist_trainer.training.loader import EvalLoader
from dist_trainer.training.trainer import Result, Trainer


class ForecastPlot(Hook):
    """Writes plots/forecast.png into the run folder at the end; MLflow gets it too. The test data is a series."""

    def on_end(self, trainer: Trainer, result: Result) -> None:
        """On rank 0 alone, over the whole of the test data: there is no collective in it."""
        dataset = trainer.given.test
        if not trainer.attempt.is_rank_zero or dataset is None or result.state != "finished":
            return
        loader = EvalLoader(dataset, rank=0, world_size=1, batch_size=1024, name="data.test")
        parts, average = trainer.parts, trainer.parts.train_step.average
        with average.in_place() if average else nullcontext():
            _, forecast, _ = predict(
                parts.model,
                parts.task,
                loader,
                trainer.attempt.group.device,
                autocast=parts.train_step.autocast,
            )
        actual = torch.cat([torch.as_tensor(parts.task.target(batch.data)) for _, batch in loader])
        folder = trainer.attempt.run.path / "plots"
        make_private_folder(folder)
        plot_forecast(
            actual.numpy(), next(iter(forecast.values())), new_private_file(folder / "forecast.png")
        )
