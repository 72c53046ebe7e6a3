"""`fmnist-track promote`: a trial's model into the registry, as its champion. No TensorFlow."""

from dataclasses import dataclass
from typing import Any

from fmnist_tracking import tracking
from fmnist_tracking.config import DEFAULT_MODEL_NAME, require_flag, require_text
from fmnist_tracking.errors import ConfigError, PromotionError, setting
from fmnist_tracking.results import StoredRun, located
from fmnist_tracking.split_config import SplitConfig
from fmnist_tracking.tracking import Store, TrackedRun, registry
from fmnist_tracking.tracking.registry import ModelVersion

_LONGEST_NAME = 256


@dataclass(frozen=True, kw_only=True, repr=False)
class Promotion:
    """The result of a promotion.

    Attributes:
        champion: the version that is in use now.
        previous: the one that was in use before; None if there was none.
        registered: whether the champion's version was made for this.
        overruled: what spoke against it, had it not been forced.
    """

    champion: ModelVersion
    previous: ModelVersion | None
    registered: bool
    overruled: str | None = None

    @property
    def changed(self) -> bool:
        """Return whether another version is in use than before."""
        return self.previous is None or self.previous.version != self.champion.version

    def __repr__(self) -> str:
        return f"<Champion {self.champion.line()}>"

    def to_json(self) -> dict[str, Any]:
        """Return a dictionary that `json` can write."""
        return {
            **self.champion.to_json(),
            "changed": self.changed,
            "registered": self.registered,
            "overruled": self.overruled,
            "previous": self.previous and self.previous.to_json(),
        }


def promote(
    run: str | StoredRun,
    *,
    name: str = DEFAULT_MODEL_NAME,
    force: bool = False,
    experiment: str | None = None,
    tracking_uri: str | None = None,
) -> Promotion:
    """Make the model of a trial, or of a search's best one, the champion of a registered model.

    Args:
        run: a search, a trial, or the name of one: a run id, its beginning, `latest` or `best`.
        name: of the registered model, made if there is none.
        force: promote it even if it is worse than the champion, or cannot be compared with it.
        experiment: name of the experiment to look in, None for the one in use.
        tracking_uri: of the MLflow store, None for the usual one.

    Raises:
        ConfigError: there cannot be a model of that name.
        PromotionError: the champion is better, or the two cannot be compared.
        TrackingError: there is no such run, or it has no model.
    """
    _check_name(name)
    require_flag("force", force)
    reference, tracking_uri = located(run, tracking_uri)
    with tracking.open_store(tracking_uri, access="write") as store:
        trial = tracking.best_trial(store, tracking.find_run(store, reference, experiment))
        registry.require_model(store, trial)
        champion = registry.find_champion(store, name)
        if champion is not None and champion.run_id == trial.run_id:
            return Promotion(champion=champion, previous=champion, registered=False)
        objection = _objection(store, trial, champion) if champion else None
        if objection and not force:
            keep = "Keep that one"
            if champion is not None and not champion.run_exists:
                keep = f"Restore its run with `mlflow runs restore --run-id {champion.run_id}`"
            raise PromotionError(
                f"{objection} {keep}, or promote this with {setting('force=True')}."
            )
        known = registry.find_version(store, name, trial.run_id)
        version = known or registry.register_version(store, name, trial)
        registry.make_champion(store, version)
        return Promotion(
            champion=version, previous=champion, registered=known is None, overruled=objection
        )


def _objection(store: Store, trial: TrackedRun, champion: ModelVersion) -> str | None:
    """Say what speaks against a trial; a final training is judged by what it is the final of."""
    judge = registry.judge(store, trial)
    if judge is None:
        return (
            f"The final training {trial.run_id[:8]} cannot be compared with the champion, "
            f"{champion.line()}: the trial that it is the final of is gone."
        )
    final = None if judge is trial else trial.run_id
    val_accuracy = tracking.read_trial(judge).val_accuracy
    return why_not(judge, val_accuracy, registry.judged(store, champion), final)


def why_not(
    trial: TrackedRun,
    val_accuracy: float | None,
    champion: ModelVersion,
    final: str | None = None,
) -> str | None:
    """Say what speaks against a trial as the champion, in a sentence; None if nothing does.

    Validation accuracies say which model is better only if they are of the same images. `final` is
    the run of its final training, if the model is from that.
    """
    this = f"The trial {trial.run_id[:8]}"
    if final is not None:
        this += f", which {final[:8]} is the final training of"
    that = f"the champion, {champion.line()}"
    if champion.val_accuracy is None or champion.split is None:
        return (
            f"{this} cannot be compared with {that}: neither that version nor its run says what "
            "it was validated on."
        )
    differences = []
    if champion.data_sha256 != trial.data_sha256:
        differences.append(
            f"data {trial.data_sha256[:12]}… against {(champion.data_sha256 or 'unknown')[:12]}…"
        )
    differences += _differences(trial.split, champion.split)
    if differences:
        return (
            f"{this} cannot be compared with {that}: they were validated on different images "
            f"({', '.join(differences)})."
        )
    if val_accuracy is None or not val_accuracy >= champion.val_accuracy:
        scored = "unknown" if val_accuracy is None else f"{val_accuracy:.4f}"
        return f"{this}, with a validation accuracy of {scored}, is worse than {that}."
    return None


def _differences(this: SplitConfig, that: SplitConfig) -> list[str]:
    facts = (
        ("protocol", this.protocol, that.protocol),
        ("split seed", this.seed, that.seed),
        ("limit", this.limit or "none", that.limit or "none"),
    )
    return [f"{fact} {ours} against {theirs}" for fact, ours, theirs in facts if ours != theirs]


def _check_name(name: str) -> None:
    # Those that have a meaning in `models:/<name>@<alias>`, the address it is served by.
    require_text("name", name)
    if not name.strip() or set(name) & set("/:@") or len(name) > _LONGEST_NAME:
        raise ConfigError(
            f"Expected {setting('name')} to be the name of a registered model, without / : @, got "
            f"{name!r}. Example: {DEFAULT_MODEL_NAME}"
        )
