"""Records and pictures -> a report's text and its self-contained HTML page."""

import base64
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import jinja2

from fmnist_tracking.config import format_value
from fmnist_tracking.leaderboard import RankedTrial
from fmnist_tracking.network import Value
from fmnist_tracking.objective import Objective
from fmnist_tracking.redact import printable
from fmnist_tracking.results import ClassScores, Evaluation


@dataclass(frozen=True, kw_only=True)
class Picture:
    """A figure of a report: what it shows, how to read it, and the file's bytes."""

    file: str  # its name in the report's folder
    heading: str
    caption: str
    png: bytes

    @property
    def data_uri(self) -> str:
        """Return the picture as an address that needs no file and no network."""
        return "data:image/png;base64," + base64.b64encode(self.png).decode("ascii")


@dataclass(frozen=True, kw_only=True)
class Page:
    """All that the HTML page shows; strings are escaped when it is rendered."""

    title: str
    subtitle: str
    facts: Mapping[str, str]  # the figures that a reader wants first, by name
    settings: Mapping[str, str]  # of the training, by name
    objective: Objective  # what points are compared by
    pictures: Sequence[Picture]  # in reading order
    evaluation: Evaluation  # on the test images
    ranked: Sequence[RankedTrial] = ()  # a search's finished trials, the best first
    axes: Sequence[str] = ()  # the settings that a search's grid varies
    notices: Sequence[str] = ()  # what a reader must know, such as that the data is another
    commands: Mapping[str, str]  # what made this


def render_html(page: Page) -> str:
    """Render the page as one HTML document that asks nothing of the network."""
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("fmnist_tracking.reports"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["printable"] = printable
    environment.filters["value"] = _value
    return environment.get_template("report.html.j2").render(page=page)


def classification_table(evaluation: Evaluation) -> str:
    """Format precision, recall, F1 and support by class, laid out as scikit-learn does."""
    width = max(len(s.name) for s in (*evaluation.classes, evaluation.weighted))
    total = evaluation.weighted.support
    lines = [f"{'':>{width}}  precision    recall  f1-score   support", ""]
    lines += [_row(width, scores) for scores in evaluation.classes]
    lines += ["", f"{'accuracy':>{width}}  {'':9}  {'':8}  {evaluation.accuracy:8.4f}  {total:8d}"]
    lines += [_row(width, scores) for scores in (evaluation.macro, evaluation.weighted)]
    return "\n".join(lines) + "\n"


def _row(width: int, of: ClassScores) -> str:
    numbers = f"{of.precision:9.4f}  {of.recall:8.4f}  {of.f1:8.4f}  {of.support:8d}"
    return f"{of.name:>{width}}  {numbers}"


def _value(value: Value | None) -> str:
    """Format a hyperparameter's value; one that is not active gives an empty text."""
    return "" if value is None else printable(format_value(value))
