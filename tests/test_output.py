import dataclasses
import io
import itertools

import pytest
from rich.console import Console

from fmnist_tracking.cli import output
from fmnist_tracking.config import COURSEWORK_GRID, TrainingConfig
from fmnist_tracking.grid_search.dry_run import DryRun, DryRunPoint
from fmnist_tracking.network import Value
from fmnist_tracking.results import SearchResult
from fmnist_tracking.runs import Search
from fmnist_tracking.search_space import SearchSpace, trial_name
from records import trial

MANY_AXES: dict[str, tuple[Value, ...]] = {
    "filters": (128, 256),
    "kernel_size": (3, 4),
    "hidden_units": (1024, 2048),
    "dropout": (0.123456789012345, 0.2),
    "learning_rate": (0.000123456789012345, 0.001),
    "batch_size": (32, 1024),
}


def searched(axes: dict[str, tuple[Value, ...]]) -> SearchResult:
    """A search of a grid, whose first trial failed."""
    space = SearchSpace(axes=axes)
    trials = [
        dataclasses.replace(
            trial(f"{number:032x}", 0.8, config=config), name=trial_name(config, space.varying)
        )
        for number, config in enumerate(space.points(TrainingConfig.of()))
    ]
    trials[0] = dataclasses.replace(
        trials[0], status="FAILED", val_accuracy=None, error="OSError: no room\x1b[2J left"
    )
    return SearchResult(run_id="a" * 32, experiment_id="1", space=space, trials=tuple(trials))


def printed(
    monkeypatch: pytest.MonkeyPatch, result: SearchResult | DryRun, width: int
) -> list[str]:
    file = io.StringIO()
    monkeypatch.setattr(output, "out", Console(file=file, width=width, markup=False))
    if isinstance(result, DryRun):
        output.print_plan(result, as_json=False)
    else:
        output.print_trials(Search(result, "sqlite://"), as_json=False)
    return file.getvalue().splitlines()


@pytest.mark.parametrize("width", [60, 80])
@pytest.mark.parametrize("axes", [COURSEWORK_GRID, MANY_AXES], ids=["usual", "many"])
def test_a_narrow_terminal_has_rank_name_and_score(
    monkeypatch: pytest.MonkeyPatch, width: int, axes: dict[str, tuple[Value, ...]]
) -> None:
    result = searched(axes)
    lines = printed(monkeypatch, result, width)
    table = [*itertools.takewhile(lambda line: not line.startswith("FAILED:"), lines)]
    assert max(map(len, table)) <= width
    words = {word for line in table for word in line.split()}
    assert {"rank", "trial", "val.", "acc.", "0.8000", "1"} <= words
    assert not any("…" in word for word in words)
    # What is too long for a line goes on in the next ones.
    names = "".join(line[4:].split("0.8000")[0] for line in table).replace(" ", "")
    if axes is COURSEWORK_GRID:
        for one in result.trials:
            assert one.name.replace(" ", "") in names
            assert one.run_id[:8] in words
    assert {"f256", "f128"} <= words if axes is MANY_AXES else {"f36", "f48"} <= words


def test_output_that_is_no_terminal_has_every_column(monkeypatch: pytest.MonkeyPatch) -> None:
    heading = printed(monkeypatch, searched(MANY_AXES), 10_000)[0]
    for column in ("rank", "trial", "run id", *MANY_AXES, "status", "val. acc.", "best epoch"):
        assert column in heading
    assert heading.rstrip().endswith("seconds")


def test_what_points_with_several_seeds_are_ranked_by_is_shown(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    found = searched({"filters": (12, 36), "seed": (0, 1)})
    scores = (0.7, 0.6, 0.66, 0.62)
    trials = tuple(
        dataclasses.replace(one, status="FINISHED", error=None, val_accuracy=score)
        for one, score in zip(found.trials, scores, strict=True)
    )
    heading, *rows = printed(monkeypatch, dataclasses.replace(found, trials=trials), 10_000)
    at = heading.index("point's mean")
    assert [row[at : at + 6] for row in rows[:4]] == ["0.6500", "0.6500", "0.6400", "0.6400"]
    heading, *_ = printed(monkeypatch, searched(COURSEWORK_GRID), 10_000)
    assert "point's mean" not in heading


def test_a_failed_trial_says_why_in_a_line(monkeypatch: pytest.MonkeyPatch) -> None:
    for width in (60, 10_000):
        lines = printed(monkeypatch, searched(COURSEWORK_GRID), width)
        assert "FAILED: f12 k3 s1, run 00000000: OSError: no room\\x1b[2J left" in lines


def test_a_notebook_s_table_shows_names_as_text() -> None:
    result = searched(COURSEWORK_GRID)
    named = dataclasses.replace(result.trials[1], name="<b>\u202e\x1b[2J")
    result = dataclasses.replace(result, trials=(result.trials[0], named, *result.trials[2:]))
    page = Search(result, "sqlite://")._repr_html_()
    assert r"&lt;b&gt;\u202e\x1b[2J" in page
    assert {c for c in page if not c.isprintable()} == {"\n"}


@pytest.mark.parametrize("width", [60, 80])
def test_a_plan_on_a_narrow_terminal_has_names_and_states(
    monkeypatch: pytest.MonkeyPatch, width: int
) -> None:
    names = [trial.name for trial in searched(MANY_AXES).trials]
    points = tuple(
        DryRunPoint(name=name, state="finished", run_id="b" * 32, epochs_done=25, epochs=25)
        for name in names
    )
    plan = DryRun(points=points, workers=2, seconds=None, based_on="nothing", disk_bytes=0)
    lines = printed(monkeypatch, plan, width)
    assert max(map(len, lines)) <= width
    joined = "".join("".join(line.split()).replace("finished", "") for line in lines)
    for name in names:
        assert name.replace(" ", "") in joined
    assert sum(line.rstrip().endswith("finished") for line in lines) == len(names)
