"""What captum_digits.yaml names: a small CNN, and a hook that draws which pixels its answers come from."""

import json

import torch
from captum.attr import IntegratedGradients
from matplotlib.figure import Figure
from torch import Tensor, nn

from dist_trainer import Hook, Result, Trainer

STEPS = 64  # of the integral's sum


class DigitsCNN(nn.Module):
    """Two 3x3 convolutions on (rows, 64) pixels, seen as 8 x 8."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Unflatten(1, (1, 8, 8)),
            nn.Conv2d(1, 16, 3, padding=1),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Conv2d(16, 32, 3, padding=1),
            nn.ReLU(),
            nn.Flatten(),
            nn.Linear(512, 10),
        )

    def forward(self, pixels: Tensor) -> Tensor:
        return self.layers(pixels)


class Attributions(Hook):
    """At the end: one picture for each class, in report/pictures of the run folder, by rank 0 alone.

    Integrated gradients (Sundararajan et al. 2017) from a black image: the attributions of an image add up to the
    difference of the answer's score from that of black.
    """

    def on_end(self, trainer: Trainer, result: Result) -> None:
        """Draw the first test image of each class."""
        if not trainer.attempt.is_rank_zero or result.state != "finished":
            return
        folder = trainer.attempt.run.path / "report" / "pictures"
        folder.mkdir(parents=True, exist_ok=True)  # the worker's umask keeps others out
        model = trainer.parts.model.eval()
        captions = {}
        for pixels, digit in first_of_each_class(trainer.given.test):
            answer, attributions = explain(model, pixels.to(trainer.attempt.group.device))
            name = f"digit-{digit}.png"
            draw(pixels, attributions.cpu(), f"{digit}, seen as {answer}").savefig(folder / name, dpi=120)
            captions[name] = (
                f"A {digit}, seen as {answer}: red pixels speak for the answer, blue ones against it"
            )
        (folder / "captions.json").write_text(json.dumps(captions, indent=1))


def first_of_each_class(test: object) -> list[tuple[Tensor, int]]:
    """(pixels, class), by class."""
    found: dict[int, Tensor] = {}
    for row in range(len(test)):
        pixels, digit = test[row]
        found.setdefault(int(digit), torch.as_tensor(pixels))
    return [(found[digit], digit) for digit in sorted(found)]


def explain(model: nn.Module, pixels: Tensor) -> tuple[int, Tensor]:
    """The model's answer for one image, and what each pixel added to its score."""
    images = pixels.unsqueeze(0)
    with torch.no_grad():
        answer = int(model(images).argmax())
    black = torch.zeros_like(images)
    return answer, IntegratedGradients(model).attribute(images, black, target=answer, n_steps=STEPS)[
        0
    ].detach()


def draw(pixels: Tensor, attributions: Tensor, title: str) -> Figure:
    """The image beside its attributions."""
    figure = Figure(figsize=(4.4, 2.4), layout="constrained")
    image, parts = figure.subplots(1, 2)
    image.imshow(pixels.reshape(8, 8), cmap="gray")
    most = float(attributions.abs().max())
    shown = parts.imshow(attributions.reshape(8, 8), cmap="RdBu_r", vmin=-most, vmax=most)
    figure.colorbar(shown, ax=parts, shrink=0.8)
    for axes in (image, parts):
        axes.set_axis_off()
    figure.suptitle(title)
    return figure
