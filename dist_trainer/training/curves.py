"""A run's curves as one figure: the losses, and each metric beside them."""

import io
from collections.abc import Iterable, Mapping
from pathlib import Path

from matplotlib.figure import Figure

from dist_trainer.tracking.journal import history

_PANEL_INCHES = (4.5, 3.2)
_SPLITS = {"train": "C0", "val": "C1", "test": "C2"}  # each in a colour of its own


class Curves(Figure):
    """A matplotlib figure that a notebook shows without pyplot, once."""

    @classmethod
    def of(cls, journal: Path) -> "Curves":
        """Draw what rank 0's journal holds: a panel for the loss, and one for each metric of the evaluations."""
        values = history(journal)
        names = _metric_names(values)
        width, height = _PANEL_INCHES
        figure = cls(figsize=(width * max(1, len(names)), height), layout="constrained")
        for number, name in enumerate(names, start=1):
            axes = figure.add_subplot(1, len(names), number)
            for split, color in _SPLITS.items():
                steps = sorted(values.get(f"{split}/{name}", {}).items())
                if steps:
                    axes.plot(
                        *zip(*steps, strict=True), "o" if len(steps) == 1 else "-", color=color, label=split
                    )
            axes.set(xlabel="step", title=name)
            axes.grid(alpha=0.3)
            axes.legend()
        return figure

    def _repr_png_(self) -> bytes:
        picture = io.BytesIO()
        self.savefig(picture, format="png")
        return picture.getvalue()


def _metric_names(keys: Mapping[str, object] | Iterable[str]) -> list[str]:
    """The loss first, then what evaluations measured."""
    measured = {key.partition("/")[2] for key in keys if key.partition("/")[0] in ("val", "test")}
    has_loss = any(f"{split}/loss" in keys for split in _SPLITS)
    return [*(["loss"] if has_loss else []), *sorted(measured - {"loss"})]
