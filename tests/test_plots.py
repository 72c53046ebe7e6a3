import dataclasses
import math

import matplotlib
import numpy as np
import pytest
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from fmnist_tracking import plots
from fmnist_tracking.config import CLASS_NAMES
from fmnist_tracking.data import DataSplit
from fmnist_tracking.leaderboard import Effect
from fmnist_tracking.metrics import evaluate
from fmnist_tracking.results import Evaluation
from records import training


def title(figure: Figure) -> str:
    return figure.get_suptitle()


def xs(line: Line2D) -> list[float]:
    return [float(x) for x in np.asarray(line.get_xdata(), float)]


def ys(line: Line2D) -> list[float]:
    return [float(y) for y in np.asarray(line.get_ydata(), float)]


def shown(figure: Figure) -> list[str]:
    """The titles of the panels that can be seen."""
    return [axes.get_title() for axes in figure.axes if axes.get_visible() and axes.get_title()]


def test_an_axis_of_many_values_names_some_of_them() -> None:
    values = tuple(0.001 + number / 8999 for number in range(13))
    points = (0.5,) * len(values)
    effect = Effect(axis="rate", values=values, best=(0, 0.5), means=points,
                    diverged=(0,) * len(values), lines=(points,))  # fmt: skip
    (axes,) = plots.grid([effect], "A grid").axes
    named = [label.get_text() for label in axes.get_xticklabels()]
    assert named == ["0.001", "0.0014", "0.0019", "0.0023"]
    assert [*axes.texts] == []


def test_png_is_a_picture_and_the_same_for_the_same_numbers() -> None:
    first, again = (plots.png(plots.learning_curves(training(0.5, 0.6), "t")) for _ in range(2))
    assert first.startswith(b"\x89PNG")
    assert first == again
    assert plots.png(plots.learning_curves(training(0.5, 0.7), "t")) != first


def test_nobody_s_matplotlibrc_changes_a_picture() -> None:
    def drawn() -> bytes:
        return plots.png(plots.learning_curves(training(0.5, 0.6), "t"))

    expected = drawn()
    with matplotlib.rc_context({"font.size": 40, "savefig.transparent": True, "axes.grid": True}):
        assert drawn() == expected
        assert matplotlib.rcParams["font.size"] == 40  # the program around us keeps its own


@pytest.mark.parametrize(
    "name", ["$\\frac$", "$x", "a\x1b[2J\0\nb", "\N{PILE OF POO}", "\u4e2d\u202e"]
)
def test_a_name_is_drawn_as_text(name: str, evaluation: Evaluation) -> None:
    figures = [
        plots.learning_curves(training(0.5), name),
        plots.grid([], name),
        plots.activations(np.zeros((2, 3, 3), np.float32), name),
        plots.confusion_matrix(evaluation, name),
    ]
    for figure in figures:
        assert plots.png(figure).startswith(b"\x89PNG")  # without a warning
        assert title(figure).isprintable()


def test_a_name_that_the_font_has_is_drawn_whole() -> None:
    assert title(plots.learning_curves(training(0.5), "$\\frac$ é")) == "$\\frac$ é"


def test_learning_curves_show_every_epoch_and_the_best() -> None:
    result = training(0.5, 0.8, 0.7)
    figure = plots.learning_curves(result, "Curves of f48")
    assert title(figure) == "Curves of f48"
    loss, accuracy = figure.axes
    train_line, validation_line, best_line = accuracy.get_lines()
    assert xs(validation_line) == [1, 2, 3]
    assert ys(validation_line) == [0.5, 0.8, 0.7]
    assert ys(train_line) == [0.5, 0.5, 0.5]
    assert best_line.get_label() == "best epoch, 2"
    assert ys(loss.get_lines()[0]) == [e.loss for e in result.epochs]
    assert (loss.get_xlabel(), loss.get_ylabel()) == ("epoch", "loss (nats)")


def test_what_diverged_is_told_where_nothing_can_be_drawn() -> None:
    effect = Effect(
        axis="learning_rate",
        values=(0.01, 1.0, 100.0),
        best=(0, 0.8),
        means=(0.8, None, None),
        diverged=(0, 1, 2),
        lines=((0.8, None, None),),
    )
    (axes,) = plots.grid([effect], "A grid").axes
    said = {text.get_position()[0]: text.get_text() for text in axes.texts[1:]}
    assert said == {1: "✗ 1 diverged", 2: "✗ 2 diverged"}
    assert axes.get_xlim()[1] > 2  # the value without a score is there
    nothing = dataclasses.replace(effect, best=None, means=(None,) * 3, lines=((None,) * 3,))
    assert plots.png(plots.grid([nothing], "A grid"))


def test_curves_of_a_training_that_diverged() -> None:
    result = training(0.3, 0.6, 0.1)
    last = dataclasses.replace(result.epochs[2], loss=math.inf, val_loss=math.nan)
    result = dataclasses.replace(result, epochs=(*result.epochs[:2], last))
    figure = plots.learning_curves(result, "Curves")
    for axes in figure.axes:
        lines = {str(line.get_label()): line for line in axes.get_lines()}
        assert xs(lines["best epoch, 2"]) == [2, 2]
        assert xs(lines["diverged in epoch 3"]) == [3, 3]
        assert axes.get_xlim()[1] >= 3
    assert plots.png(figure)


def test_grid_has_a_panel_for_each_axis_and_one_star() -> None:
    effects = [
        Effect(
            axis="filters",
            values=(12, 36),
            best=(1, 0.8),
            means=(0.6, 0.7),
            diverged=(0, 0),
            lines=((0.5, 0.8), (0.7, 0.6)),
        ),
        Effect(
            axis="strides",
            values=(1, 2),
            best=(0, 0.8),
            means=(0.65, None),
            diverged=(0, 1),
            lines=((0.8, None), (0.5, None)),
        ),
    ]
    figure = plots.grid(effects, "A grid")
    assert [axes.get_xlabel() for axes in figure.axes] == ["filters", "strides"]
    for axes, effect in zip(figure.axes, effects, strict=True):
        lines = {line.get_label(): line for line in axes.get_lines()}
        np.testing.assert_array_equal(
            np.asarray(lines["mean"].get_ydata(), float), np.array(effect.means, float)
        )
        assert [t.get_text() for t in axes.get_xticklabels()] == [f"{v}" for v in effect.values]
        assert ys(lines["best point, 80.00%"])[0] == 0.8
    assert xs(figure.axes[0].get_lines()[-1])[0] == 1  # 0.8 was with the second value


def test_grid_with_nothing_to_compare_says_so() -> None:
    figure = plots.grid([], "A grid")
    assert "single value" in figure.texts[-1].get_text()


@pytest.mark.parametrize("count", [1, 5, 12, 36, 48])
def test_activations_have_a_map_for_each_filter_on_one_scale(count: int) -> None:
    maps = np.random.default_rng(0).random((count, 26, 26), dtype=np.float32)
    figure = plots.activations(maps, "maps")
    assert shown(figure) == [f"filter {n}" for n in range(1, count + 1)]
    images = [axes.images[0] for axes in figure.axes if axes.get_title()]
    for number, image in enumerate(images):
        np.testing.assert_array_equal(image.get_array(), maps[number])
        assert image.get_clim() == pytest.approx((0, float(maps.max())))


def test_activations_of_a_dead_layer_can_be_drawn() -> None:
    assert plots.png(plots.activations(np.zeros((4, 13, 13), np.float32), "dead"))


@pytest.mark.parametrize("count", [12, 36, 48])
def test_the_coursework_s_filter_counts_fill_their_rows(count: int) -> None:
    assert count % plots._columns(count) == 0


def test_predictions_are_green_and_ticked_or_red_and_corrected(split: DataSplit) -> None:
    labels = np.array([0, 6], dtype=np.uint8)
    probabilities = np.full((2, 10), 0.02, np.float32)
    probabilities[:, 0] = 0.82
    figure = plots.predictions(
        split.train_images[:2], labels, probabilities, CLASS_NAMES, "validation", "P"
    )
    right, wrong = (axes for axes in figure.axes if axes.get_visible())
    assert right.get_title() == "✓ Top (82%)"
    assert wrong.get_title() == "✗ Top (82%)\ntrue: Shirt"
    assert right.title.get_color() == plots.GREEN
    assert wrong.title.get_color() == plots.RED
    assert title(figure) == "P\n1 of these 2 validation images classified rightly"


def test_confusion_matrix_shows_the_counts() -> None:
    labels = np.array([0, 0, 1], dtype=np.uint8)
    probabilities = np.eye(10, dtype=np.float32)[[0, 1, 1]]
    figure = plots.confusion_matrix(evaluate(labels, probabilities, CLASS_NAMES), "C")
    axes = figure.axes[0]
    assert [t.get_text() for t in axes.get_yticklabels()] == list(CLASS_NAMES)
    assert {(t.get_position(), t.get_text()) for t in axes.texts} == {
        ((0, 0), "1"),
        ((1, 0), "1"),
        ((1, 1), "1"),
    }
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("predicted class", "true class")


def test_sample_names_truth_and_guess(split: DataSplit) -> None:
    figure = plots.sample(split.train_images[0], "Bag", "Top", "S")
    assert shown(figure)[0] == "true class: Bag\npredicted: Top"
    np.testing.assert_array_equal(
        figure.axes[0].images[0].get_array(), split.train_images[0][..., 0]
    )


@pytest.mark.parametrize("length", [0, 10, 80, 500])
def test_a_title_is_as_large_as_there_is_room_for_and_can_be_read(length: int) -> None:
    figure = plots.learning_curves(training(0.5), "W" * length)
    figure.draw_without_rendering()
    (drawn,) = figure.texts
    box, size = drawn.get_window_extent(), float(drawn.get_fontsize())
    assert size >= 7
    assert figure.bbox.x0 <= box.x0
    assert box.x1 <= figure.bbox.x1
    assert (size < 12) == (length > 50)
