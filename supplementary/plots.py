"""Plots in one visual language: few colours that colour-blind readers can tell apart."""

import matplotlib
import numpy as np
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure

from .training import History

# Okabe and Ito's palette, https://jfly.uni-koeln.de/color/ (2008).
COLOURS = {
    "blue": "#0072B2",
    "orange": "#E69F00",
    "green": "#009E73",
    "red": "#D55E00",
    "purple": "#CC79A7",
    "sky": "#56B4E9",
    "grey": "#8A8A8A",
}
STYLE = {
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.prop_cycle": matplotlib.cycler(color=list(COLOURS.values())),
    "figure.facecolor": "white",
    "figure.constrained_layout.use": True,
    "font.size": 11,
}


def figure(width: float = 7, height: float = 3.2, columns: int = 1) -> tuple[Figure, list[Axes]]:
    """Return a new figure in the workshop's style, sizes in inches, and its axes side by side."""
    with plt.rc_context(STYLE):
        fig, axes = plt.subplots(1, columns, figsize=(width, height), squeeze=False)
    return fig, list(axes[0])


def plot_losses(history: History) -> Figure:
    """Draw the training loss of every step and the validation loss, over steps and epochs."""
    fig, (axis,) = figure()
    steps = [row["step"] for row in history.steps]
    losses = [row["loss"] for row in history.steps]
    axis.plot(steps, losses, color=COLOURS["sky"], linewidth=0.8, label="training, each step")
    window = min(20, len(losses))
    if window:
        means = np.convolve(losses, np.ones(window) / window, mode="valid")
        axis.plot(
            steps[window - 1 :], means, color=COLOURS["blue"], label=f"mean of {window} steps"
        )
    measured = [(row["step"], row["loss"]) for row in history.evaluations]
    if measured:
        axis.plot(*zip(*measured, strict=True), "o-", color=COLOURS["red"], label="validation")
    axis.set(xlabel="steps", ylabel="loss (nats per token)", ylim=(0, None))
    axis.legend(frameon=False)
    if steps:
        per_epoch = steps[-1] / history.steps[-1]["epoch"]
        epochs = axis.secondary_xaxis(
            "top", functions=(lambda x: x / per_epoch, lambda x: x * per_epoch)
        )
        epochs.set_xlabel("epochs")
    return fig


def draw_mask(axis: Axes, mask: np.ndarray, title: str, names: list[str] | None = None) -> None:
    """Draw which token (row) may look at which (column).

    Args:
        axis: where to draw.
        mask: boolean (T, T).
        title: the title.
        names: a label for each token, if there are few.
    """
    axis.imshow(mask, cmap=ListedColormap(["white", COLOURS["blue"]]), vmin=0, vmax=1)
    axis.set(title=title, xlabel="token looked at", ylabel="token that looks")
    for side in ("top", "right"):
        axis.spines[side].set_visible(True)
    if names:
        axis.set_xticks(range(len(names)), names, rotation=90)
        axis.set_yticks(range(len(names)), names)
