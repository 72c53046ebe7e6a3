import base64
import re
from html.parser import HTMLParser

import numpy as np
from sklearn.metrics import classification_report

from fmnist_tracking.config import CLASS_NAMES, TrainingConfig
from fmnist_tracking.leaderboard import rank
from fmnist_tracking.metrics import evaluate
from fmnist_tracking.reports.page import Picture, classification_table, render_html
from fmnist_tracking.results import Evaluation
from records import trial
from reports import page

HOSTILE = "<script>alert('x')</script>"


class Tags(HTMLParser):
    def __init__(self, html: str) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))


def test_page_holds_everything_and_asks_nothing_of_the_network(evaluation: Evaluation) -> None:
    html = render_html(page(evaluation))
    for part in ("A title", "A subtitle", "91 %", "A picture", "Look.", "A notice.", "75.00%"):
        assert part in html
    assert base64.b64encode(b"bytes").decode() in html
    for tag, attributes in Tags(html).found:
        assert tag not in ("script", "link", "iframe", "object")
        for name in ("src", "href"):
            assert (attributes.get(name) or "data:").startswith("data:")
    assert "url(" not in html


def test_nothing_from_a_run_reaches_the_page_unescaped(evaluation: Evaluation) -> None:
    config = TrainingConfig.of(filters=12)
    entry = trial("bbbb", 0.5, config=config, name=HOSTILE, model_parameters=1, train_seconds=1.0)
    html = render_html(
        page(
            evaluation,
            title=HOSTILE,
            subtitle=HOSTILE,
            facts={HOSTILE: HOSTILE},
            settings={HOSTILE: HOSTILE},
            notices=(HOSTILE,),
            commands={HOSTILE: HOSTILE},
            pictures=[Picture(file="x", heading='"><script>', caption=HOSTILE, png=b"")],
            ranked=rank([entry]),
        )
    )
    assert "<script" not in html
    assert html.count("&lt;script&gt;") >= 10


def test_text_table_is_scikit_learn_s() -> None:
    labels = np.arange(40, dtype=np.uint8) % 10
    predicted = np.where(np.arange(40) < 7, (labels + 1) % 10, labels)
    ours = classification_table(
        evaluate(labels, np.eye(10, dtype=np.float32)[predicted], CLASS_NAMES)
    )
    theirs = classification_report(labels, predicted, target_names=CLASS_NAMES, digits=4)
    assert re.sub(r"\s+", " ", ours) == re.sub(r"\s+", " ", theirs)
    assert len({len(line) for line in ours.splitlines() if line}) == 1


def test_table_shows_every_class(evaluation: Evaluation) -> None:
    html = render_html(page(evaluation))
    for scores in evaluation.classes:
        assert f"<td>{scores.name}</td><td>{scores.precision:.4f}</td>" in html


def test_a_trial_s_page_has_no_leaderboard(evaluation: Evaluation) -> None:
    assert "Leaderboard" not in render_html(page(evaluation, ranked=()))
