"""What a search and a single training have in common: workers, data, store, and their end."""

import contextlib
import gc
import sys
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, wait
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fmnist_tracking import fingerprint, machine, runtime
from fmnist_tracking.config import FASHION_MNIST, SplitConfig, TrainingConfig
from fmnist_tracking.search.progress import Progress
from fmnist_tracking.search.scheduler import TrialScheduler
from fmnist_tracking.search.trial_logger import TrialLogger, outage_lines
from fmnist_tracking.search.worker import TrialTask, cache_split
from fmnist_tracking.workers import LocalWorker, WorkerPool, start_helpers

if TYPE_CHECKING:
    from fmnist_tracking.data import Dataset
    from fmnist_tracking.tracking import BackgroundWriter, DatasetInfo, Provenance, Store, TrialInfo

# Time to close runs in, once a search was told to stop.
_CLOSING_SECONDS = 8.0
_SWITCH_SECONDS = 0.0005
# Libraries keep some memory of each trial; a new process gives it back.
_TRIALS_PER_PROCESS = 25
_PRELOAD, _TRAINING = "fmnist_tracking.search.preload", "fmnist_tracking.training.loop"
# Of a worker that trains the coursework's largest network, or of the driver, rounded up.
_PROCESS_BYTES = 1e9
# Images kept with each logged model as its input example.
_EXAMPLES = 2

Announce = Callable[[str], None]


@dataclass(frozen=True, kw_only=True)
class Request:
    """What a search or a training is asked to do, apart from its points.

    Attributes:
        split: how the data is split; the same for every point.
        experiment: name of the MLflow experiment, made if it is not there; None for the one that
            the environment names, or the usual one.
        workers: trials that run at once; None takes as many as suit this machine.
        fresh: train all anew, whatever has finished before.
        tracking_uri: of the MLflow store, None for the usual one.
        data_dir: where the data is, None for the usual places.
        upgrade_store: bring a store of an older MLflow up to date, rather than refuse it.
    """

    split: SplitConfig
    experiment: str | None = None
    workers: int | None = None
    fresh: bool = False
    tracking_uri: str | None = None
    data_dir: Path | None = None
    upgrade_store: bool = False


def best_workers() -> int:
    """How many trials at once suit this machine: one for each processor core, if memory allows.

    A trial gains less from a second core than a second trial does. GPUs are not shared. What
    other programs use at the moment does not count, so that a search goes on as it began.
    """
    fitting = int(machine.memory() / _PROCESS_BYTES) - 1  # the driver is another
    return max(1, min(machine.gpus() or machine.cores(), fitting))


class Resources:
    """Workers, data and store of one search or training; `open_session` makes it."""

    def __init__(
        self,
        request: Request,
        progress: Progress,
        announce: Announce,
        pool: WorkerPool,
        threads: int,
        dataset: "Dataset",
        store: "Store",
        experiment_id: str,
        adopted: str | None,
    ) -> None:
        self.request = request
        self.pool = pool
        self.threads = threads  # of each worker
        self.store = store
        self.experiment_id = experiment_id
        self.adopted = adopted
        self.data_facts = data_facts(dataset)
        self._dataset = dataset
        self._progress = progress
        self._announce = announce
        self._folder: Path | None = None
        self.recorder: BackgroundWriter
        self.keeper: TrialLogger
        self.trials: TrialScheduler

    def keys(self, points: Iterable[TrainingConfig]) -> fingerprint.GridKeys:
        """Compute the fingerprints of a grid's points on this session's data."""
        return fingerprint.of_grid(points, self.request.split, self._dataset.digest)

    def trial_facts(
        self,
        name: str,
        config: TrainingConfig,
        point: str,
        parent: str | None,
        adopted: str | None = None,
    ) -> "TrialInfo":
        """What the run of a trial records; see `tracking.TrialInfo`."""
        from fmnist_tracking import tracking

        return tracking.TrialInfo(
            name=name,
            config=config,
            split=self.request.split,
            data=self.data_facts,
            origin=self.origin,
            fingerprint=point,
            threads=self.threads,
            parent=parent,
            adopted=adopted,
        )

    @cached_property
    def origin(self) -> "Provenance":
        """Which code runs, and on what machine."""
        from fmnist_tracking import environment, tracking

        runtime.load_tensorflow()  # which knows the GPUs
        return tracking.Provenance(
            code=environment.code(), environment=environment.describe(self.threads)
        )

    def task(self, number: int, config: TrainingConfig, point: str, folder: Path) -> TrialTask:
        """What a worker is to do for a point, given its fingerprint and the session's folder."""
        return TrialTask(
            number=number,
            config=config,
            split=self.request.split,
            data_dir=self.request.data_dir,
            data_sha256=self._dataset.digest,
            fingerprint=point,
            folder=folder / point[:16],
        )

    def start(self, run_id: str | None, folder: Path) -> None:
        """Be ready to run trials.

        Args:
            run_id: of the search, None for a training of its own.
            folder: for checkpoints.
        """
        cache_split(self._dataset, self.request.split)
        runtime.load_tensorflow()
        from fmnist_tracking import tracking
        from fmnist_tracking.networks import coursework  # noqa: F401  # used by the keeper

        # What is loaded by now stays: without this, Python would look through all of it again and
        # again for something to free, and all threads would wait for a third of a second each time.
        gc.freeze()
        gc.enable()  # which the start of the command had put off

        def beat() -> None:
            held = run_id or self.keeper.run_id(1)
            if held:
                tracking.renew_lease(self.store, held)

        self.recorder = tracking.BackgroundWriter(
            self.store,
            outage_lines(self._progress.say, folder),
            beat,
            tracking.BEAT_SECONDS,
        )
        examples = self._dataset.train_images[:_EXAMPLES, ..., None]
        self.keeper = TrialLogger(
            self.store, self.recorder, self.experiment_id, examples, self._progress.say
        )
        self.trials = TrialScheduler(self.pool, self.keeper, self._progress)
        self._folder = folder  # last: it says that there is something to end

    def wait_for(self, future: "Future[Any]") -> None:
        """Wait for one trial, unless the store fails for good."""
        wait([future, self.recorder.failed], return_when=FIRST_COMPLETED)
        if self.recorder.failed.done():
            self.recorder.failed.result()

    def write_all(self) -> None:
        """Wait until all is in the store.

        Raises:
            ConfigError: the time to wait, from the environment, is no number.
            TrackingError: the store did not answer for too long.
        """
        self.recorder.flush(runtime.store_patience())

    def close(self) -> None:
        """End what `start` started, when all is written."""
        from fmnist_tracking import tracking

        if self._folder is not None:
            # A server that hung may have made a run twice; what nobody knows of is closed.
            self.recorder.submit(
                lambda _: tracking.close_own(self.store, self.experiment_id, "KILLED")
            )
            self.recorder.close(_CLOSING_SECONDS)

    def end(self, status: str) -> None:
        """End the workers at once, and close the open runs, the search's with this status."""
        from fmnist_tracking import tracking

        if self._folder is None:  # nothing runs yet
            self.pool.kill()
            with contextlib.suppress(Exception):
                tracking.close_own(self.store, self.experiment_id, status)
            return
        self.trials.stop()
        if self.recorder.failed.done():
            with contextlib.suppress(Exception):
                tracking.close_own(self.store, self.experiment_id, status)
            return
        self.recorder.submit(lambda _: tracking.close_own(self.store, self.experiment_id, status))
        if not self.recorder.close(_CLOSING_SECONDS):
            self._announce(
                "The store did not answer in time, so that runs stay RUNNING there; the same "
                "command, or `fmnist-track runs --repair`, puts that right. What it does not "
                f"have yet is kept in {self._folder}."
            )


@contextlib.contextmanager
def open_session(
    command: str, request: Request, progress: Progress, workers: int, announce: Announce
) -> Iterator[Resources]:
    """Start workers, load the data, open the store; left by an exception, close all runs.

    Args:
        command: `search` or `train`, for the run that `mlflow run` made for it.
        request: what is asked.
        progress: shows how far the trials have come.
        workers: trials that run at once.
        announce: called with lines for a person to read.

    Raises:
        ConfigError: a setting of the environment is wrong.
        DataError: the data cannot be had.
        TrackingError: the store cannot be reached.
    """
    runtime.store_patience()
    runtime.asked_to_compile()
    # The recorder's thread computes; the threads that hand out points must not wait for it long.
    sys.setswitchinterval(_SWITCH_SECONDS)
    sessions: list[Resources] = []

    def on_report(worker: int, event: Any) -> None:
        sessions[0].trials.on_report(worker, event)

    threads = runtime.threads_of(workers)
    start_helpers([_PRELOAD])
    local = [
        LocalWorker(
            partial(runtime.prepare_process, threads, number, [_TRAINING]), _TRIALS_PER_PROCESS
        )
        for number in range(workers)
    ]
    with WorkerPool(local, on_report) as pool:
        from fmnist_tracking import tracking
        from fmnist_tracking.data import load_dataset

        dataset = load_dataset(request.data_dir)
        announce(f"Data: {data_facts(dataset).description}, protocol {request.split.protocol}")
        with tracking.open_store(
            request.tracking_uri, create=True, upgrade=request.upgrade_store
        ) as store:
            adopted = tracking.adoptable_run(store, command)
            experiment_id = tracking.choose_experiment(store, request.experiment, adopted)
            closed = tracking.close_orphans(store, [experiment_id])
            if closed:
                announce(f"Closed as KILLED: {len(closed)} runs whose process was gone.")
            session = Resources(
                request, progress, announce, pool, threads, dataset, store, experiment_id, adopted
            )
            sessions.append(session)
            try:
                yield session
                session.close()
            except BaseException as error:
                session.end("KILLED" if isinstance(error, KeyboardInterrupt) else "FAILED")
                raise


def data_facts(dataset: "Dataset") -> "DatasetInfo":
    """What runs record of their data."""
    from fmnist_tracking.tracking import DatasetInfo

    name = FASHION_MNIST if dataset.is_fashion_mnist else f"not {FASHION_MNIST}"
    return DatasetInfo(sha256=dataset.digest, name=name, source=dataset.source)
