"""`fmnist-track report`, `activations` and `predictions`: from a run id to figures."""

import html
import json
import shlex
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, Literal, get_args

from fmnist_tracking import tracking
from fmnist_tracking.config import (
    DEFAULT_SAMPLE_SEED,
    format_value,
    require_choice,
    require_flag,
    require_path,
    require_text,
    require_whole,
)
from fmnist_tracking.console import Echo, echo_line, lines_to
from fmnist_tracking.errors import OutputError, TrackingError
from fmnist_tracking.files import write_file
from fmnist_tracking.inference import About, about, fetched_model, model_process
from fmnist_tracking.inspection import InspectionTask, ModelInspection
from fmnist_tracking.leaderboard import rank
from fmnist_tracking.output_folder import writable
from fmnist_tracking.redact import bare, printable, without_home
from fmnist_tracking.reports import captions
from fmnist_tracking.reports.page import Page, Picture, classification_table, render_html
from fmnist_tracking.results import Evaluation, SearchResult, StoredRun, TrialResult, located
from fmnist_tracking.tracking import TrackedRun

# Of a trial's name in the title of a figure, in characters.
_LONGEST_TITLE = 40
Part = Literal["report", "activations", "predictions"]


@dataclass(frozen=True, kw_only=True, repr=False)
class Report:
    """A report, or a part of one, as files.

    In a notebook it is shown as its page, or its figures.

    Attributes:
        run_id: the run it is about, a trial or a search.
        model: the model that was used.
        files: their paths; the first is the one to open.
        evaluation: on the test images, None if they were not all scored.
        kept: whether they are kept with the run too; not where this user may only read the store.
        page: what a notebook shows, as HTML.
    """

    run_id: str
    model: About
    files: tuple[Path, ...]
    evaluation: Evaluation | None = None
    kept: bool = True
    page: str = ""

    def __repr__(self) -> str:
        return f"<Report of run {self.run_id[:8]}: {self.files[0]}>"

    @property
    def test_accuracy(self) -> float | None:
        """Return the share of test images classified correctly; None for a part."""
        return None if self.evaluation is None else self.evaluation.accuracy

    def __str__(self) -> str:
        scored = "" if self.evaluation is None else f"test accuracy {self.test_accuracy:.4f}, "
        return f"Report on {self.model.name}, run {self.model.run_id[:8]}: {scored}{self.files[0]}"

    def _repr_html_(self) -> str:
        return self.page


@dataclass(frozen=True, kw_only=True)
class _Subject:
    """A trial that was looked at: its records, and what its model makes of some images."""

    title: str
    run: TrackedRun
    trial: TrackedRun
    result: TrialResult
    seen: ModelInspection


def report(
    run: str | StoredRun,
    *,
    part: Part = "report",
    output_dir: str | Path | None = None,
    seed: int = DEFAULT_SAMPLE_SEED,
    layer: str | None = None,
    trust_code: bool = False,
    experiment: str | None = None,
    tracking_uri: str | None = None,
    data_dir: str | Path | None = None,
    echo: Echo | None = echo_line,
) -> Report:
    """Draw a trial's figures, or those of a search and its best trial; all of them, or a part.

    The whole report scores the trial on the test images, which are opened for it; a part shows
    validation images, and the test images stay sealed. The files are also kept with the run.

    Args:
        run: a search, a trial, or the name of one: a run id, its beginning, `latest` or `best`.
        part: `report`, `activations` or `predictions`.
        output_dir: where the files go, by default reports/ and the run's first 8 characters, and
            validation/ for a part.
        seed: of the choice of sample images.
        layer: name of the convolution whose activation maps are drawn, None for the first.
        trust_code: run the code that was logged with the model, if it needs some: code of layers of
            one's own, which whoever can write to the store could have put there.
        experiment: name of the experiment to look in, None for the one in use.
        tracking_uri: of the MLflow store, None for the usual one.
        data_dir: where the data is, None for the usual places.
        echo: called with a line for a person to read, which says what the model is.

    Raises:
        DataError: the data is not what the trial was trained on.
        OutputError: the folder cannot be written.
        TrackingError: there is no such run, or it has no model; or a part is asked for of a final
            training, which has no validation images.
    """
    require_choice("part", part, get_args(Part))
    require_whole("seed", seed, minimum=0)
    require_flag("trust_code", trust_code)
    if layer is not None:
        require_text("layer", layer)
    echo = lines_to(echo)
    reference, tracking_uri = located(run, tracking_uri)
    data_dir = None if data_dir is None else require_path("data_dir", data_dir)
    with model_process() as ask, tracking.open_store(tracking_uri) as store:
        found = tracking.find_run(store, reference, experiment)
        if part != "report" and not found.split.validates:
            raise TrackingError(
                f"The run {found.run_id[:8]} is a final training, which was trained on the images "
                f"that {part} would show. `fmnist-track report` shows test images."
            )
        folder = Path("reports", found.run_id[:8])
        # The figures of a part are not among a whole report's, which show test images.
        usual = folder if part == "report" else folder / "validation"
        folder = writable(usual if output_dir is None else require_path("output_dir", output_dir))
        trial = tracking.best_trial(store, found)
        model = about(trial)
        echo(str(model))
        title = f"{printable(trial.name, _LONGEST_TITLE)} (run {trial.run_id[:8]})"
        texts: dict[str, str] = {}
        with fetched_model(store, trial, trust_code) as stored:
            task = InspectionTask(
                model=stored,
                split=trial.split,
                data_dir=data_dir,
                data_sha256=trial.data_sha256,
                seed=seed,
                layer=layer,
                images="test" if part == "report" else "validation",
            )
            if part == "report":
                # Logged before they are opened: a report that fails after that has seen them too.
                tracking.unless_read_only(
                    store, lambda: tracking.log_test_opened(store, found.run_id, trial.run_id)
                )
            inspecting = ask("inspect_model", task)
            # Meanwhile, what needs no answer of the model.
            search, pictures = None, []
            if part == "report":
                search = tracking.read_search(store, found) if found.role == "search" else None
                pictures += [captions.grid(search)] if search else []
                pictures.append(captions.curves(tracking.read_history(store, trial), title))
            seen: ModelInspection = inspecting()
        if part != "predictions":
            shown = captions.activations(seen, title, seed)
            pictures += shown if part == "report" else shown[::-1]  # the one that was asked for
        if part != "activations":
            pictures.append(captions.predictions(seen, title, seed))
        if seen.evaluation is not None:
            pictures.append(captions.confusion(seen.evaluation, title))
            result = tracking.read_trial(trial)
            subject = _Subject(title=title, run=found, trial=trial, result=result, seen=seen)
            again = ["fmnist-track", "report", "--run-id", found.run_id, "--seed", str(seed)]
            again += ["--trust-code"] if stored.code is not None else []
            again += ["--layer", layer] if layer is not None else []
            # No folders of whoever made it: the page is handed on.
            if data_dir is not None:
                again += ["--data-dir", Path(without_home(str(data_dir))).name]
            if tracking_uri is not None and tracking_uri.startswith("http"):
                again += ["--tracking-uri", bare(tracking_uri)]
            texts = {
                "index.html": render_html(_page(subject, search, seen.evaluation, pictures, again)),
                "classification_report.txt": classification_table(seen.evaluation),
                "metrics.json": json.dumps(_metrics(subject, seen.evaluation, seed), indent=2)
                + "\n",
            }
            if search is not None:
                texts["leaderboard.csv"] = tracking.leaderboard_csv(search)
        files = _write(folder, texts, pictures)

        def keep() -> None:
            if seen.evaluation is not None:
                tracking.log_report(store, found.run_id, files, _test_scores(seen.evaluation))
            else:
                tracking.log_validation_figures(store, found.run_id, files)
            tracking.mark_report_run(store, found.run_id, part)

        refused = tracking.unless_read_only(store, keep)
        if refused is not None:
            echo(f"The files are not kept with the run: {refused}.")
        return Report(
            run_id=found.run_id,
            model=model,
            files=files,
            evaluation=seen.evaluation,
            kept=refused is None,
            page=_shown(texts.get("index.html"), pictures),
        )


def _shown(page: str | None, pictures: Sequence[Picture]) -> str:
    """Return what a notebook shows: the page in a frame of its own, or else the pictures."""
    if page is None:
        return "".join(f'<img src="{picture.data_uri}">' for picture in pictures)
    style = "width: 100%; height: 80vh; border: 0"
    return f'<iframe srcdoc="{html.escape(page)}" style="{style}"></iframe>'


def _test_scores(evaluation: Evaluation) -> dict[str, float]:
    return {
        "test_accuracy": evaluation.accuracy,
        "test_loss": evaluation.loss,
        "test_macro_f1": evaluation.macro.f1,
    }


def _page(
    subject: _Subject,
    search: SearchResult | None,
    evaluation: Evaluation,
    pictures: Sequence[Picture],
    again: Sequence[str],
) -> Page:
    run = subject.run
    return Page(
        title=f"{subject.seen.data}: {printable(run.name)}",
        subtitle=_subtitle(subject, search),
        facts=_facts(subject, evaluation),
        settings={k: format_value(v) for k, v in subject.result.config.values.items()}
        | {f"split {k}": str(v) for k, v in subject.trial.split.values().items()},
        objective=subject.result.config.compared_by,
        pictures=pictures,
        evaluation=evaluation,
        ranked=rank(search.finished) if search else (),
        # Of another network, the name of a trial tells all of them.
        axes=search.space.varying if search and search.space.network.is_coursework else (),
        notices=_notices(subject, search),
        commands={
            "this report": shlex.join(again),
            "search" if search else "run": run.run_id,
            "model of run": subject.trial.run_id,
            "data SHA-256": subject.trial.data_sha256,
        },
    )


def _subtitle(subject: _Subject, search: SearchResult | None) -> str:
    started = datetime.fromtimestamp(subject.run.raw.info.start_time / 1000, tz=timezone.utc)
    what = subject.title
    if search is not None:
        count, done = len(search.space), len(search.finished)
        of_all = "" if done == count else f"{done} finished of "
        what = f"Best of {of_all}{count} points: {subject.title}"
    return f"{what}. Started {started:%Y-%m-%d %H:%M} UTC. {_data(subject)}."


def _data(subject: _Subject) -> str:
    return f"Data: {subject.seen.data}, SHA-256 {subject.trial.data_sha256[:12]} (its beginning)"


def _facts(subject: _Subject, evaluation: Evaluation) -> dict[str, str]:
    result = subject.result
    chosen_by = result.config.compared_by
    chosen = {
        f"{chosen_by.label}, by which it was chosen": chosen_by.show(result.score or 0.0),
        "best epoch": f"{result.best_epoch} of {result.config.epochs}",
    }
    return {
        "test accuracy": f"{evaluation.accuracy:.2%}",
        "test macro F1": f"{evaluation.macro.f1:.4f}",
        **(chosen if result.final_of is None else {"epochs": str(result.config.epochs)}),
        "weights": f"{result.model_parameters:,}",
        "training time": f"{result.train_seconds or 0:.0f} s",
    }


def _notices(subject: _Subject, search: SearchResult | None) -> list[str]:
    notices = []
    if not subject.seen.is_fashion_mnist:
        notices.append(
            f"The data is not Fashion-MNIST but the {subject.seen.data}: {subject.seen.summary}."
        )
    split = subject.trial.split
    if subject.result.final_of is not None:
        notices.append(
            "Trained on training and validation images together, as the final of the trial "
            f"{subject.result.final_of[:8]}: there are no validation figures."
        )
    if split.limit is not None:
        notices.append(
            f"Trained on {split.training_images:,} of "
            f"{replace(split, limit=None).training_images:,} images, and tested on "
            f"{subject.seen.available:,}. Expect better figures from all of them."
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
        "params": dict(subject.result.config.values),
        "data": subject.seen.data,
        "split": subject.trial.split.values(),
        "val_accuracy": subject.result.val_accuracy,
        "test_images": subject.seen.available,
        **_test_scores(evaluation),
        "sample_seed": seed,
        "sample_indices": subject.seen.chosen.tolist(),
        **{k: v for k, v in evaluation.to_json().items() if k not in ("accuracy", "loss")},
    }


def _write(folder: Path, texts: dict[str, str], pictures: Sequence[Picture]) -> tuple[Path, ...]:
    contents = {name: text.encode() for name, text in texts.items()}
    contents |= {picture.file: picture.png for picture in pictures}
    try:
        for name, content in contents.items():
            write_file(folder / name, content)
    except OSError as error:
        raise OutputError(f"Cannot write {folder / name}: {error.strerror}.") from None
    return tuple(folder / name for name in contents)
