"""The Markdown descriptions that MLflow's page shows on a run: what it is, its result, what next.

Links begin with "#/", so that they work at any address of the page.
"""

import re
from collections.abc import Iterable, Mapping, Sequence

from mlflow.utils.mlflow_tags import MLFLOW_RUN_NOTE
from mlflow.utils.validation import MAX_TAG_VAL_LENGTH

from fmnist_tracking.config import FIELDS, flag, format_value
from fmnist_tracking.leaderboard import Effect, RankedTrial, leaderboard, rank
from fmnist_tracking.objective import Objective
from fmnist_tracking.redact import printable
from fmnist_tracking.results import DIVERGED, SearchResult, TrainingResult, TrialResult
from fmnist_tracking.split_config import SplitConfig
from fmnist_tracking.tracking.ui_links import model_address, run_address, table_address

_SHOWN = 10
_HARDEST = 3
# Each description begins and ends with these, which tell it from text that a person added. The
# first is a Markdown comment, which no page shows.
_START = "[//]: # (fmnist-track)\n\n"
_SIGNATURE = "\n\n*fmnist-track*"
_RULE = "\n\n---\n\n"
_OURS = re.compile(
    rf"(?:{re.escape(_RULE)})?{re.escape(_START)}.*?{re.escape(_SIGNATURE)}", re.DOTALL
)
_SHORT = "The description has no room beside what is written above."
# Characters that Markdown or HTML would interpret.
_MARKUP = re.compile(r"([\\`*_{}\[\]<>|~&#])")


def search_begun(points: int) -> str:
    """Describe a search that is running."""
    return signed(
        f"A search of {points} points. Each is a run below this one, and its curves grow "
        "while it trains. When all have ended, the ranking is here; stopped before, the same "
        "command goes on with it."
    )


def continued(experiment_id: str, new: str) -> str:
    """Describe a search that was resumed in another run, which now has its trials."""
    return signed(
        f"This search was cut off; [another run]({run_address(experiment_id, new)}) "
        "continues it and has its trials."
    )


def search_ended(
    result: SearchResult, effects: Sequence[Effect], *, other_data: str | None = None
) -> str:
    """Describe a search that has ended; `other_data` as for `trial_ended`."""
    ranked = rank(result.finished)
    reused = sum(trial.reused for trial in result.trials)
    failed = len(result.failed)
    left = len(result.space) - len(result.finished) - failed
    counts = f"{len(result.finished)} of {len(result.space)} points finished"
    counts += f", {reused} of them in earlier runs" if reused else ""
    counts += f"; {failed} failed" if failed else ""
    counts += f"; {left} left to be tried" if left else ""
    diverged = sum(trial.diverged for trial in result.trials)
    counts += f"; {diverged} trial{'s' if diverged > 1 else ''} diverged" if diverged else ""
    parts = [_winner(result, ranked), counts + "."]
    if other_data:
        parts.append(f"Data: {plain(other_data)}.")
    has_repeats = any(one.spread is not None for one in ranked)
    rows = [
        (
            str(row.rank or ""),
            _link(result.experiment_id, row.trial),
            DIVERGED if row.trial.diverged else _share(row.trial.score),
            *([_share(row.mean)] if has_repeats else []),
            str(row.trial.best_epoch or ""),
            _seconds(row.trial.train_seconds),
        )
        for row in leaderboard(result.trials)[:_SHOWN]
    ]
    mean = ["mean of its seeds"] if has_repeats else []
    heads = ("rank", "trial", result.objective.label, *mean, "best epoch", "seconds")
    parts.append(_table(heads, rows))
    if len(result.trials) > _SHOWN:
        parts.append(f"The first {_SHOWN}; all are in the artifact `leaderboard.csv`.")
    # An axis has no mean if every point has a repeat that diverged.
    scored = [effect for effect in effects if any(mean is not None for mean in effect.means)]
    if scored:
        heading = f"**What each setting did** (mean {result.objective.label})"
        parts += [heading, _effects(scored, result.objective)]
    parts.append(
        "**Next**: the artifact `figures/grid.png` draws this. To compare curves, open "
        f"[the table of runs]({table_address(result.experiment_id)}), press the plus sign before "
        "the search, tick trials and press *Compare*. "
        f"`fmnist-track report --run-id {result.run_id[:8]}` scores the best trial on the sealed "
        "test images."
    )
    return signed("\n\n".join(parts))


def _winner(result: SearchResult, ranked: Sequence[RankedTrial]) -> str:
    if not ranked:
        return "**No point has finished.** The trials hold what went wrong, as `traceback.txt`."
    first = ranked[0]
    if first.trial.diverged:
        return "**Every trial diverged**: there is no best. Choose a smaller `learning_rate`."
    text = (
        f"**Best: {_link(result.experiment_id, first.trial)}**, {result.objective.label} "
        f"{_share(first.trial.score)} after epoch {first.trial.best_epoch}"
    )
    if first.spread is not None:
        text += f"; its seeds have {first.mean:.4f} ± {first.spread:.4f}"
    second = next((one for one in ranked if one.rank == 2), None)
    if second is not None:
        text += f", {abs(first.mean - second.mean):.4f} ahead of "
        text += _link(result.experiment_id, second.trial)
    return text + "."


def _effects(effects: Iterable[Effect], objective: Objective) -> str:
    rows = []
    for effect in effects:
        means = [mean for mean in effect.means if mean is not None]
        columns = zip(effect.values, effect.means, effect.diverged, strict=True)
        listed = [
            f"{plain(format_value(value))}: {_mean(mean, diverged)}"
            for value, mean, diverged in columns
        ]
        if len(listed) > _SHOWN:
            index = effect.means.index(max(means, key=objective.goodness))
            listed = [f"{len(listed)} values, the best {listed[index]}"]
        rows.append((f"`{effect.axis}`", ", ".join(listed), f"{max(means) - min(means):.4f}"))
    return _table(("setting", "by value", "range"), rows)


def _mean(mean: float | None, diverged: int) -> str:
    """Format the mean of the points with one value, with the number of points that diverged."""
    if mean is None:
        return DIVERGED if diverged else ""
    return f"{_share(mean)} ({diverged} diverged)" if diverged else _share(mean)


def trial_begun(experiment_id: str, parent: str | None, final_of: str | None = None) -> str:
    """Describe a trial that is running."""
    return signed(
        f"{_what(experiment_id, parent, final_of)} Its curves are under *Model metrics* from the "
        "first epoch on; its results are here when it has finished."
    )


def trial_ended(
    experiment_id: str,
    parent: str | None,
    result: TrainingResult,
    split: SplitConfig,
    model_id: str,
    size: int,
    *,
    other_data: str | None = None,
    final_of: str | None = None,
) -> str:
    """Describe a trial that has finished, and its model, whose file has `size` bytes.

    `other_data` is what the data is, if it is not Fashion-MNIST. The command that trains it again
    is given for that alone. `final_of` is the run that it is the final training of.
    """
    figures = result.summary()
    rows = [
        *([("data", plain(other_data))] if other_data else []),
        *_validated(result),
        (
            "training",
            f"{len(result.epochs)} epochs of {result.train_images:,} images in "
            f"{result.train_seconds:.1f} s, {result.images_per_second:,.0f} images a second",
        ),
        (
            "network",
            f"{result.model_parameters:,} weights, {size / 1e6:.1f} MB, "
            f"{figures['flops_per_image'] / 1e6:.1f} MFLOP an image",
        ),
    ]
    diverged = (
        f" **It diverged in epoch {result.diverged}**: its loss was no finite number, so it ended "
        "there."
        if result.diverged
        else ""
    )
    scores = (
        ", the scores of each class in `validation/classes.csv` and the confusion matrix beside it"
    )
    parts = [
        _what(experiment_id, parent, final_of) + diverged,
        _table(("", ""), rows),
        f"**Next**: the [model]({model_address(experiment_id, model_id)}); under "
        f"*Artifacts*, `figures/learning_curves.png`{scores if result.validation else ''}; under "
        "*Model metrics*, the curves.",
    ]
    again = None if other_data else _command(result, split, final_of)
    return signed("\n\n".join([*parts, f"Trained again: `{again}`"] if again else parts))


def _validated(result: TrainingResult) -> list[tuple[str, str]]:
    """Return what the validation images say; nothing where there are none."""
    best, validation, objective = result.best, result.validation, result.config.compared_by
    if validation is None:
        return []
    hardest = sorted(validation.classes, key=lambda scores: scores.f1)[:_HARDEST]
    nats = " nats" if result.config.network.is_coursework else ""
    chosen_by = f"{best.value(objective):.4f}, by which the epoch was chosen"
    return [
        *([(objective.label, chosen_by)] if objective.average else []),
        ("validation accuracy", f"{best.val_accuracy:.4f}, after epoch {best.epoch}"),
        ("validation loss", f"{best.val_loss:.4f}{nats}"),
        ("macro F1", f"{validation.macro.f1:.4f}"),
        ("hardest classes", ", ".join(f"{s.name} (F1 {s.f1:.2f})" for s in hardest)),
    ]


def model(
    experiment_id: str,
    run_id: str,
    name: str,
    image_shape: Sequence[int],
    final_of: str | None = None,
) -> str:
    """Describe a logged model; `final_of` as for `trial_ended`."""
    shape = ", ".join(map(str, image_shape))
    weights = "its last epoch" if final_of else "the epoch that did best on the validation images"
    return (
        f"The network of the trial [{plain(name)}]({run_address(experiment_id, run_id)}), with "
        f"the weights of {weights}. It takes raw pixels, uint8 of shape (n, {shape}), scales them "
        "itself, and gives the probabilities of the classes: "
        f"`mlflow.pyfunc.load_model('runs:/{run_id}/model')`."
    )


def trial_failed(
    experiment_id: str, parent: str | None, line: str, final_of: str | None = None
) -> str:
    """Describe a trial that ended with an error."""
    return signed(
        f"{_what(experiment_id, parent, final_of)} **It failed**: {plain(line)}\n\n"
        "The artifact `traceback.txt` has the rest."
    )


def beside(note: str, tags: Mapping[str, str]) -> str:
    """Return a description together with what a person wrote around the old one in a run's tags."""
    present = tags.get(MLFLOW_RUN_NOTE, "")
    if _START not in present and present.endswith(_SIGNATURE):  # an earlier release's
        present = present.rpartition(_RULE)[0]
    found = _OURS.search(present)
    above, below = (present[: found.start()], present[found.end() :]) if found else (present, "")
    for ours in (note, signed(_SHORT)):
        text = f"{above}{_RULE if above else ''}{ours}{below}"
        if len(text) <= MAX_TAG_VAL_LENGTH:
            return text
    return f"{above}{below}"  # a person's text is never cut for ours


def signed(note: str) -> str:
    """Add the marks by which a description of this module is recognized."""
    return f"{_START}{note}{_SIGNATURE}"


def _what(experiment_id: str, parent: str | None, final_of: str | None) -> str:
    if final_of is not None:
        return (
            f"The final training of [a trial]({run_address(experiment_id, final_of)}): anew, on "
            "training and validation images together, for as many epochs as its best epoch was. It "
            "has no validation figures."
        )
    if parent is None:
        return "One configuration, trained on its own."
    return f"One point of [a search]({run_address(experiment_id, parent)})."


def _command(result: TrainingResult, split: SplitConfig, final_of: str | None) -> str | None:
    if final_of is not None:
        return f"fmnist-track train --final --run-id {final_of[:8]} --fresh"
    config = result.config
    # No option of the command sets another split's seed, and a file may lie anywhere.
    if split.seed != config.seed or not config.network.is_coursework:
        return None
    words = ["fmnist-track train"]
    for name, value in config.values.items():
        if name not in FIELDS or value != FIELDS[name].default:
            words.append(f"{flag(name)} {format_value(value)}")
    default = SplitConfig()
    if split.protocol != default.protocol:
        words.append(f"--protocol {split.protocol}")
    if split.limit is not None:
        words.append(f"--limit {split.limit}")
    return " ".join([*words, "--fresh"])


def _link(experiment_id: str, trial: TrialResult) -> str:
    return f"[{plain(trial.name)}]({run_address(experiment_id, trial.run_id)})"


def plain(text: str) -> str:
    """Escape a text, so that Markdown shows it unchanged and on one line."""
    return _MARKUP.sub(r"\\\1", printable(" ".join(text.split())))


def _table(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [heads, ["---"] * len(heads), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _share(value: float | None) -> str:
    return "" if value is None else f"{value:.4f}"


def _seconds(value: float | None) -> str:
    return "" if value is None else f"{value:.1f}"
