import io

import pytest
from rich.console import Console

from fmnist_tracking.cli import printing
from fmnist_tracking.config import COURSEWORK_GRID, SearchSpace, TrainingConfig
from fmnist_tracking.results import SearchResult
from test_results import trial


def test_a_search_of_the_usual_grid_fits_a_narrow_terminal(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    space = SearchSpace(axes=COURSEWORK_GRID)
    trials = tuple(
        trial(f"{number:032x}", 0.8, config=config)
        for number, config in enumerate(space.points(TrainingConfig()))
    )
    result = SearchResult(run_id="a" * 32, experiment_id="1", space=space, trials=trials)
    file = io.StringIO()
    monkeypatch.setattr(printing, "out", Console(file=file, width=80, markup=False))
    printing.print_trials(result, as_json=False)
    lines = file.getvalue().splitlines()
    assert max(map(len, lines)) <= 80
    words = {word for line in lines for word in line.split()}
    assert {"kernel_size", "filters", "strides", "seconds", "FINISHED", "0.8000"} <= words
    assert {one.run_id[:8] for one in trials} <= words
    assert not any("…" in word for word in words)
