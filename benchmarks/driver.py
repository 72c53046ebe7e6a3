"""What the driver costs, with trials that only wait.

    python -m benchmarks.driver [--repeats 3] [--points 64] [--finished 10000]

Prints how busy it keeps four workers, how long a worker waits for its next point, and how
long a search of 10,000 points takes to see that all of them are finished.
"""

import argparse
import sqlite3
import statistics
import time
import uuid

import fmnist_tracking as ft
from benchmarks import stubs
from fmnist_tracking.config import TrainingConfig
from fmnist_tracking.results import SearchResult
from fmnist_tracking.search_space import SearchSpace
from fmnist_tracking.split_config import SplitConfig

WORKERS = 4
BASE = TrainingConfig.of(epochs=1)
SPLIT = SplitConfig(limit=600)


def grid(points: int, first: int = 0) -> SearchSpace:
    """Return a grid of so many points, with at most 100 seeds."""
    seeds = min(points, 100)
    return SearchSpace(
        axes={
            "filters": (4,),
            "strides": (2,),
            "hidden_units": tuple(range(1, points // seeds + 1)),
            "seed": tuple(range(first, first + seeds)),
        }
    )


def _search(space: SearchSpace) -> SearchResult:
    search = ft.search(space, epochs=1, limit=600, experiment="stubs", workers=WORKERS)
    return search.result


def busy(points: int, repeat: int) -> None:
    """Search so many points with 4 workers, and print how busy these were."""
    result = _search(grid(points, repeat * points))
    spans = sorted(_spans(result))
    wall = max(end for _, end in spans) - min(start for start, _ in spans)
    concurrency = sum(end - start for start, end in spans) / wall
    ends = sorted(end for _, end in spans)
    # Each trial but the first four takes the place of one that has ended: in that order.
    starts = sorted(start for start, _ in spans)[WORKERS:]
    waits = [start - end for start, end in zip(starts, ends, strict=False)]
    print(
        f"{points} points, {WORKERS} workers, trials of {stubs.SECONDS} s: mean concurrency "
        f"{concurrency:.2f}, next point after {1000 * statistics.fmean(waits):.1f} ms "
        f"(longest {1000 * max(waits):.1f} ms)",
        flush=True,
    )


def _spans(result: SearchResult) -> list[tuple[float, float]]:
    from fmnist_tracking import tracking

    spans = []
    with tracking.open_store() as store:
        for trial in result.trials:
            (epoch,) = store.client.get_metric_history(trial.run_id, "epoch_seconds")
            end = epoch.timestamp / 1000
            spans.append((end - epoch.value, end))
    return spans


def many(points: int) -> None:
    """Print how long it takes to see that so many points are finished."""
    one = _search(grid(1, 10**6)).trials[0].run_id
    space = grid(points, 2 * 10**6)
    run_id = _pretend_finished(space, one)
    for kind in ("a search that was cut off at its very end", "a finished search"):
        start = time.perf_counter()
        result = _search(space)
        seconds = time.perf_counter() - start
        assert (result.run_id, len(result.finished)) == (run_id, points)
        print(f"{points:,} finished points of {kind}: {seconds:.1f} s", flush=True)


def _pretend_finished(space: SearchSpace, like: str) -> str:
    """Copy a finished run, row by row, for each point of a grid; give their search's run id."""
    from fmnist_tracking import environment, fingerprint, tracking
    from fmnist_tracking.data import load_dataset

    digest = load_dataset().digest
    points = space.points(BASE)
    prints = [fingerprint.of_point(point, SPLIT, digest) for point in points]
    with tracking.open_store() as store:
        experiment_id = store.experiment_id("stubs")
        facts = tracking.SearchInfo(
            name="a large search",
            space=space,
            base=BASE,
            split=SPLIT,
            data=tracking.DatasetInfo(sha256=digest, name="Fashion-MNIST", source="here"),
            origin=tracking.Provenance(code=environment.code(), environment={}),
            grid=fingerprint.of_search(prints),
            points=len(space),
        )
        run_id = tracking.start_search(store, experiment_id, facts)
        store.client.set_terminated(run_id, "KILLED")
    database = sqlite3.connect("mlflow.db")
    for config, point in zip(points, prints, strict=True):
        new = {
            "fmnist.point": point,
            "mlflow.parentRunId": run_id,
            "seed": str(config.seed),
            "hidden_units": str(config["hidden_units"]),
        }
        child = uuid.uuid4().hex
        for table in ("runs", "tags", "params", "latest_metrics"):
            rows = database.execute(f"SELECT * FROM {table} WHERE run_uuid = ?", (like,))
            names = [column[0] for column in rows.description]
            for row in rows.fetchall():
                values = {**dict(zip(names, row, strict=True)), "run_uuid": child}
                if values.get("key") in new:
                    values["value"] = new[values["key"]]
                marks = ", ".join("?" * len(names))
                database.execute(
                    f"INSERT INTO {table} VALUES ({marks})", [values[name] for name in names]
                )
    database.commit()
    return run_id


def main() -> None:
    """Measure, in a new folder with a new store."""
    parser = argparse.ArgumentParser(description="What the driver costs.")
    parser.add_argument("--repeats", type=int, default=3, help="searches of trials that wait")
    parser.add_argument("--points", type=int, default=64, help="of each, at most 100")
    parser.add_argument("--finished", type=int, default=10_000, help="points, a multiple of 100")
    options = parser.parse_args()
    with stubs.instead_of_training(stubs.run_trial):
        for repeat in range(options.repeats):
            busy(options.points, repeat)
        many(options.finished)


if __name__ == "__main__":
    main()
