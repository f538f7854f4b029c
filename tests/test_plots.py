import warnings

import numpy as np
import pytest
from matplotlib import pyplot as plt

from supplementary.plots import COLOURS, draw_mask, figure, plot_losses
from supplementary.training import History


@pytest.fixture(autouse=True)
def no_window():
    """Draw without a screen, and leave no figure behind."""
    plt.switch_backend("agg")
    yield
    plt.close("all")


def make_history(losses: list[float], evaluations: dict[int, float]) -> History:
    steps = [{"step": i, "epoch": i / 10, "loss": loss} for i, loss in enumerate(losses, start=1)]
    measured = [{"step": i, "epoch": i / 10, "loss": loss} for i, loss in evaluations.items()]
    return History(steps, measured)


def lines_of(axis) -> dict[str, list[tuple[float, float]]]:
    return {line.get_label(): [tuple(p) for p in line.get_xydata()] for line in axis.get_lines()}


def test_loss_plot_holds_the_numbers_of_the_history():
    losses = [5.0 - i / 10 for i in range(30)]
    fig = plot_losses(make_history(losses, {0: 4.5, 10: 3.25, 30: 2.5}))
    lines = lines_of(fig.axes[0])
    assert list(lines) == ["training, each step", "mean of 20 steps", "validation"]
    assert lines["training, each step"] == list(zip(range(1, 31), losses, strict=True))
    assert lines["validation"] == [(0, 4.5), (10, 3.25), (30, 2.5)]
    means = [(step, sum(losses[step - 20 : step]) / 20) for step in range(20, 31)]
    assert lines["mean of 20 steps"] == [pytest.approx(point) for point in means]


def test_loss_plot_names_its_axes_with_units_and_begins_at_zero():
    fig = plot_losses(make_history([3.0, 2.0, 1.0], {}))
    (axis,) = fig.axes
    assert axis.get_xlabel() == "steps"
    assert axis.get_ylabel() == "loss (nats per token)"
    assert axis.get_ylim()[0] == 0
    labels = [text.get_text() for text in axis.get_legend().get_texts()]
    assert labels == ["training, each step", "mean of 3 steps"]


def test_loss_plot_shows_the_epochs_of_its_steps():
    fig = plot_losses(make_history([2.0] * 20, {}))
    (epochs,) = fig.axes[0].child_axes
    fig.draw_without_rendering()
    assert epochs.get_xlabel() == "epochs"
    assert epochs.get_xlim() == pytest.approx(np.array(fig.axes[0].get_xlim()) / 10)


def test_loss_plot_of_one_step_holds_that_step():
    lines = lines_of(plot_losses(make_history([2.5], {})).axes[0])
    assert lines == {"training, each step": [(1, 2.5)], "mean of 1 steps": [(1, 2.5)]}


def test_loss_plot_of_an_empty_history_is_empty_and_gives_no_warning(tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        fig = plot_losses(History())
        fig.savefig(tmp_path / "loss.png")
    assert all(len(points) == 0 for points in lines_of(fig.axes[0]).values())


def test_loss_plot_of_evaluations_alone_holds_them():
    lines = lines_of(plot_losses(make_history([], {0: 4.5})).axes[0])
    assert lines["validation"] == [(0, 4.5)]


def test_mask_is_drawn_token_by_token():
    _, (axis,) = figure()
    mask = np.array([[True, False, False], [True, True, False], [False, True, True]])
    draw_mask(axis, mask, "Who sees whom", ["a", "b", "c"])
    (image,) = axis.get_images()
    assert np.array_equal(np.asarray(image.get_array(), dtype=bool), mask)
    white, blue = (image.cmap(image.norm(value))[:3] for value in (0, 1))
    assert white == (1, 1, 1)
    assert blue == pytest.approx([int(COLOURS["blue"][i : i + 2], 16) / 255 for i in (1, 3, 5)])
    assert axis.get_title() == "Who sees whom"
    for ticks in (axis.get_xticklabels(), axis.get_yticklabels()):
        assert [tick.get_text() for tick in ticks] == ["a", "b", "c"]


def test_mask_of_one_value_keeps_its_colours():
    _, (axis,) = figure()
    draw_mask(axis, np.ones((2, 2), dtype=bool), "All")
    (image,) = axis.get_images()
    assert (image.norm.vmin, image.norm.vmax) == (0, 1)


def test_figures_have_the_columns_and_inches_asked_for_and_leave_the_settings_alone():
    before = dict(plt.rcParams)
    fig, axes = figure(width=6, height=2.5, columns=3)
    assert len(axes) == 3
    assert fig.get_size_inches().tolist() == [6, 2.5]
    assert not axes[0].spines["top"].get_visible()
    assert dict(plt.rcParams) == before
