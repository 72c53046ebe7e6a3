import re
import shutil
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import keras_tuner
import pytest

import nets
from fmnist_tracking.config import TrainingConfig
from fmnist_tracking.errors import ConfigError, for_command_line
from fmnist_tracking.network import COURSEWORK, Network
from fmnist_tracking.networks import coursework, coursework_plus, three_blocks
from fmnist_tracking.networks.build import build_model, size_of_model
from fmnist_tracking.networks.source import find_network
from fmnist_tracking.networks.space import defaults, explore_grid
from fmnist_tracking.search_space import Draw, SearchSpace

NETS = Path(nets.__file__)
DOCUMENTED = ("choice", "int_and_boolean", "loop_of_layers", "conditional", "scopes", "Model")
SHIPPED = (coursework.build, coursework_plus.build, three_blocks.build)


def called(name: str) -> Network:
    return find_network(f"{NETS}:{name}")


def tried_by_keras_tuner(
    build: Any, folder: Path, kind: Any = keras_tuner.GridSearch, **settings: int
) -> list[dict[str, Any]]:
    """Return the values of every point that KerasTuner's own search tries, in its order."""

    class Stub(kind):  # type: ignore[misc]
        def run_trial(self, trial: Any, *_: Any, **__: Any) -> float:
            self.hypermodel.build(trial.hyperparameters)
            return 0.5

    objective = keras_tuner.Objective("score", "max")
    tuner = Stub(build, objective=objective, directory=folder, overwrite=True, **settings)
    tuner.search(verbose=0)
    return [trial.hyperparameters.values for trial in tuner.oracle.trials.values()]


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("name", DOCUMENTED)
def test_the_grid_is_what_keras_tuner_itself_tries(name: str, tmp_path: Path) -> None:
    build = getattr(nets, name)
    expected = tried_by_keras_tuner(build(10) if isinstance(build, type) else build, tmp_path)
    found = explore_grid(called(name), {})
    assert [dict(one.values) for one in found.combinations] == expected
    assert len(expected) >= 3
    assert found.impossible == ()


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("name", [*DOCUMENTED, "without_steps"])
@pytest.mark.parametrize("seed", [1, 7])
def test_drawn_points_are_those_of_keras_tuner_s_random_search(
    name: str, seed: int, tmp_path: Path
) -> None:
    build = getattr(nets, name)
    model = build(10) if isinstance(build, type) else build
    expected = tried_by_keras_tuner(
        model, tmp_path, keras_tuner.RandomSearch, max_trials=5, seed=seed
    )
    found = explore_grid(called(name), {}, draw=Draw(points=5, seed=seed))
    assert [dict(one.values) for one in found.combinations] == expected
    # More of them begin with the same.
    more = explore_grid(called(name), {}, draw=Draw(points=6, seed=seed)).combinations
    assert more[: len(expected)] == found.combinations


def test_drawn_numbers_are_listed_by_size_and_given_values_are_kept() -> None:
    draw = Draw(points=6, seed=0)
    found, again = (
        explore_grid(called("without_steps"), {"units": ("16",)}, draw=draw) for _ in range(2)
    )
    assert found == again
    rates = [dict(one.values)["rate"] for one in found.combinations]
    assert len(set(rates)) == 6
    assert found.axes == {"rate": tuple(sorted(rates))}
    assert {dict(one.values)["units"] for one in found.combinations} == {16}


@pytest.mark.parametrize("build", SHIPPED, ids=lambda build: build.__module__)
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_shipped_networks_have_keras_tuner_s_grid(build: Any, tmp_path: Path) -> None:
    network = find_network(build)
    expected = tried_by_keras_tuner(build, tmp_path)
    assert [dict(one.values) for one in explore_grid(network, {}).combinations] == expected
    assert len(expected) == {"coursework": 12}.get(build.__module__.split(".")[-1], len(expected))


def test_the_coursework_s_grid_is_known_without_asking_keras_tuner() -> None:
    axes = {"filters": (5, 2), "dropout": (0.1, 0.4), "strides": (2, 1)}
    space = SearchSpace(axes=axes)
    asked = explore_grid(COURSEWORK, {"hidden_units": (64,), "kernel_size": (3,), **axes})
    known = {config.hyperparameters: config.size for config in space.points(TrainingConfig())}
    assert {tuple(sorted(pairs)) for pairs in known} == {
        tuple(sorted(one.values)) for one in asked.combinations
    }


def test_what_is_known_of_the_coursework_s_network_is_so() -> None:
    for values in ({}, {"filters": 5, "strides": 2, "kernel_size": 4}):
        config = TrainingConfig.of(**values)
        counted = size_of_model(build_model(config))
        assert config.size is not None
        assert counted.parameters == config.size.parameters
        assert counted.multiply_adds == config.size.multiply_adds
    found = explore_grid(COURSEWORK, {})
    assert {tuple(sorted(c.hyperparameters)) for c in SearchSpace().points(TrainingConfig())} == {
        tuple(sorted(one.values)) for one in found.combinations
    }


def test_values_can_be_replaced() -> None:
    found = explore_grid(
        called("int_and_boolean"),
        {"units": ("3", "40"), "lr": (0.1,), "dropout": ("true",), "activation": ("gelu",)},
    )
    assert [dict(one.values) for one in found.combinations] == [
        {"units": units, "activation": "gelu", "dropout": True, "lr": 0.1} for units in (3, 40)
    ]
    assert found.axes == {"units": (3, 40)}
    inner = explore_grid(called("loop_of_layers"), {"num_layers": (2,), "units_1": (5, 6, 7)})
    assert inner.axes == {"units_0": (4, 8), "units_1": (5, 6, 7)}
    only = explore_grid(called("conditional"), {"model_type": ("cnn",), "optimizer": ("sgd",)})
    assert {dict(one.values)["momentum"] for one in only.combinations} == {0.0, 0.4, 0.8}
    assert all("mlp_units" not in dict(one.values) for one in only.combinations)


def test_layers_have_the_same_names_whatever_was_built_before() -> None:
    network = find_network(coursework_plus.build)
    config = TrainingConfig.of(network, filters=12, batch_normalization=True)
    first, second = ([layer.name for layer in build_model(config).layers] for _ in range(2))
    assert first == second
    assert {"conv2d", "conv2d_1", "batch_normalization"} <= {*first}


def test_what_is_not_given_has_its_default() -> None:
    found = defaults(called("conditional"), {"optimizer": "sgd", "momentum": "0.5"})
    assert dict(found.values) == {
        "model_type": "mlp",
        "mlp_units": 4,
        "optimizer": "sgd",
        "momentum": 0.5,
    }
    assert found.size is not None
    assert found.size.parameters == sum(
        weight.size for weight in nets.conditional(keras_tuner.HyperParameters()).get_weights()
    )


@pytest.mark.parametrize(
    ("name", "replaced", "said"),
    [
        ("choice", {"unit": (3,)}, "no hyperparameter 'unit'. Did you mean units?"),
        ("choice", {"units": ("x",)}, "Expected units to list whole numbers.*got 'x'"),
        ("choice", {"units": (1.5,)}, "Expected units to list whole numbers.*got 1.5"),
        ("int_and_boolean", {"dropout": ("yes",)}, "dropout to list true or false"),
        (
            "endless",
            {},
            "rate are without end.*Float without a step.*such as rate=0.1,0.5",
        ),
        ("clash", {}, "a hyperparameter batch_size, which is also a setting of the training"),
        ("uncompiled", {}, "return a compiled model: end it with model.compile"),
        ("colour", {}, re.escape("takes images of shape (32, 32, 3); the data has (28, 28, 1)")),
        ("twelve", {}, re.escape("gives (12,) for an image; expected 10 probabilities")),
        ("nothing", {}, "return a compiled Keras model, got NoneType"),
        ("broken", {}, r"nets.py, line \d+: ZeroDivisionError: the cause"),
        ("Fitting", {}, "has a method fit, which is not used here"),
        ("number", {}, "to be a function build.hp. or a HyperModel, got int"),
    ],
)
def test_what_cannot_be_a_grid_is_told_in_a_line(
    name: str, replaced: Mapping[str, Any], said: str
) -> None:
    with pytest.raises(ConfigError) as error:
        explore_grid(called(name), replaced)
    line = for_command_line(str(error.value))
    assert re.search(said, line), line
    assert "\n" not in line


def test_a_point_that_cannot_be_built_does_not_hide_the_others() -> None:
    found = explore_grid(called("sometimes"), {})
    assert [dict(one.values)["size"] for one in found.combinations] == [3, 2]
    (one,) = found.impossible
    assert one.name == "size=40"
    assert re.search(r"nets.py, line \d+: ValueError", one.reason)


def test_a_network_is_found_by_any_of_its_names(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert find_network(None) is find_network("coursework") is COURSEWORK
    assert find_network("fmnist_tracking.networks.coursework:build") is COURSEWORK
    assert find_network(coursework.build) is COURSEWORK
    monkeypatch.chdir(tmp_path)
    shutil.copy(NETS, "mine.py")
    by_file, by_module = find_network("mine.py:choice"), find_network("mine:choice")
    assert by_file == by_module == find_network(str(tmp_path / "mine.py:choice"))
    assert (by_file.name, by_module.name) == ("mine.py:choice", "mine:choice")
    assert by_file != find_network("mine.py:scopes")


@pytest.mark.parametrize(
    ("named", "said"),
    [
        ("build", "FILE.py:NAME or package.module:NAME, got 'build'"),
        ("nowhere.py:build", "There is no file nowhere.py"),
        ("no.such.module:build", "There is no module no.such.module"),
        ("os.path:join:", "FILE.py:NAME"),
        (lambda hp: None, "no name at the top of a module"),
        (3, "a function build"),
    ],
)
def test_no_network_is_told_in_a_line(
    named: Any, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError) as error:
        find_network(named)
    assert said in for_command_line(str(error.value))


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("def build(hp)\n", "line 1: expected ':'"),
        ("x = 1\n\ndef build(hp):\nreturn 1\n", "line 4: expected an indented block"),
    ],
)
def test_an_error_of_syntax_has_its_line(text: str, said: str, tmp_path: Path) -> None:
    file = tmp_path / "net.py"
    file.write_text(text)
    with pytest.raises(ConfigError) as error:
        find_network(f"{file}:build")
    assert re.search(said, str(error.value)), error.value
    assert str(file) in str(error.value)


def test_a_missing_function_is_told_with_those_that_there_are(tmp_path: Path) -> None:
    file = tmp_path / "net.py"
    file.write_text("if True:\n    def other(hp):\n        pass\n")
    with pytest.raises(ConfigError, match=r"There is no build in .*net.py. It has: other"):
        explore_grid(find_network(f"{file}:build"), {})


def test_an_error_of_import_has_its_line(tmp_path: Path) -> None:
    file = tmp_path / "net.py"
    file.write_text("import keras\n\nwidth = heigth\n\ndef build(hp):\n    pass\n")
    with pytest.raises(ConfigError, match=r"net.py, line 3: NameError: name 'heigth'"):
        explore_grid(find_network(f"{file}:build"), {})


SOURCE = '''"""Mine."""
import helper
from layers import deep

def build(hp):
    """Build it."""
    # A comment.
    return helper.make(hp)
'''


def test_its_source_is_its_file_and_what_it_imports_from_beside_it(tmp_path: Path) -> None:
    files = {
        "net.py": SOURCE,
        "helper.py": "import third\nWIDTH = 3\n",
        "third.py": "A = 1\n",
        "layers/__init__.py": "",
        "layers/deep.py": "DEPTH = 2\n",
        "other.py": "B = 1\n",
    }

    def digest(**changed: str) -> str:
        for name, text in {
            **files,
            **{k.replace("__", "/") + ".py": v for k, v in changed.items()},
        }.items():
            (tmp_path / name).parent.mkdir(exist_ok=True)
            (tmp_path / name).write_text(text)
        return find_network(f"{tmp_path / 'net.py'}:build").source

    first = digest()
    assert digest(other="B = 2\n") == first
    assert (
        digest(net=SOURCE.replace("# A comment.", "# Another.").replace("Build it", "Make"))
        == first
    )
    assert digest(helper="import third\n\n\nWIDTH = 3  # wide\n") == first
    changes = {
        "net": SOURCE.replace("make", "take"),
        "helper": "import third\nWIDTH = 4\n",
        "third": "A = 2\n",
        "layers__deep": "DEPTH = 3\n",
    }
    others = {digest(**{name: text}) for name, text in changes.items()}
    assert len(others | {first}) == 5
    assert digest() == first
    (tmp_path / "net.py").rename(tmp_path / "renamed.py")
    assert find_network(f"{tmp_path / 'renamed.py'}:build").source == first


def test_a_package_s_modules_count_wherever_they_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    files = {
        "pkg/__init__.py": "",
        "pkg/common.py": "WIDTH = 1\n",
        "pkg/nets/__init__.py": "",
        "pkg/nets/blocks/__init__.py": "from .conv import make\n",
        "pkg/nets/blocks/conv.py": "SIZE = 3\n",
        "pkg/nets/small.py": "from ..common import WIDTH\nfrom .blocks import make\n",
        "other.py": "A = 1\n",
    }

    def digest(changed: Mapping[str, str]) -> str:
        for name, text in {**files, **changed}.items():
            Path(name).parent.mkdir(parents=True, exist_ok=True)
            Path(name).write_text(text)
        return find_network("pkg.nets.small:build").source

    first = digest({})
    assert digest({"other.py": "A = 2\n"}) == first
    changes = {
        "pkg/__init__.py": "B = 1\n",
        "pkg/common.py": "WIDTH = 2\n",
        "pkg/nets/blocks/__init__.py": "from .conv import make\nC = 1\n",
        "pkg/nets/blocks/conv.py": "SIZE = 4\n",
    }
    assert len({digest({name: text}) for name, text in changes.items()} | {first}) == 5


def test_what_is_run_as_a_script_does_not_count(tmp_path: Path) -> None:
    file = tmp_path / "net.py"
    sources = set()
    for last in (
        "",
        "if __name__ == '__main__':\n    main(1)\n",
        "if '__main__' == X:\n    y = 1\n",
    ):
        file.write_text(f"def build(hp):\n    return {{'a': f'{{hp}}_{{1}}'}}\n{last}")
        sources.add(find_network(f"{file}:build").source)
    assert len(sources) == 2


def test_a_file_that_changes_meanwhile_is_not_used(tmp_path: Path) -> None:
    file, helper = tmp_path / "net.py", tmp_path / "my_helper.py"
    source = Path(nets.__file__).read_text().replace('"units", [8, 16, 32]', "'units', UNITS")
    file.write_text(f"from my_helper import UNITS\n{source}")

    def found(units: int) -> Network:
        helper.write_text(f"UNITS = [{units}]\n")
        return find_network(f"{file}:choice")

    network = found(1)
    assert dict(explore_grid(network, {}).combinations[0].values) == {"units": 1}
    assert "my_helper" not in sys.modules  # of the program that calls this
    before = found(2)
    assert dict(explore_grid(before, {}).combinations[0].values) == {"units": 2}
    before = found(3)
    found(4)
    with pytest.raises(ConfigError, match=r"net.py:choice has changed while it was in use"):
        explore_grid(before, {})


def test_a_boolean_that_is_given_stays_one() -> None:
    network = called("int_and_boolean")
    own = {one.values for one in explore_grid(network, {"units": (8,)}).combinations}
    given = {"units": (8,), "dropout": ("false", "true")}
    same = {one.values for one in explore_grid(network, given).combinations}
    assert {tuple(sorted(values)) for values in own} == {tuple(sorted(values)) for values in same}
    assert {type(dict(values)["dropout"]) for values in same} == {bool}


def test_configurations_are_equal_whatever_the_order_of_their_hyperparameters() -> None:
    network = called("choice")
    one = TrainingConfig.of(network, a=1, b=True)
    assert one == TrainingConfig.of(network, b=True, a=1)
    assert hash(one) == hash(TrainingConfig.of(network, b=True, a=1))
    for other in ({"a": 1, "b": 1}, {"a": 1.0, "b": True}, {"a": 1}, {"a": "1", "b": True}):
        assert one != TrainingConfig.of(network, **other)
