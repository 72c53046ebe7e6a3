"""`fmnist-track report`, `activations` and `predictions`: from a run id to figures."""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from fmnist_tracking.analysis import rank
from fmnist_tracking.config import DEFAULT_SAMPLE_SEED
from fmnist_tracking.errors import DataError, OutputError
from fmnist_tracking.results import Evaluation, SearchResult, TrialResult
from fmnist_tracking.workflows.models import ask_model, fetch_model
from fmnist_tracking.workflows.output import writable
from fmnist_tracking.workflows.search import grid_picture

if TYPE_CHECKING:
    from fmnist_tracking.data import Dataset, TestSet
    from fmnist_tracking.report import Picture
    from fmnist_tracking.tracking import Store, TrackedRun

SAMPLES = 16


@dataclass(frozen=True, kw_only=True)
class Written:
    """What a command wrote.

    Attributes:
        run_id: the run it is about, a trial or a search.
        trial_id: the trial whose model was used.
        files: their paths, the one to open first first.
        evaluation: on the test images, None if they were not all scored.
    """

    run_id: str
    trial_id: str
    files: tuple[Path, ...]
    evaluation: Evaluation | None = None


@dataclass(frozen=True, kw_only=True)
class _Subject:
    """A trial made ready to be looked at: its record, its model, the images for testing."""

    run: "TrackedRun"
    trial: "TrackedRun"
    result: TrialResult
    model: Any
    dataset: "Dataset"
    test: "TestSet"

    @property
    def data_name(self) -> str:
        return "Fashion-MNIST" if self.dataset.is_fashion_mnist else "Not Fashion-MNIST"

    @property
    def title(self) -> str:
        return f"{self.trial.name} (run {self.trial.run_id[:8]})"


def report(
    reference: str,
    *,
    output_dir: Path | None = None,
    seed: int = DEFAULT_SAMPLE_SEED,
    experiment: str | None = None,
    tracking_uri: str | None = None,
    data_dir: Path | None = None,
) -> Written:
    """Score a trial, or a search's best one, on the test images, and draw all its figures.

    The files are also kept under `report/` of the run, with the test metrics.

    Args:
        reference: a run id, the beginning of one, `latest` or `best`.
        output_dir: where the files go, by default reports/ and the run's first 8 characters.
        seed: of the choice of sample images.
        experiment: name of the experiment to look in, None for all.
        tracking_uri: of the MLflow store, None for the usual one.
        data_dir: where the data is, None for the usual places.

    Raises:
        DataError: the data is not what the trial was trained on.
        OutputError: the folder cannot be written.
        TrackingError: there is no such run, or it has no model.
    """
    from fmnist_tracking import plots, tracking
    from fmnist_tracking.evaluation import evaluate
    from fmnist_tracking.report import Page, Picture, classification_table, render_html

    with tracking.open_store(tracking_uri) as store:
        run = tracking.find_run(store, reference, experiment)
        folder = writable(output_dir or Path("reports", run.run_id[:8]))
        subject = _open(store, run, data_dir)
        history = tracking.read_history(store, subject.trial)
        search = tracking.read_search(store, run) if run.role == "search" else None

        probabilities = _predict(subject, range(len(subject.test.labels)))
        evaluation = evaluate(subject.test.labels, probabilities, subject.dataset.class_names)
        curves = plots.learning_curves(history, f"Learning curves of {subject.title}")
        confusion = plots.confusion_matrix(evaluation, f"Confusion matrix of {subject.title}")
        pictures = [
            Picture(
                file="learning_curves.png",
                heading="Learning curves",
                caption="Loss and accuracy after each epoch. The model kept is the best epoch's. "
                "Training figures are taken with dropout on, while the weights change, and so "
                "can look worse than the validation figures.",
                png=plots.png(curves),
            ),
            *_activation_pictures(subject, seed),
            _prediction_picture(subject, seed),
            Picture(
                file="confusion_matrix.png",
                heading="Confusion matrix",
                caption="Each row holds the test images of one true class; the diagonal counts "
                "those classified rightly.",
                png=plots.png(confusion),
            ),
        ]
        if search is not None:
            pictures.insert(0, _grid_picture(search))
        ranked = rank(search.finished) if search else ()
        page = Page(
            title=f"{subject.data_name}: {run.name}",
            subtitle=_subtitle(subject, search),
            facts=_facts(subject, evaluation),
            settings={k: f"{v:g}" for k, v in asdict(subject.result.config).items()}
            | {f"split {k}": str(v) for k, v in asdict(subject.trial.split).items()},
            pictures=pictures,
            evaluation=evaluation,
            ranked=ranked,
            axes=search.space.varying if search else (),
            notices=_notices(subject, search),
            commands={
                "this report": f"fmnist-track report --run-id {run.run_id} --seed {seed}",
                "search" if search else "run": run.run_id,
                "model of run": subject.trial.run_id,
                "data SHA-256": subject.dataset.digest,
            },
        )
        texts = {
            "index.html": render_html(page),
            "classification_report.txt": classification_table(evaluation),
            "metrics.json": json.dumps(_metrics(subject, evaluation, seed), indent=2) + "\n",
        }
        if search is not None:
            texts["leaderboard.csv"] = tracking.leaderboard_csv(search)
        files = _write(folder, texts, pictures)
        metrics = {
            "test_accuracy": evaluation.accuracy,
            "test_loss": evaluation.loss,
            "test_macro_f1": evaluation.macro.f1,
        }
        tracking.log_report(store, run.run_id, files, metrics, subject.trial.run_id)
        tracking.mark_report_run(store, run.run_id, "report")
        return Written(
            run_id=run.run_id, trial_id=subject.trial.run_id, files=files, evaluation=evaluation
        )


def activations(reference: str, **options: Any) -> Written:
    """Draw a sample and its first-layer activation maps; options are those of `report`."""
    return _part("activations", reference, **options)


def predictions(reference: str, **options: Any) -> Written:
    """Draw 16 test images with their predictions; options are those of `report`."""
    return _part("predictions", reference, **options)


def _part(
    name: str,
    reference: str,
    *,
    output_dir: Path | None = None,
    seed: int = DEFAULT_SAMPLE_SEED,
    experiment: str | None = None,
    tracking_uri: str | None = None,
    data_dir: Path | None = None,
) -> Written:
    from fmnist_tracking import tracking

    with tracking.open_store(tracking_uri) as store:
        run = tracking.find_run(store, reference, experiment)
        folder = writable(output_dir or Path("reports", run.run_id[:8]))
        subject = _open(store, run, data_dir)
        if name == "activations":
            pictures = list(reversed(_activation_pictures(subject, seed)))
        else:
            pictures = [_prediction_picture(subject, seed)]
        files = _write(folder, {}, pictures)
        tracking.log_report(store, run.run_id, files, {}, subject.trial.run_id)
        tracking.mark_report_run(store, run.run_id, name)
        return Written(run_id=run.run_id, trial_id=subject.trial.run_id, files=files)


def _open(store: "Store", run: "TrackedRun", data_dir: Path | None) -> _Subject:
    from fmnist_tracking import tracking
    from fmnist_tracking.data import load_dataset, test_set

    trial = tracking.best_trial(store, run)
    dataset = load_dataset(data_dir)
    if dataset.digest != trial.data_sha256:
        raise DataError(
            f"The run {trial.run_id[:8]} was trained on other data than {dataset.source} holds "
            f"(SHA-256 {trial.data_sha256[:12]}… against {dataset.digest[:12]}…). Name the right "
            "folder with --data-dir."
        )
    return _Subject(
        run=run,
        trial=trial,
        result=tracking.read_trial(trial),
        model=fetch_model(trial),
        dataset=dataset,
        test=test_set(dataset, trial.split),
    )


def _predict(subject: _Subject, chosen: Sequence[int]) -> Any:
    return ask_model(subject.model, subject.trial, subject.test.images[np.asarray(chosen)])


def _grid_picture(search: SearchResult) -> "Picture":
    from fmnist_tracking.report import Picture

    return Picture(
        file="grid.png",
        heading="What each hyperparameter did",
        caption="Validation accuracy of every point. A thin line joins the points that differ in "
        "that one setting; the thick line is their mean; the star is the best point.",
        png=grid_picture(search),
    )


def _activation_pictures(subject: _Subject, seed: int) -> list["Picture"]:
    from fmnist_tracking import plots
    from fmnist_tracking.model import first_layer_activations
    from fmnist_tracking.report import Picture

    index = int(_samples(subject, seed)[0])
    image = subject.test.images[index]
    names = subject.dataset.class_names
    guess = names[int(_predict(subject, [index])[0].argmax())]
    maps = first_layer_activations(subject.model, image)
    count, height, width = maps.shape
    truth = names[subject.test.labels[index]]
    shape = f"{count} maps of {height}×{width}"  # noqa: RUF001  # the sign people read
    return [
        Picture(
            file="sample.png",
            heading="A sample",
            caption=f"Test image {index}, chosen with seed {seed}.",
            png=plots.png(plots.sample(image, truth, guess, f"Sample for {subject.title}")),
        ),
        Picture(
            file="activations.png",
            heading="What the first convolution sees in it",
            caption=f"{shape}, one for each filter, after the ReLU: bright where a filter "
            "answers strongly.",
            png=plots.png(
                plots.activations(maps, f"First-layer activations of {subject.title}: {shape}")
            ),
        ),
    ]


def _prediction_picture(subject: _Subject, seed: int) -> "Picture":
    from fmnist_tracking import plots
    from fmnist_tracking.report import Picture

    chosen = _samples(subject, seed)
    figure = plots.predictions(
        subject.test.images[chosen],
        subject.test.labels[chosen],
        _predict(subject, chosen),
        subject.dataset.class_names,
        f"Predictions of {subject.title}",
    )
    return Picture(
        file="predictions.png",
        heading="Predictions",
        caption=f"{len(chosen)} test images chosen with seed {seed}: green and ticked where the "
        "prediction is right, red and crossed, with the true class, where it is wrong. The "
        "share is the probability the model gives its prediction.",
        png=plots.png(figure),
    )


def _samples(subject: _Subject, seed: int) -> Any:
    count = len(subject.test.labels)
    return np.random.default_rng(seed).choice(count, min(SAMPLES, count), replace=False)


def _subtitle(subject: _Subject, search: SearchResult | None) -> str:
    started = datetime.fromtimestamp(subject.run.raw.info.start_time / 1000, tz=timezone.utc)
    what = f"Best of {len(search.space)} points: {subject.title}" if search else subject.title
    return f"{what}. Started {started:%Y-%m-%d %H:%M} UTC. Data: {subject.dataset.source}."


def _facts(subject: _Subject, evaluation: Evaluation) -> dict[str, str]:
    result = subject.result
    return {
        "test accuracy": f"{evaluation.accuracy:.2%}",
        "test macro F1": f"{evaluation.macro.f1:.4f}",
        "validation accuracy, by which it was chosen": f"{result.val_accuracy or 0:.2%}",
        "best epoch": f"{result.best_epoch} of {result.config.epochs}",
        "trainable weights": f"{result.model_parameters:,}",
        "training time": f"{result.train_seconds or 0:.0f} s",
    }


def _notices(subject: _Subject, search: SearchResult | None) -> list[str]:
    notices = []
    if not subject.dataset.is_fashion_mnist:
        notices.append(
            f"The data in {subject.dataset.source} is not Fashion-MNIST; classes are numbered."
        )
    if subject.trial.split.limit is not None:
        notices.append(
            f"Made with --limit {subject.trial.split.limit}: a trial run on a part of the images, "
            f"tested on {len(subject.test.labels):,}. Expect better figures from all of them."
        )
    if search is not None and len(search.finished) < len(search.space):
        notices.append(
            f"{len(search.finished)} of the grid's {len(search.space)} points have finished; the "
            "best of those is shown."
        )
    return notices


def _metrics(subject: _Subject, evaluation: Evaluation, seed: int) -> dict[str, Any]:
    return {
        "run_id": subject.run.run_id,
        "trial_run_id": subject.trial.run_id,
        "params": asdict(subject.result.config),
        "split": asdict(subject.trial.split),
        "val_accuracy": subject.result.val_accuracy,
        "test_images": len(subject.test.labels),
        "test_accuracy": evaluation.accuracy,
        "test_loss": evaluation.loss,
        "test_macro_f1": evaluation.macro.f1,
        "sample_seed": seed,
        "sample_indices": _samples(subject, seed).tolist(),
        **{k: v for k, v in evaluation.to_json().items() if k not in ("accuracy", "loss")},
    }


def _write(folder: Path, texts: dict[str, str], pictures: Sequence["Picture"]) -> tuple[Path, ...]:
    contents = {name: text.encode() for name, text in texts.items()}
    contents |= {picture.file: picture.png for picture in pictures}
    try:
        for name, content in contents.items():
            (folder / name).write_bytes(content)
    except OSError as error:
        raise OutputError(f"Cannot write {folder / name}: {error.strerror}.") from None
    return tuple(folder / name for name in contents)
