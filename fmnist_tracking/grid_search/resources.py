"""What a search or a training works with: the data, the store, and the workers."""

import contextlib
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path

from fmnist_tracking import environment, runtime, tracking
from fmnist_tracking.config import require_path, require_text
from fmnist_tracking.console import Echo
from fmnist_tracking.data import Dataset, load_dataset, require_enough
from fmnist_tracking.errors import SearchError
from fmnist_tracking.grid_search.claims import PointClaims
from fmnist_tracking.grid_search.images import Images, cache_images
from fmnist_tracking.grid_search.lock import points_folder
from fmnist_tracking.redact import to_be_kept
from fmnist_tracking.split_config import SplitConfig
from fmnist_tracking.tracking import DatasetInfo, Provenance, Store
from fmnist_tracking.warm_up import warm_up
from fmnist_tracking.workers import LocalWorker, Worker

# Libraries keep some memory of each trial; a new process gives it back.
_TRIALS_PER_PROCESS = 25
_busy = threading.Lock()
_WORKER = "fmnist_tracking.grid_search.worker"


@dataclass(frozen=True, kw_only=True)
class Resources:
    """What the trials of a search, or a training, have in common."""

    dataset: Dataset
    data_info: DatasetInfo
    data_dir: Path | None  # None for the usual places
    split: SplitConfig
    store: Store
    experiment_id: str
    adopted: str | None  # the run that `mlflow run` made for this command
    workers: tuple[Worker, ...]
    threads: int  # of each worker's arithmetic
    claims: PointClaims

    @cached_property
    def images(self) -> Images:
        """Return which images trials are given, once they are in the cache for the workers."""
        return cache_images(self.dataset, self.split, self.data_dir)

    @cached_property
    def provenance(self) -> Provenance:
        """Return which code runs, and on what machine."""
        return Provenance(code=environment.code(), environment=environment.describe(self.threads))


@contextlib.contextmanager
def open_resources(
    command: str,
    *,
    workers: int,
    split: SplitConfig,
    named: Dataset | None,
    data_dir: str | Path | None,
    experiment: str | None,
    tracking_uri: str | None,
    upgrade_store: bool,
    echo: Echo,
) -> Iterator[Resources]:
    """Load the data and open the store, while the process that workers are forked from starts.

    The command, `search` or `train`, is for the run that `mlflow run` made for it; `named` is the
    data set that the user has named, None for Fashion-MNIST from the usual places. The other
    arguments are those of `run.search`.

    Raises:
        ConfigError: a setting of the environment is wrong.
        SearchError: another thread is at a search or training: one closes all runs of its process.
        DataError: the data cannot be had.
        TrackingError: the store cannot be reached.
    """
    if not _busy.acquire(blocking=False):
        raise SearchError(
            "Another search or training runs in this program. Wait until it has ended, or start "
            "this one in a program of its own."
        )
    try:
        runtime.require_tensorflow_backend()
        runtime.store_patience()
        runtime.require_dates()
        runtime.asked_to_compile()
        threads = runtime.threads_of(workers)
        if experiment is not None:
            require_text("experiment", experiment)
        warm_up()
        data_dir = None if data_dir is None else require_path("data_dir", data_dir)
        dataset = load_dataset() if named is None else named
        require_enough(dataset, split)
        data_info = DatasetInfo(
            sha256=dataset.digest,
            name=dataset.name,
            source=to_be_kept(dataset.source),
            summary=dataset.summary,
        )
        data = data_info.other_than_fashion_mnist or data_info.description
        echo(f"Data: {data}, protocol {split.protocol}")
        with (
            tracking.open_store(tracking_uri, access="create", upgrade=upgrade_store) as store,
            contextlib.ExitStack() as stack,
        ):
            adopted = tracking.adoptable_run(store, command)
            experiment_id = tracking.choose_experiment(store, experiment, adopted)
            _close_orphans(store, experiment_id, echo)
            claims = PointClaims(points_folder(store, experiment_id))
            stack.callback(claims.close)
            yield Resources(
                dataset=dataset,
                data_info=data_info,
                data_dir=data_dir,
                split=split,
                store=store,
                experiment_id=experiment_id,
                adopted=adopted,
                workers=local_workers(workers, threads),
                threads=threads,
                claims=claims,
            )
            with contextlib.suppress(Exception):  # the search has ended well
                _close_orphans(store, experiment_id, echo)  # those watched since its beginning
    finally:
        _busy.release()


def _close_orphans(store: Store, experiment_id: str, echo: Echo) -> None:
    closed = tracking.close_orphans(store, [experiment_id])
    if closed:
        echo(f"Closed as KILLED: {len(closed)} runs whose process was gone.")


def local_workers(count: int, threads: int) -> tuple[Worker, ...]:
    """Return worker processes that can train, each with so many threads; none is started yet."""
    return tuple(
        LocalWorker(
            partial(runtime.prepare_process, threads, number, [_WORKER]), _TRIALS_PER_PROCESS
        )
        for number in range(count)
    )
