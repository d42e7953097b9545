"""A range test as a picture: the loss over the rate, with the lowest point and the suggestion."""

from pathlib import Path

from dist_trainer.tuning.find import Found

_INCHES, _DOTS_PER_INCH = (7.0, 4.2), 120
_BELOW = 0.15  # of the fall; above the start there is room for as much as it fell


def write_plot(found: Found, path: Path) -> None:
    """A PNG file; what diverged goes out of the picture."""
    from matplotlib.figure import Figure

    curve = found.curve
    figure = Figure(figsize=_INCHES, dpi=_DOTS_PER_INCH, layout="constrained")
    axes = figure.subplots()
    axes.plot(curve.rates, curve.losses, ".", color="lightgrey", label="each step")
    axes.plot(curve.rates, curve.smoothed, "-", label="smoothed")
    if curve.lowest is not None and found.lr is not None:
        axes.axvline(curve.rates[curve.lowest], color="grey", linestyle=":", label="lowest")
        axes.axvline(found.lr, color="tab:red", linestyle="--", label=f"suggested: {found.lr:.1e}")
    low, high = min(curve.smoothed), curve.start
    fall = max(high - low, 1e-9)
    axes.set(xscale="log", xlabel="learning rate", ylabel="loss", title=f"{found.run}: range test")
    axes.set_ylim(low - _BELOW * fall, high + fall)
    axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(path, format="png")  # by Agg: without pyplot there is no window and no state
