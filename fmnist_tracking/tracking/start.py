"""Opening the runs of searches and trials, new or resumed."""

import dataclasses
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from typing import Any

from mlflow.entities import Param, RunTag
from mlflow.tracking.context.registry import resolve_tags
from mlflow.utils.mlflow_tags import (
    MLFLOW_GIT_BRANCH,
    MLFLOW_GIT_COMMIT,
    MLFLOW_GIT_DIRTY,
    MLFLOW_GIT_REPO_URL,
    MLFLOW_RUN_NOTE,
)
from mlflow.utils.validation import MAX_PARAM_VAL_LENGTH

from fmnist_tracking.config import FASHION_MNIST, TrainingConfig
from fmnist_tracking.environment import Code
from fmnist_tracking.network import COURSEWORK
from fmnist_tracking.redact import to_be_kept
from fmnist_tracking.results import RUNNING
from fmnist_tracking.search_space import SearchSpace
from fmnist_tracking.split_config import SplitConfig
from fmnist_tracking.tracking import descriptions, schema
from fmnist_tracking.tracking.artifacts import log_files
from fmnist_tracking.tracking.leases import Lease
from fmnist_tracking.tracking.queries import iterate_runs
from fmnist_tracking.tracking.records import TrackedRun
from fmnist_tracking.tracking.store import Store
from fmnist_tracking.tracking.ui_links import offer_table


@dataclass(frozen=True, kw_only=True)
class DatasetInfo:
    """What runs record about their data.

    Attributes:
        sha256: its `Dataset.digest`.
        name: of the data set, for people.
        source: where it was found.
        summary: how many images, of what size, in how many classes; for people.
    """

    sha256: str
    name: str
    source: str
    summary: str = ""

    @property
    def description(self) -> str:
        """Return the data set's name and source, for people."""
        return f"{self.name} ({self.source})"

    @property
    def other_than_fashion_mnist(self) -> str | None:
        """Return what the data is, for people; None if it is Fashion-MNIST."""
        if self.name == FASHION_MNIST:
            return None
        return f"{self.description}, {self.summary}" if self.summary else self.description


@dataclass(frozen=True, kw_only=True)
class Provenance:
    """What runs record about the origin of their numbers, beside configuration and data.

    The environment is what `fmnist_tracking.environment.describe` returns.
    """

    code: Code
    environment: Mapping[str, Any]


@dataclass(frozen=True, kw_only=True)
class SearchInfo:
    """What a search's run records when it is opened.

    Attributes:
        name: shown to people; a name that a person gave to `mlflow run` is kept.
        base: the value of each setting that is not an axis.
        grid: fingerprint of the whole grid.
        points: how many are to be tried.
        ahead: of a search whose points depend on results, how many may be without one when another
            is asked for; None for a grid.
        axes: of such a search, the hyperparameters that are varied.
        fresh: whether every point is trained again.
    """

    name: str
    space: SearchSpace
    base: TrainingConfig
    split: SplitConfig
    data: DatasetInfo
    origin: Provenance
    grid: str
    points: int
    fresh: bool = False
    ahead: int | None = None
    axes: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class TrialInfo:
    """What a trial's run records when it is opened.

    Attributes:
        fingerprint: of everything that determines its numbers.
        threads: number of threads that compute it.
        parent: the search's run id, None for a single training.
        adopted: the run that `mlflow run` created for a single training.
        final_of: the run that it is the final training of, None for all others.
    """

    name: str
    config: TrainingConfig
    split: SplitConfig
    data: DatasetInfo
    origin: Provenance
    fingerprint: str
    threads: int
    parent: str | None
    adopted: str | None = None
    final_of: str | None = None


def start_search(
    store: Store,
    experiment_id: str,
    info: SearchInfo,
    resume: TrackedRun | None = None,
    adopted: str | None = None,
) -> str:
    """Open the parent run of a search, held by this process, and return its id.

    It is the run that `mlflow run` created for this command, `adopted`, else the interrupted run of
    the same search, `resume`, else a new run. In the first case, `move_trials` moves the trials of
    the interrupted run to it.
    """
    if info.ahead is None:
        axes = {axis: json.dumps(values) for axis, values in info.space.axes.items()}
    else:
        axes = dict.fromkeys(info.axes, "depends on results")
    too_long = any(len(text) > MAX_PARAM_VAL_LENGTH for text in axes.values())
    params: dict[str, Any] = {
        schema.AXIS_PREFIX + axis: f"see {schema.AXES_FILE}" if too_long else text
        for axis, text in axes.items()
    }
    params |= {schema.BASE_PREFIX + k: v for k, v in info.base.values.items()}
    params |= {schema.SPLIT_PREFIX + k: v for k, v in info.split.values().items()}
    tags = {
        schema.ROLE: schema.SEARCH,
        schema.GRID: info.grid,
        schema.LEASE: Lease.of_this_process().text(),
        schema.ASKED_AT: _now(),
        MLFLOW_RUN_NOTE: descriptions.search_begun(info.points),
        **_origin_tags(info),
        **_network_tags(info.base),
    }
    if info.ahead is not None:
        tags[schema.AHEAD] = str(info.ahead)
    elif info.space.combinations is not None:
        tags[schema.COMBINATIONS] = str(len(info.space.combinations))
    if info.fresh or (resume and schema.FRESH in resume.raw.data.tags):
        tags[schema.FRESH] = "true"
    if adopted and resume:
        tags[schema.CONTINUES] = resume.run_id
    existing = adopted or (resume.run_id if resume else None)
    offer_table(store, experiment_id)
    run_id = _start(store, experiment_id, info, params, tags, existing)
    if too_long:
        content = {axis: list(values) for axis, values in info.space.axes.items()}
        log_files(store, run_id, {schema.AXES_FILE: json.dumps(content)})
    if info.space.combinations is not None and info.ahead is None:
        points = [
            {"values": dict(one.values), "size": one.size and dataclasses.asdict(one.size)}
            for one in info.space.combinations
        ]
        log_files(store, run_id, {schema.POINTS_FILE: json.dumps(points)})
    return run_id


def log_asked_points(store: Store, run_id: str, asked: int, trials: int) -> None:
    """Record how many points a search has asked for, and how many trials that were; all ended."""
    counts = {schema.ASKED_POINTS: asked, schema.ASKED_TRIALS: trials}
    tags = [RunTag(name, str(count)) for name, count in counts.items()]
    store.client.log_batch(run_id, tags=tags)


def log_asked(store: Store, run_id: str) -> None:
    """Record that the command of a finished search or single training was given again."""
    store.client.set_tag(run_id, schema.ASKED_AT, _now())


def _now() -> str:
    return datetime.now(timezone.utc).isoformat(timespec="milliseconds")


def move_trials(store: Store, trials: Iterable[str], old: str, new: str) -> None:
    """Make trials the children of a search's new run, and record that on the old one."""
    client = store.client
    for trial in trials:
        known = client.get_run(trial).data.tags
        tags = {schema.PARENT: new}
        if old in known.get(MLFLOW_RUN_NOTE, ""):
            tags[MLFLOW_RUN_NOTE] = known[MLFLOW_RUN_NOTE].replace(old, new)
        client.log_batch(trial, tags=[RunTag(name, value) for name, value in tags.items()])
    run = client.get_run(old)
    note = descriptions.continued(run.info.experiment_id, new)
    tags = {schema.CONTINUED_BY: new, MLFLOW_RUN_NOTE: descriptions.beside(note, run.data.tags)}
    client.log_batch(old, tags=[RunTag(name, value) for name, value in tags.items()])


def log_reused(store: Store, run_id: str, trials: Sequence[str]) -> None:
    """Log which finished trials of other searches a search reuses."""
    if trials:
        log_files(store, run_id, {schema.REUSED_FILE: json.dumps(trials)})
        store.client.set_tag(run_id, schema.REUSED, str(len(trials)))


def start_trial(
    store: Store, experiment_id: str, info: TrialInfo, resume: str | None = None
) -> str:
    """Open the run of a trial, held by this process, and return its id.

    It is the interrupted one, `resume`, else a new one.
    """
    params = {
        **info.config.values,
        **{schema.SPLIT_PREFIX + k: v for k, v in info.split.values().items()},
    }
    tags = {
        schema.POINT: info.fingerprint,
        schema.THREADS: str(info.threads),
        schema.LEASE: Lease.of_this_process().text(),
        MLFLOW_RUN_NOTE: descriptions.trial_begun(experiment_id, info.parent, info.final_of),
        **_origin_tags(info),
        **_network_tags(info.config),
    }
    if info.final_of is not None:
        tags[schema.FINAL_OF] = info.final_of
    if info.parent is not None:
        tags |= {schema.ROLE: schema.TRIAL, schema.PARENT: info.parent}
        return _start(store, experiment_id, info, params, tags, resume)
    tags |= {schema.ROLE: schema.TRAIN, schema.ASKED_AT: _now()}
    return _start(store, experiment_id, info, params, tags, info.adopted or resume)


def find_trial(store: Store, experiment_id: str, info: TrialInfo) -> str | None:
    """Return the run of a trial if this process has opened it already, else None."""
    parent = "" if info.parent is None else f"AND tags.`{schema.PARENT}` = '{info.parent}' "
    found = iterate_runs(
        store,
        [experiment_id],
        f"tags.`{schema.POINT}` = '{info.fingerprint}' {parent}AND attributes.status = '{RUNNING}'",
    )
    mine = (
        run.info.run_id for run in found if (lease := Lease.read(run.data.tags)) and lease.is_mine()
    )
    return next(mine, None)


def _origin_tags(info: SearchInfo | TrialInfo) -> dict[str, str]:
    code = info.origin.code
    return {
        schema.DATA_SHA256: info.data.sha256,
        schema.DATASET: info.data.description,
        schema.PROTOCOL: info.split.protocol,
        schema.VERSION: code.version,
        schema.CODE_SHA256: code.sha256,
        **_git_tags(code),
    }


def _network_tags(config: TrainingConfig) -> dict[str, str]:
    if config.network == COURSEWORK:
        return {}
    return {
        schema.NETWORK: json.dumps(config.network.to_json()),
        schema.HYPERPARAMETERS: json.dumps(dict(config.hyperparameters)),
    }


def program_tags(code: Code) -> dict[str, str]:
    """Return the tags that MLflow itself would set: who runs the process, and which program."""
    # MLflow's Git tags describe the folder of the script, which need not be where the code is.
    git = (MLFLOW_GIT_COMMIT, MLFLOW_GIT_BRANCH, MLFLOW_GIT_REPO_URL)
    tags = {name: to_be_kept(value) for name, value in resolve_tags().items() if name not in git}
    return {**tags, **_git_tags(code)}


def _git_tags(code: Code) -> dict[str, str]:
    if code.commit is None:
        return {}
    return {
        MLFLOW_GIT_COMMIT: code.commit,
        MLFLOW_GIT_BRANCH: code.branch or "",
        MLFLOW_GIT_DIRTY: str(code.dirty).lower(),
    }


def _start(
    store: Store,
    experiment_id: str,
    info: SearchInfo | TrialInfo,
    params: Mapping[str, Any],
    tags: Mapping[str, str],
    existing: str | None,
) -> str:
    client = store.client
    if existing is None:
        created = {**program_tags(info.origin.code), **tags}
        run = client.create_run(experiment_id, tags=created, run_name=info.name)
        new_tags: Mapping[str, str] = {}
    else:
        run = client.get_run(existing)
        note = descriptions.beside(tags[MLFLOW_RUN_NOTE], run.data.tags)
        new_tags = {**tags, MLFLOW_RUN_NOTE: note}
    run_id = str(run.info.run_id)
    # `mlflow run` has logged the values as typed, and MLflow does not let them change.
    new_params = {k: str(v) for k, v in params.items() if k not in run.data.params}
    client.log_batch(
        run_id,
        params=[Param(k, v) for k, v in new_params.items()],
        tags=[RunTag(k, v) for k, v in new_tags.items()],
    )
    if schema.ERROR in run.data.tags:
        client.delete_tag(run_id, schema.ERROR)
    if existing is not None and run.info.status != RUNNING:
        client.update_run(run_id, status=RUNNING)
    environment = json.dumps(dict(info.origin.environment), indent=2)
    log_files(store, run_id, {schema.ENVIRONMENT_FILE: environment})
    return run_id
