import re

from hypothesis import assume, given
from hypothesis import strategies as st

from fmnist_tracking.config import TrainingConfig
from fmnist_tracking.leaderboard import effects
from fmnist_tracking.redact import printable
from fmnist_tracking.results import SearchResult
from fmnist_tracking.search_space import SearchSpace
from fmnist_tracking.split_config import SplitConfig
from fmnist_tracking.tracking import descriptions
from records import training, trial

SPACE = SearchSpace(axes={"filters": (12, 48), "strides": (1, 2)})
SCORES = (0.8, 0.7, 0.9, None)


def search(**changes: object) -> SearchResult:
    trials = tuple(
        trial(f"{n:032x}", score, config=config, name=f"trial_{n}", **changes)
        for n, (config, score) in enumerate(
            zip(SPACE.points(TrainingConfig.of()), SCORES, strict=True), start=1
        )
    )
    return SearchResult(run_id="a" * 32, experiment_id="7", space=SPACE, trials=trials)


def ended(result: SearchResult) -> str:
    return descriptions.search_ended(result, effects(result.space, result.finished))


def test_a_search_s_description_says_who_won_and_by_how_much() -> None:
    text = ended(search())
    first = text.splitlines()[2]
    assert r"[trial\_3](#/experiments/7/runs/" + f"{3:032x}" in first
    assert "validation accuracy 0.9000 after epoch 3, 0.1000 ahead of" in first
    assert "3 of 4 points finished; 1 failed." in text
    rows = [line for line in text.splitlines() if re.match(r"\| \d", line)]
    assert [re.findall(r"trial\\_(\d)", row) for row in rows] == [["3"], ["1"], ["2"]]


def test_a_search_s_description_says_what_each_setting_did() -> None:
    text = ended(search())
    # 12 filters: 0.8 and 0.7; 48 filters: 0.9 alone.
    assert "| `filters` | 12: 0.7500, 48: 0.9000 | 0.1500 |" in text


def test_a_search_without_a_finished_point() -> None:
    result = SearchResult(run_id="a" * 32, experiment_id="7", space=SPACE, trials=())
    assert "\n\n**No point has finished.**" in ended(result)


def test_repeats_are_told_as_a_mean() -> None:
    space = SearchSpace(axes={"filters": (12, 48), "seed": (0, 1)})
    trials = tuple(
        trial(f"{n:032x}", score, config=config)
        for n, (config, score) in enumerate(
            zip(space.points(TrainingConfig.of()), (0.9, 0.5, 0.8, 0.8), strict=True)
        )
    )
    text = ended(SearchResult(run_id="a" * 32, experiment_id="7", space=space, trials=trials))
    assert "its seeds have 0.8000 ± 0.0000, 0.1000 ahead of" in text
    assert "| mean of its seeds |" in text


def half_diverged(*axes: tuple[str, tuple[int | float, ...]], share: int = 2) -> SearchResult:
    """A grid of two seeds a point: the second of each diverged, or both of each."""
    space = SearchSpace(axes={**dict(axes), "seed": (0, 1)})
    trials = tuple(
        trial(f"{n:032x}", 0.5 + n / 100, config=config, diverged=share == 1 or bool(config.seed))
        for n, config in enumerate(space.points(TrainingConfig.of()), start=1)
    )
    return SearchResult(run_id="a" * 32, experiment_id="7", space=space, trials=trials)


AXES = (("filters", (12, 36, 48)), ("learning_rate", (0.001, 0.01)))


def test_a_grid_each_of_whose_points_has_a_seed_that_diverged_is_described() -> None:
    text = ended(half_diverged(*AXES))
    assert "12 of 12 points finished; 6 trials diverged." in text
    assert "**Best: " in text
    assert "What each setting did" not in text  # no point has a score that can be compared
    many = ended(half_diverged(("hidden_units", tuple(range(1, 40)))))
    assert "What each setting did" not in many
    assert "**Every trial diverged**" in ended(half_diverged(*AXES, share=1))


def test_a_setting_of_which_one_value_has_a_score_is_told() -> None:
    space = SearchSpace(axes={"strides": (1, 2), "seed": (0, 1)})
    trials = tuple(
        trial(f"{n:032x}", 0.7, config=config, diverged=config["strides"] == 2 and config.seed == 1)
        for n, config in enumerate(space.points(TrainingConfig.of()), start=1)
    )
    text = ended(SearchResult(run_id="a" * 32, experiment_id="7", space=space, trials=trials))
    assert "| `strides` | 1: 0.7000, 2: diverged | 0.0000 |" in text


def test_the_command_trains_the_trial_again() -> None:
    def told(split: SplitConfig) -> str:
        return descriptions.trial_ended("7", "b" * 32, training(0.5, 0.6), split, "m-1", 1000)

    assert "`fmnist-track train --epochs 2 --limit 600 --fresh`" in told(SplitConfig(limit=600))
    assert "--protocol coursework" in told(SplitConfig(protocol="coursework"))
    # No option of `train` gives the split another seed than the training.
    assert "fmnist-track train" not in told(SplitConfig(seed=3))


def test_an_axis_of_many_values_is_told_in_short() -> None:
    space = SearchSpace(axes={"hidden_units": tuple(range(1, 701))})
    trials = tuple(
        trial(f"{n:032x}", n / 1000, config=config)
        for n, config in enumerate(space.points(TrainingConfig.of()), start=1)
    )
    text = ended(SearchResult(run_id="a" * 32, experiment_id="7", space=space, trials=trials))
    assert "| 700 values, the best 700: 0.7000 | 0.6990 |" in text
    assert len(text) < 5000  # MLflow cuts what is longer than 8000


def test_no_command_trains_other_data_again() -> None:
    text = descriptions.trial_ended(
        "7", None, training(0.5), SplitConfig(), "m-1", 1000, other_data="data set kmnist"
    )
    assert "fmnist-track train" not in text


def test_what_a_person_wrote_is_told_from_what_is_written_here() -> None:
    note, other = descriptions.trial_begun("7", None), descriptions.search_begun(12)
    assert descriptions.beside(note, {}) == note
    assert descriptions.beside(note, {"mlflow.note.content": other}) == note
    both = descriptions.beside(note, {"mlflow.note.content": "Mine."})
    assert both == f"Mine.\n\n---\n\n{note}"
    assert descriptions.beside(other, {"mlflow.note.content": both}) == f"Mine.\n\n---\n\n{other}"


def test_a_description_of_an_earlier_release_is_replaced() -> None:
    note = descriptions.trial_begun("7", None)
    old = "One point.\n\n*fmnist-track*"
    assert descriptions.beside(note, {"mlflow.note.content": old}) == note
    both = descriptions.beside(note, {"mlflow.note.content": f"Mine.\n\n---\n\n{old}"})
    assert both == f"Mine.\n\n---\n\n{note}"


PERSONS = st.text("ab \n-*#|", max_size=40).flatmap(
    lambda text: st.integers(0, 250).map(lambda times: (text * times)[:7990])
)


@given(above=PERSONS, below=st.text("ab \n", max_size=40))
def test_not_a_word_of_a_person_s_is_lost_however_long(above: str, below: str) -> None:
    begun, ended = descriptions.search_begun(12), "A table.\n\n" * 100
    present = descriptions.beside(begun, {"mlflow.note.content": above}) + below
    assume(len(present) <= 8000)
    for _ in range(3):
        present = descriptions.beside(descriptions.signed(ended), {"mlflow.note.content": present})
        assert present.startswith(above)
        assert present.endswith(below)
        assert len(present) <= 8000
        assert present.count("*fmnist-track*") <= 1


@given(st.text())
def test_nothing_of_a_text_is_markup(text: str) -> None:
    shown = descriptions.plain(text)
    assert "\n" not in shown
    assert not re.search(r"(?<!\\)(?:\\\\)*[`*_\[\]<>|#]", shown)
    assert re.sub(r"\\(.)", r"\1", shown) == printable(" ".join(text.split()))
