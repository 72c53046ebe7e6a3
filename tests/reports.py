"""The page of a report, and the files of one."""

from fmnist_tracking.config import TrainingConfig
from fmnist_tracking.leaderboard import rank
from fmnist_tracking.objective import VAL_ACCURACY
from fmnist_tracking.reports.page import Page, Picture
from fmnist_tracking.results import Evaluation
from records import trial

REPORT_FILES = {
    "index.html",
    "learning_curves.png",
    "sample.png",
    "activations.png",
    "predictions.png",
    "confusion_matrix.png",
    "classification_report.txt",
    "metrics.json",
}


def page(evaluation: Evaluation, **changes: object) -> Page:
    config = TrainingConfig.of(filters=12)
    ranked = rank(
        [trial("aaaaaaaa1", 0.75, config=config, name="f12", model_parameters=1, train_seconds=1)]
    )
    fields: dict[str, object] = {
        "title": "A title",
        "subtitle": "A subtitle",
        "facts": {"test accuracy": "91 %"},
        "settings": {"filters": "12"},
        "objective": VAL_ACCURACY,
        "pictures": [Picture(file="a.png", heading="A picture", caption="Look.", png=b"bytes")],
        "evaluation": evaluation,
        "ranked": ranked,
        "axes": ("filters",),
        "notices": ("A notice.",),
        "commands": {"this report": "fmnist-track report"},
        **changes,
    }
    return Page(**fields)  # type: ignore[arg-type]
