"""`fmnist-track predict`: a person's own pictures -> classes."""

import itertools
import os
import re
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fmnist_tracking import tracking
from fmnist_tracking.config import CLASS_NAMES, require_flag, require_path
from fmnist_tracking.console import Echo, echo_line, lines_to
from fmnist_tracking.data import FASHION_MNIST_DIGEST
from fmnist_tracking.errors import OutputError, PictureError
from fmnist_tracking.files import write_file
from fmnist_tracking.inference import About, about, fetched_model, model_process
from fmnist_tracking.output_folder import writable
from fmnist_tracking.preprocess_image import Note, Prepared, png, prepare
from fmnist_tracking.redact import LONGEST_LINE, printable
from fmnist_tracking.results import StoredRun, located
from fmnist_tracking.tracking import Store, TrackedRun

TOP = 3
# Fashion-MNIST shows them with the toe to the left only.
SHOES = frozenset({"Sandal", "Sneaker", "Ankle boot"})
_UNSAFE = re.compile(r"[^A-Za-z0-9_-]+")
_LONGEST_STEM = 100


@dataclass(frozen=True, kw_only=True)
class Guess:
    """One of the classes that a picture may show: name, label 0 to 9, probability 0 to 1."""

    name: str
    label: int
    probability: float


@dataclass(frozen=True, kw_only=True)
class Classified:
    """A picture and what the model takes it for.

    Attributes:
        path: of the picture.
        size: width and height it had, in pixels; None if it could not be used.
        steps: what was done to it before the model saw it.
        guesses: the most probable classes, the likeliest first.
        mirrored: the most probable class of the picture turned left to right; None where the
            classes are not Fashion-MNIST's, which a mirror may change.
        notes: what speaks against the answer.
        seen: where what the model saw was written, if it was.
        error: why the picture could not be used, in a line.
    """

    path: Path
    size: tuple[int, int] | None = None
    steps: tuple[str, ...] = ()
    guesses: tuple[Guess, ...] = ()
    mirrored: Guess | None = None
    notes: tuple[Note, ...] = ()
    seen: Path | None = None
    error: str | None = None

    def __str__(self) -> str:
        if self.error is not None:
            return self.error  # with the path in it
        guess = self.guesses[0]
        return f"{printable(str(self.path), LONGEST_LINE)}: {guess.name} ({guess.probability:.1%})"

    def to_json(self) -> dict[str, Any]:
        """Return a dictionary that `json` can write."""
        if self.error is not None:
            return {"file": str(self.path), "error": self.error}
        return {
            "file": str(self.path),
            "class": self.guesses[0].name,
            "top": [asdict(guess) for guess in self.guesses],
            "mirrored": self.mirrored and asdict(self.mirrored),
            "mirrored_agrees": self.mirrored and self.mirrored.label == self.guesses[0].label,
            "notes": [asdict(note) for note in self.notes],
            "size": self.size,
            "steps": self.steps,
            "seen": self.seen and str(self.seen),
        }


@dataclass(frozen=True, kw_only=True, repr=False)
class Prediction:
    """What a model takes some pictures for: the model, and the pictures in order."""

    model: About
    pictures: tuple[Classified, ...]

    def __repr__(self) -> str:
        return "\n".join(map(str, self.pictures))

    def to_json(self) -> dict[str, Any]:
        """Return a dictionary that `json` can write."""
        return {
            "run_id": self.model.run_id,
            "model": self.model.to_json(),
            "pictures": [p.to_json() for p in self.pictures],
        }


def predict(
    run: str | StoredRun,
    pictures: str | Path | Sequence[str | Path],
    *,
    output_dir: str | Path | None = None,
    trust_code: bool = False,
    experiment: str | None = None,
    tracking_uri: str | None = None,
    echo: Echo | None = echo_line,
) -> Prediction:
    """Classify pictures by the model of a trial, or of a search's best one.

    A picture that cannot be used does not keep the others from being classified.

    Args:
        run: a search, a trial, or the name of one: a run id, its beginning, `latest` or `best`.
        pictures: their paths, or the path of one.
        output_dir: where to write the pictures, made small, that the model sees, None for nowhere.
        trust_code: run the code that was logged with the model, if it needs some: code of layers of
            one's own, which whoever can write to the store could have put there.
        experiment: name of the experiment to look in, None for the one in use.
        tracking_uri: of the MLflow store, None for the usual one.
        echo: called with a line for a person to read, which says what the model is.

    Raises:
        ConfigError: a picture is no path.
        OutputError: the folder cannot be written.
        TrackingError: there is no such run, or it has no model that can be used.
    """
    require_flag("trust_code", trust_code)
    echo = lines_to(echo)
    reference, tracking_uri = located(run, tracking_uri)
    paths = _paths(pictures)
    folder = None if output_dir is None else require_path("output_dir", output_dir)
    with model_process() as ask:
        with tracking.open_store(tracking_uri) as store:
            trial = tracking.best_trial(store, tracking.find_run(store, reference, experiment))
            model_is = about(trial)
            echo(str(model_is))
            folder = folder and writable(folder)
            names, shape = _images_of(store, trial)
            found = [_prepare(path, shape) for path in paths]
            usable = [one.pixels for one in found if not isinstance(one, str)]
            answers = []
            if usable:
                both = np.stack([side for one in usable for side in (one, one[:, ::-1])])
                with fetched_model(store, trial, trust_code) as model:
                    answers = ask("classify", model, both)()
        probabilities = iter(answers)
    taken = {os.path.realpath(path) for path in paths}
    classified = []
    for path, one in zip(paths, found, strict=True):
        if isinstance(one, str):
            classified.append(Classified(path=path, error=one))
            continue
        guesses = _guesses(next(probabilities), names)
        (turned, *_) = _guesses(next(probabilities), names)
        mirrored = turned if shape is None else None
        classified.append(
            Classified(
                path=path,
                size=one.size,
                steps=one.steps,
                guesses=guesses,
                mirrored=mirrored,
                notes=(*one.notes, *mirror_notes(guesses[0], mirrored)),
                seen=folder and _keep(one, folder, path, taken),
            )
        )
    return Prediction(model=model_is, pictures=tuple(classified))


def _images_of(
    store: Store, trial: TrackedRun
) -> tuple[tuple[str, ...], tuple[int, int, int] | None]:
    """Return the names of a trial's classes, and the shape of its images; None: Fashion-MNIST's."""
    if trial.data_sha256 == FASHION_MNIST_DIGEST:
        return CLASS_NAMES, None
    history = tracking.read_history(store, trial)
    names = history.class_names
    if not names and history.validation is not None:  # an earlier release's
        names = tuple(scores.name for scores in history.validation.classes)
    return names, tracking.read_trial(trial).config.network.image_shape


def _paths(pictures: Any) -> list[Path]:
    several = isinstance(pictures, Iterable) and not isinstance(pictures, str | bytes)
    return [require_path("pictures", path) for path in (pictures if several else [pictures])]


def _prepare(path: Path, shape: tuple[int, int, int] | None) -> Prepared | str:
    """Return a picture as the model sees it, or why there is none."""
    try:
        return prepare(path, shape)
    except PictureError as error:
        return str(error)


def mirror_notes(guess: Guess, mirrored: Guess | None) -> tuple[Note, ...]:
    """Note what a different answer to the mirrored picture says, if anything.

    A shoe that is called something else when it is mirrored is as it should be: the model has seen
    none that way round. The other way about, the picture shows it the wrong way round.
    """
    if mirrored is None or mirrored.label == guess.label:
        return ()
    told = f"mirrored it is called {mirrored.name} ({mirrored.probability:.1%})"
    if mirrored.name in SHOES:
        if guess.name in SHOES and mirrored.probability <= guess.probability:
            return ()
        why = "the model has seen shoes with the toe to the left only, so turn a shoe that way"
        return (Note(code="mirrored_shoe", text=f"{told}: {why}"),)
    if guess.name in SHOES:
        return ()
    return (Note(code="mirrored_differs", text=f"{told}: the model is not sure"),)


def _guesses(probabilities: NDArray[np.float32], names: Sequence[str]) -> tuple[Guess, ...]:
    likeliest = np.argsort(-probabilities, kind="stable")[:TOP]
    return tuple(
        Guess(name=names[label], label=int(label), probability=float(probabilities[label]))
        for label in likeliest
    )


def _keep(prepared: Prepared, folder: Path, path: Path, taken: set[str]) -> Path:
    """Write what the model saw of a picture, over none of the pictures and none of the others."""
    height, width, _ = prepared.pixels.shape
    stem = f"{_UNSAFE.sub('_', path.stem)[:_LONGEST_STEM]}-{width}x{height}"
    candidates = (folder / f"{stem}{f'-{n}' if n > 1 else ''}.png" for n in itertools.count(1))
    file = next(c for c in candidates if os.path.realpath(c) not in taken)
    taken.add(os.path.realpath(file))
    try:
        write_file(file, png(prepared.pixels))
    except OSError as error:
        raise OutputError(f"Cannot write {file}: {error.strerror}.") from None
    return file
