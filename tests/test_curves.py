"""The PNGs of a run's curves, drawn into and looked at as matplotlib has them before they are written."""

import math

import numpy as np
import pytest
from matplotlib.figure import Figure
from matplotlib.text import Text
from PIL import Image

from train_utils.show.curves import plot_average_precision, plot_loss_and_lr, plot_losses, running_mean

NAN = float("nan")


@pytest.fixture
def figures(monkeypatch):
    """The figures that were written."""
    kept = []
    save = Figure.savefig
    monkeypatch.setattr(Figure, "savefig", lambda figure, path: (kept.append(figure), save(figure, path)))
    return kept


def texts(figure) -> str:
    """All that can be read on it."""
    return "\n".join(text.get_text() for text in figure.findobj(Text))


def stars(figure) -> list:
    return [tuple(line.get_xydata()[0]) for plot in figure.axes for line in plot.lines if line.get_marker() == "*"]


def test_loss_and_lr(tmp_path, figures):
    losses = [2.0, 1.5, NAN, 1.0, 0.5, 0.4]
    plot_loss_and_lr(tmp_path / "a.png", losses, [0.01] * 6, 2, {0: 1.25, 1: 0.75, 2: None}, "run a, 8 images")
    assert stars(figures[0]) == [(4, 0.75)]  # the end of epoch 1 of 2 steps each
    best = "lowest validation loss: 0.750, epoch 1"
    for text in ("run a, 8 images", "optimiser step", "epochs done", "no unit", "learning rate", best):
        assert text in texts(figures[0])


def test_average_precision_marks_the_best_epoch_and_leaves_gaps(tmp_path, figures):
    values = {"mask AP": [0.1, 0.3, 0.3], "box AP": [0.2, -1, 0.1]}
    plot_average_precision(tmp_path / "a.png", [5, 6, 7], values, "mask AP")
    assert stars(figures[0]) == [(6, 0.3)] and "best mask AP: 0.300, epoch 6" in texts(figures[0])
    box = next(line for line in figures[0].axes[0].lines if line.get_label() == "box AP")
    assert np.isnan(box.get_ydata()).tolist() == [False, True, False]


def test_losses(tmp_path, figures):
    epochs = [{"a": 1.0, "b": 2.0}, {"a": 0.5, "b": 1.5}, {}, {"a": None, "b": 1.0}]
    plot_losses(tmp_path / "a.png", list("abbbb"), range(4), epochs, epochs[::-1])
    assert stars(figures[0])[1] == (2, 0.5)  # of `a` in validation
    for plot in figures[0].axes:
        highest = max(value for line in plot.lines for value in line.get_ydata() if value == value)
        assert plot.get_ylim()[0] == 0 and plot.get_ylim()[1] > 1.05 * highest
    assert figures[0].axes[1].get_title() == "a"


def test_nothing_to_mark_is_no_error(tmp_path, figures):
    plot_average_precision(tmp_path / "a.png", [0], {"mask AP": [-1.0]}, "mask AP")
    plot_loss_and_lr(tmp_path / "b.png", [NAN], [0.1], 1, {0: NAN})
    plot_losses(tmp_path / "c.png", list("abcde"), [0], [{}], [{}])
    assert [stars(figure) for figure in figures] == [[], [], []]


def test_the_files_show_lines(tmp_path, figures):
    plot_loss_and_lr(tmp_path / "loss.png", list(np.linspace(2, 1, 200)), [0.01] * 200, 50, {0: 2.5})
    with Image.open(tmp_path / "loss.png") as image:
        pixels = np.asarray(image.convert("RGB")).reshape(-1, 3).astype(int)
    assert image.size == (960, 648) and "mean of 10 steps" in texts(figures[0])
    assert (pixels.max(1) - pixels.min(1) > 100).sum() > 200


def test_running_mean_as_a_loop_has_it():
    values = [3.0, NAN, 1.0, NAN, NAN, NAN, 4.0, 8.0]
    expected = []
    for end in range(1, 9):
        known = [v for v in values[max(0, end - 3) : end] if not math.isnan(v)]
        expected.append(sum(known) / len(known) if known else NAN)
    assert running_mean(values, 3) == pytest.approx(expected, nan_ok=True)


def test_any_name_of_a_run_is_drawn_as_it_is(tmp_path, figures, recwarn):
    about = r"$\frac$ 图: 8 images"
    plot_average_precision(tmp_path / "a.png", [0], {"mask AP": [0.5]}, "mask AP", about)
    assert about in texts(figures[0]) and not recwarn.list
    plot_average_precision(tmp_path / "a.png", [0], {"mask AP": [0.5]}, "mask AP", "n" * 255)
    assert max(map(len, texts(figures[1]).split("\n"))) < 120


def test_one_step_has_whole_numbers_on_its_axes(tmp_path, figures):
    plot_loss_and_lr(tmp_path / "a.png", [2.0], [0.01], 1, {0: 1.0})
    plot_average_precision(tmp_path / "b.png", [0], {"mask AP": [0.5]}, "mask AP")
    plots = [*figures[0].axes[:1], *figures[0].axes[0].child_axes, *figures[1].axes]
    assert all(tick == int(tick) for plot in plots for tick in plot.get_xticks()) and len(plots) == 3
