"""Draw records as matplotlib figures. The title of every figure says which run it shows."""

import functools
import io
import math
import threading
from collections.abc import Callable, Sequence
from typing import Any, ParamSpec, TypeVar

import matplotlib
import numpy as np
from matplotlib import font_manager
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.textpath import TextPath
from matplotlib.ticker import FuncFormatter, MaxNLocator, PercentFormatter
from numpy.typing import NDArray

from fmnist_tracking.config import format_value
from fmnist_tracking.leaderboard import Effect, effects
from fmnist_tracking.network import Value
from fmnist_tracking.objective import VAL_ACCURACY, Objective
from fmnist_tracking.redact import printable
from fmnist_tracking.results import Evaluation, SearchResult, TrainingResult

# Blue and orange are from M. Okabe and K. Ito's palette, green and red from P. Tol's: people with
# any colour vision can tell them apart. Right and wrong have a mark too.
BLUE, ORANGE, GREEN, RED = "#0072B2", "#E69F00", "#117733", "#CC3311"
GREY = "#999999"
RIGHT, WRONG = "✓", "✗"
_NO_GLYPH = "□"
_DPI = 110
# Widths in inches: of a title with a run's name and the shape of its maps, and of a colour scale.
_TITLE_WIDTH, _SCALE_WIDTH = 7.6, 1.2
_SMALLEST_TITLE = 7.0  # points
_CELL = 0.36  # inches, of a class in a confusion matrix
_LONGEST_CLASS = 18  # characters, above an image
# Of more values on an axis, only a few are named, and no means are written.
_MOST_LABELS, _FEW_LABELS = 6, 4


P = ParamSpec("P")
R = TypeVar("R")
_style = threading.RLock()  # Matplotlib's settings are shared by all threads


def _in_own_style(draw: Callable[P, R]) -> Callable[P, R]:
    """Make a function draw with Matplotlib's defaults, not a matplotlibrc's or the caller's."""

    @functools.wraps(draw)
    def drawn(*args: P.args, **kwargs: P.kwargs) -> R:
        with _style, matplotlib.rc_context():
            matplotlib.rcdefaults()
            matplotlib.rcParams["text.parse_math"] = False  # a name may hold dollar signs
            return draw(*args, **kwargs)

    return drawn


@_in_own_style
def png(figure: Figure) -> bytes:
    """Return the figure as a PNG file."""
    content = io.BytesIO()
    # Without Matplotlib's version in the file, the same numbers give the same bytes.
    figure.savefig(content, format="png", dpi=_DPI, metadata={"Software": None})
    return content.getvalue()


def displayed(figure: Figure) -> Figure:
    """Make a figure one that a notebook shows as a picture; it is not one of pyplot's."""
    figure._repr_png_ = functools.partial(png, figure)  # type: ignore[attr-defined]
    return figure


def _drawable(title: str) -> str:
    """Return a title on one line, without what Matplotlib's font has no glyph for."""
    font = font_manager.get_font(font_manager.findfont(font_manager.FontProperties()))
    return "".join(c if font.get_char_index(ord(c)) else _NO_GLYPH for c in printable(title))


def _title(figure: Figure, text: str, fontsize: float = 12, **place: Any) -> None:
    """Give a figure a title of `fontsize` points, or smaller if it would be wider than the figure.

    One that could not be read then is shortened.
    """
    room = 72 * figure.get_figwidth() - 2 * fontsize  # 72 points an inch
    while (size := fontsize * min(1.0, room / _width(text, fontsize))) < _SMALLEST_TITLE:
        first, *others = text.splitlines()
        if len(first) < 2:  # another line is the wide one
            break
        text = "\n".join([f"{first[: len(first) * 9 // 10 - 1]}…", *others])
    figure.suptitle(text, fontsize=size, **place)


def _width(text: str, fontsize: float) -> float:
    """Return the width of a text in points."""
    lines = [line for line in text.splitlines() if line.strip()] or ["-"]
    return max(TextPath((0, 0), line, size=fontsize).get_extents().width for line in lines)


@_in_own_style
def learning_curves(result: TrainingResult, title: str) -> Figure:
    """Draw loss and accuracy of training and validation by epoch, and mark the best epoch.

    Without validation images there is no best one.
    """
    figure = Figure(figsize=(10, 4.2))
    # Every trial has this figure, and an automatic layout doubles the time to draw it.
    figure.subplots_adjust(left=0.07, right=0.98, bottom=0.12, top=0.84, wspace=0.22)
    _title(figure, _drawable(title))
    epochs = [e.epoch for e in result.epochs]
    # Another network has a loss of its own, of whatever unit.
    loss = "loss (nats)" if result.config.network.is_coursework else "loss"
    for axes, name, label in zip(
        figure.subplots(1, 2), ("loss", "accuracy"), (loss, "accuracy"), strict=True
    ):
        for prefix, kind, color, marker in (
            ("", "training", ORANGE, "s"),
            ("val_", "validation", BLUE, "o"),
        ):
            values = [getattr(e, prefix + name) for e in result.epochs]
            if None not in values:
                axes.plot(epochs, values, color=color, marker=marker, markersize=3.5, label=kind)
        best = result.best
        if result.validation is not None:
            axes.axvline(best.epoch, color=GREY, linestyle=":", label=f"best epoch, {best.epoch}")
        if result.diverged is not None:
            text = f"diverged in epoch {result.diverged}"
            axes.axvline(result.diverged, color=RED, linestyle="--", label=text)
        axes.set(xlabel="epoch", ylabel=label, title=label.split()[0].capitalize())
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.grid(alpha=0.25)
        axes.legend(fontsize=9)
        if name == "accuracy":
            axes.yaxis.set_major_formatter(PercentFormatter(1.0))
    return figure


def search_grid(search: SearchResult) -> Figure:
    """Draw the effect of each setting of a search on its points' scores; see `grid`."""
    title = f"Grid of {len(search.space)} points (search {search.run_id[:8]})"
    return grid(effects(search.space, search.finished), title, search.objective)


@_in_own_style
def grid(effects: Sequence[Effect], title: str, objective: Objective = VAL_ACCURACY) -> Figure:
    """Draw the scores of a grid's points against each hyperparameter, in one panel for each axis.

    A thin line joins points that differ only in that axis; the thick line is their mean; the star
    is the best point.
    """
    if not effects:
        figure = Figure(figsize=(7, 2), layout="constrained")
        _title(figure, _drawable(title))
        text = "Each axis of this grid has a single value: nothing to compare."
        figure.text(0.5, 0.4, text, ha="center")
        return figure
    columns = min(4, len(effects))
    rows = math.ceil(len(effects) / columns)
    figure = Figure(figsize=(3.4 * columns + 1.2, 3.9 * rows + 0.4), layout="constrained")
    _title(figure, _drawable(title))
    panels = figure.subplots(rows, columns, sharey=True, squeeze=False)
    for index, effect in enumerate(effects):
        axes = panels.flat[index]
        _effect_panel(axes, effect, objective)
        if index % columns == 0:
            axes.set_ylabel(f"{objective.label}, best epoch")
    for axes in panels.flat[len(effects) :]:
        axes.set_visible(False)
    handles, labels = panels.flat[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=3, fontsize=9)
    return figure


def _effect_panel(axes: Axes, effect: Effect, objective: Objective) -> None:
    places = np.arange(len(effect.values))
    for number, line in enumerate(effect.lines):
        scores = np.array(line, dtype=float)  # None becomes NaN: a gap in the line
        label = "points alike in all else" if number == 0 else None
        axes.plot(places, scores, "o-", color=GREY, alpha=0.65, lw=0.9, ms=4, label=label)
    below = [] if effect.best is None else [effect.best[0]]  # the star may be above the mean there
    means = np.array(effect.means, dtype=float)
    axes.plot(places, means, "D-", color=BLUE, lw=2.6, ms=6, label="mean")
    for place, mean in zip(places, means, strict=True):
        if np.isfinite(mean) and len(places) <= _MOST_LABELS:
            axes.annotate(
                f"{mean:.3f}" if objective.is_loss else f"{mean:.1%}",
                (place, mean),
                xytext=(0, -11 if place in below else 9),
                textcoords="offset points",
                ha="center",
                va="top" if place in below else "bottom",
                color=BLUE,
                fontsize=9,
                bbox={"facecolor": "white", "edgecolor": "none", "alpha": 0.75, "pad": 0.8},
            )
    for number, count in enumerate(effect.diverged):
        if count:
            text, across = f"{WRONG} {count} diverged", axes.get_xaxis_transform()
            mark = axes.text(number, 0.02, text, transform=across, color=RED, ha="center")
            mark.set(fontsize=9, in_layout=False)
    if effect.best is not None:
        star, score = effect.best
        axes.plot(
            star,
            score,
            "*",
            color=RED,
            ms=15,
            label=f"best point, {objective.show(score)}",
            zorder=5,
        )
    many = len(places) > _MOST_LABELS
    step = math.ceil(len(places) / _FEW_LABELS) if many else 1
    named = [_drawable(_short(value, step)) for value in effect.values[::step]]
    axes.set_xticks(places[::step], named)
    axes.set_xlabel(effect.axis)
    # Limits by the values, not the scores: a value may have no score.
    axes.set_xlim(-0.18 * (len(places) - 1), 1.18 * (len(places) - 1))
    axes.margins(y=0.12)
    if not objective.is_loss:
        axes.yaxis.set_major_formatter(PercentFormatter(1.0))
        low, top = axes.get_ylim()
        axes.set_ylim(low, min(top, 1 + 0.03 * (top - low)))  # no share is more than one
    axes.grid(axis="y", alpha=0.25)


def _short(value: Value, step: int) -> str:
    """Return a value for an axis; of many, with two digits."""
    return f"{value:.2g}" if step > 1 and isinstance(value, float) else format_value(value)


@_in_own_style
def sample(image: NDArray[np.uint8], label: str, predicted: str, title: str) -> Figure:
    """Draw one raw image, uint8 (height, width, channels), with its true and predicted class."""
    figure = Figure(figsize=(5.2, 4.9), layout="constrained")
    _title(figure, _drawable(title), fontsize=10)
    axes = figure.subplots()
    drawn = _show(axes, image)
    axes.set_title(f"true class: {label}\npredicted: {predicted}", fontsize=11)
    axes.set(xlabel="pixel column", ylabel="pixel row")
    if image.shape[-1] == 1:
        figure.colorbar(drawn, shrink=0.9, label="pixel value")
    return figure


def _show(axes: Axes, image: NDArray[np.uint8]) -> Any:
    """Draw a raw image, grey or in colours."""
    grey = image.shape[-1] == 1
    return axes.imshow(image[..., 0] if grey else image, cmap="gray", vmin=0, vmax=255)


@_in_own_style
def activations(maps: NDArray[np.float32], title: str) -> Figure:
    """Draw activation maps, float32 (filters, height, width), all on one colour scale."""
    count = len(maps)
    columns = _columns(count)
    rows = math.ceil(count / columns)
    room = _TITLE_WIDTH - _SCALE_WIDTH
    panel = min(max(1.15, room / columns), 2.3)  # inches
    across = panel * columns
    width, height = max(across, room) + _SCALE_WIDTH, (panel + 0.15) * rows + 0.7
    left = (width - _SCALE_WIDTH - across) / 2
    figure = Figure(figsize=(width, height))
    _title(figure, _drawable(title), y=1 - 0.12 / height, va="top")
    panels = _panels(figure, rows, columns, (left + 0.1, 0.1, left + across, height - 0.6), 0.2)
    low, top = min(0.0, float(maps.min())), float(maps.max()) or 1.0
    for number, axes in enumerate(panels.flat):
        axes.set_axis_off()
        if number < count:
            drawn = axes.imshow(maps[number], cmap="viridis", vmin=low, vmax=top)
            axes.set_title(f"filter {number + 1}", fontsize=7, pad=2)
    length = min(height - 0.8, 3.6)
    side = (left + across + 0.15) / width
    scale = figure.add_axes(
        (side, (height - 0.5 - length) / 2 / height, 0.18 / width, length / height)
    )
    figure.colorbar(drawn, cax=scale, label="activation (same scale)")
    return figure


def _panels(
    figure: Figure,
    rows: int,
    columns: int,
    edges: tuple[float, float, float, float],
    gap: float,
) -> NDArray[Any]:
    """Create axes in rows and columns at fixed positions; an automatic layout takes longer.

    Args:
        figure: the figure to add them to.
        rows: their number.
        columns: their number.
        edges: left, lower, right and upper, in inches.
        gap: between two rows, as a share of a row's height.
    """
    width, height = figure.get_size_inches()
    left, lower, right, upper = edges
    grid = {"left": left / width, "right": right / width}
    grid |= {"bottom": lower / height, "top": upper / height, "wspace": 0.06, "hspace": gap}
    panels: NDArray[Any] = figure.subplots(rows, columns, squeeze=False, gridspec_kw=grid)
    return panels


def _columns(count: int) -> int:
    """Return the columns of a grid slightly wider than high, with few empty cells."""
    ideal = math.sqrt(count * 1.5)
    candidates = range(max(1, math.floor(ideal * 0.7)), math.ceil(ideal * 1.3) + 1)
    return min(candidates, key=lambda columns: (-count % columns, abs(columns - ideal)))


@_in_own_style
def predictions(
    images: NDArray[np.uint8],
    labels: NDArray[np.uint8],
    probabilities: NDArray[np.float32],
    class_names: Sequence[str],
    part: str,
    title: str,
) -> Figure:
    """Draw images with their predicted classes: right ones green with a tick, wrong ones red.

    Wrong ones have a cross, and the true class below.

    Args:
        images: uint8, shape (n, height, width, channels).
        labels: the true classes, shape (n,).
        probabilities: of the classes, shape (n, classes).
        class_names: in label order.
        part: of the data that the images are of, `validation` or `test`.
        title: of the figure.
    """
    columns = math.ceil(math.sqrt(len(images)))
    rows = math.ceil(len(images) / columns)
    width, height = max(2.35 * columns, _TITLE_WIDTH), 2.75 * rows + 0.6
    figure = Figure(figsize=(width, height))
    predicted = probabilities.argmax(axis=1)
    right = int(np.sum(predicted == labels))
    short = [printable(name, _LONGEST_CLASS) for name in class_names]
    text = f"{_drawable(title)}\n{right} of these {len(images)} {part} images classified rightly"
    _title(figure, text, y=1 - 0.12 / height, va="top")
    panels = _panels(figure, rows, columns, (0.1, 0.1, width - 0.1, height - 1.1), 0.25)
    for number, axes in enumerate(panels.flat):
        axes.set(xticks=[], yticks=[])
        if number >= len(images):
            axes.set_visible(False)
            continue
        guess, truth = predicted[number], labels[number]
        color, mark = (GREEN, RIGHT) if guess == truth else (RED, WRONG)
        text = f"{mark} {short[guess]} ({probabilities[number, guess]:.0%})"
        if guess != truth:
            text += f"\ntrue: {short[truth]}"
        _show(axes, images[number])
        axes.set_title(text, color=color, fontsize=10, fontweight="bold")
        for spine in axes.spines.values():
            spine.set(color=color, linewidth=2.5)
    return figure


@_in_own_style
def confusion_matrix(evaluation: Evaluation, title: str) -> Figure:
    """Draw the number of test images by true class (rows) and predicted class (columns)."""
    counts = np.array(evaluation.confusion)
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    names = [scores.name for scores in evaluation.classes]
    side = max(7.6, _CELL * len(names))
    figure = Figure(figsize=(side + 1, side), layout="constrained")
    _title(figure, _drawable(title))
    axes = figure.subplots()
    drawn = axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    for (row, column), count in np.ndenumerate(counts):
        if count:
            color = "white" if shares[row, column] > 0.5 else "black"
            axes.text(column, row, count, ha="center", va="center", color=color, fontsize=9)
    axes.set_xticks(range(len(names)), names, rotation=40, ha="right")
    axes.set_yticks(range(len(names)), names)
    axes.set(xlabel="predicted class", ylabel="true class")
    percent = FuncFormatter(lambda share, _: f"{share:.0%}")
    figure.colorbar(drawn, shrink=0.8, label="share of the true class", format=percent)
    return figure
