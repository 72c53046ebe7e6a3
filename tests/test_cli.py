import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mlflow
import pytest

from conftest import Call
from fmnist_tracking import data, doctor, environment
from fmnist_tracking.cli import options, search
from fmnist_tracking.cli.commands import app
from fmnist_tracking.config import COURSEWORK_GRID
from fmnist_tracking.search_space import SearchSpace
from fmnist_tracking.tracking import Store

COMMANDS = [info.callback.__name__ for info in app.registered_commands if info.callback]


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_explains_itself_with_an_example(call: Call, name: str) -> None:
    status, out, _ = call(name, "--help")
    assert status == 0
    assert f"Example: fmnist-track {name}" in out


def test_the_example_of_every_command_is_one_it_takes(call: Call) -> None:
    for info in app.registered_commands:
        assert info.epilog
        words = info.epilog.removeprefix("Example: fmnist-track ").split()
        status, _, err = call(*words, "--help")
        assert (status, err) == (0, "")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ("search --strides 0", "Expected --strides to list whole numbers of at least 1, got '0'"),
        (
            "search --filters abc",
            "Expected --filters to list whole numbers of at least 1, got 'abc'",
        ),
        ("search --kernel-sizes 30", "leaves nothing for layer conv1"),
        (
            "search --epochs 0",
            "Expected --epochs to be a whole number of at least 1 and below 1000000, got '0'",
        ),
        (
            "search --epochs x",
            "Expected --epochs to be a whole number of at least 1 and below 1000000, got 'x'",
        ),
        ("search --epochs 1e15", "Expected --epochs to be a whole number of at least 1 and below"),
        ("search --workers 0", "Expected --workers to be a whole number of at least 1"),
        ("search --limit 5", "Expected --limit to be from 60"),
        ("search --limit many", "Expected --limit to be a whole number"),
        ("search --protocol mine", "Expected --protocol to be canonical or coursework, got 'mine'"),
        ("search --axis dropout", "Expected --axis NAME=VALUE,VALUE"),
        ("search --axis strides=1 --strides 2", "The axis strides was given twice"),
        ("search --repeats 2 --axis seed=1", "either --repeats or an axis seed"),
        ("search --space none.yaml", "Cannot read the grid file none.yaml"),
        ("search --nonsense", "No such option: --nonsense. See `fmnist-track search --help`."),
        (
            "search --filters 4,8 --filters 12",
            "--filters was given twice. Give all its values at once: --filters 4,8,12",
        ),
        ("search --epochs=3 --limit 600 --epochs 3", "--epochs was given twice. Give it once."),
        ("train --seed=", "Expected --seed to be a whole number"),  # MLflow logs it as it is
        ("report --run-id best --run-id latest", "--run-id was given twice"),
        ("search --axis strides=1 --axis strides=2", "The axis strides was given twice"),
        ("search --axis strides=1;", "Expected --axis NAME=VALUE,VALUE, got ''"),
        (
            "search --experiment --json",
            "Expected a value after --experiment, got the option --json",
        ),
        ("search --limit 6e2", "Expected --limit to be a whole number"),
        ("search --workers 2.0", "Expected --workers to be a whole number"),
        ("search --filters 12.0", "Expected --filters to list whole numbers"),
        ("search --batch-size 064", "Expected --batch-size to be a whole number"),
        ("search --epochs 5 --axis epochs=1,2", "either --epochs or an axis epochs, got both"),
        ("search --seed 1 --axis seed=1,2", "either --seed or an axis seed, got both"),
        ("search --patience 0 --axis patience=0,2", "either --patience or an axis patience"),
        ("search --epoch 5", "No such option: --epoch. Did you mean --epochs?"),
        ("search --kernel-size 3", "Did you mean --kernel-sizes?"),
        ("train --kernel-sizes 3", "Did you mean --kernel-size?"),
        ("train --lr 0.1", "No such option: --lr. Did you mean --learning-rate?"),
        ("search --lr 0.01", "learning_rate is given as an axis: --axis learning_rate=0.01"),
        ("search --dropout=0.1,0.3", "--axis dropout=0.1,0.3"),
        ("search --neurons-hl 32", "Did you mean --hidden-units?"),
        ("search --filters 12 36 48 --epochs 2", "Try: --filters 12,36,48"),
        ("search --strides 1, 2", "Try: --strides 1,2"),
        ("search --axis dropout=0.1 0.3", "Try: --axis dropout=0.1,0.3"),
        ("search grid.yaml", "Expected options alone, got 'grid.yaml'"),
        ("train --filters 12 36", "Expected options alone, got '36'"),
        (
            "--limit 600 search --epochs 2",
            "Expected options after the command: fmnist-track search --limit 600 --epochs 2",
        ),
        ("--limit 600", "Expected a command first"),
        ("search --protocol canonicl", "Did you mean canonical?"),
        ("search --axis drop=0.1", "Did you mean dropout?"),
        ("promote latest --run-id best", "Expected one run, got 'latest' and --run-id 'best'"),
        ("report latest best", "Expected options alone, got 'latest' 'best'"),
        ("train --dropout 1", "Expected --dropout to be a number of at least 0 and below 1"),
        ("train --kernel-size 30", "leaves nothing for layer conv1"),
        ("report", "Missing option '--run-id'. See `fmnist-track report --help`"),
        ("report --run-id latest --seed -1", "Expected --seed to be a whole number of at least 0"),
        ("serch", "No such command 'serch'. Did you mean 'search'?"),
        ("report --run-id latest --seed x", "Expected --seed to be a whole number"),
        ("ui --port abc", "Expected --port to be a whole number from 1 to 65535, got 'abc'"),
        ("predict --run-id best", "Missing argument 'IMAGE…'. See `fmnist-track predict --help`"),
        ("predict shoe.png", "Missing option '--run-id'"),
        ("promote", "Missing option '--run-id'"),
        ("promote --run-id best --name a/b", "without / : @, got 'a/b'"),
        ("ui --port 70000", "Expected --port to be a whole number from 1 to 65535"),
    ],
)
def test_wrong_usage_gets_one_line_and_status_2(call: Call, arguments: str, words: str) -> None:
    status, out, err = call(*arguments.split())
    assert status == 2
    assert out == ""
    assert words in err
    assert err.startswith("Error: ")
    assert err.count("\n") == 1


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ("runs", "There is no MLflow store"),
        ("best", "There is no MLflow store"),
        ("ui", "There is no MLflow store"),
        ("report --run-id latest", "There is no MLflow store"),
        ("promote --run-id best", "There is no MLflow store"),
        ("predict --run-id best shoe.png", "There is no MLflow store"),
        ("runs --tracking-uri http://127.0.0.1:9", "cannot be reached"),
        ("data --data-dir nowhere", "There is no data folder nowhere"),
    ],
)
def test_what_cannot_be_done_gets_one_line_and_status_1(
    call: Call, arguments: str, words: str
) -> None:
    status, out, err = call(*arguments.split())
    assert (status, out) == (1, "")
    assert words in err
    assert err.count("\n") == 1


def test_an_empty_experiment_and_an_unknown_run(call: Call, store: Store) -> None:
    store.experiment_id("empty")
    for arguments in ("best", "runs", "report --run-id latest"):
        status, _, err = call(*arguments.split(), "--experiment", "empty")
        assert status == 1
        assert "There is no search in the experiment 'empty' yet" in err
    status, _, err = call("report", "--run-id", "0123456789abcdef")
    assert (status, err.count("\n")) == (1, 1)
    assert "There is no run 0123456789abcdef in this store" in err


def test_a_run_of_another_project(call: Call, store: Store) -> None:
    foreign = store.client.create_run("0", run_name="somebody's").info.run_id
    status, _, err = call("report", "--run-id", foreign)
    assert (status, err.count("\n")) == (1, 1)
    assert f"The run {foreign[:8]} (somebody's) is in this store, but it is no search" in err


def test_an_experiment_may_have_any_name(call: Call, store: Store) -> None:
    name = "ablation [/old] [red]x"
    tags = {
        "fmnist.role": "train",
        "fmnist.protocol": "canonical",
        "fmnist.data_sha256": "d" * 64,
    }
    store.client.create_run(store.experiment_id(name), tags=tags)
    status, out, _ = call("runs", "--experiment", name)
    assert status == 0
    assert name in out


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda folder: (folder / "t10k-images-idx3-ubyte.gz").unlink(), "lacks t10k-images"),
        (
            lambda folder: (folder / "train-labels-idx1-ubyte.gz").write_bytes(b"\x1f\x8b\x08"),
            "is damaged or cut short",
        ),
    ],
    ids=["three files", "truncated"],
)
def test_bad_data_is_told_in_one_line(
    call: Call, real_copy: Path, damage: Callable[[Path], object], words: str
) -> None:
    damage(real_copy)
    status, _, err = call("data", "--data-dir", str(real_copy))
    assert (status, err.count("\n")) == (1, 1)
    assert words in err


def test_a_port_that_cannot_be_had(call: Call, store: Store) -> None:
    status, _, err = call("ui", "--host", "no.such.host.invalid")
    assert (status, err.count("\n")) == (2, 1)
    assert "Cannot listen on port 5000 of no.such.host.invalid" in err


def test_a_folder_that_cannot_be_written(call: Call, store: Store, tmp_path: Path) -> None:
    run = store.client.create_run(
        "0",
        tags={
            "fmnist.role": "train",
            "fmnist.protocol": "canonical",
            "fmnist.data_sha256": "d" * 64,
        },
    )
    (tmp_path / "file").touch()
    status, _, err = call("report", "--run-id", run.info.run_id, "--output-dir", "file/folder")
    assert status == 1
    assert "Cannot write to the folder file/folder" in err
    assert err.count("\n") == 1


def test_data_tells_where_it_came_from(call: Call) -> None:
    status, out, _ = call("data", "--json")
    content = json.loads(out)
    assert status == 0
    assert content["name"] == "Fashion-MNIST"
    assert (content["train_images"], content["test_images"]) == (60_000, 10_000)
    status, out, _ = call("data")
    assert f"Fashion-MNIST, verified, in {content['source']}" in out


def test_data_that_is_not_fashion_mnist_is_called_otherwise(call: Call, other_data: Path) -> None:
    _, out, _ = call("data", "--data-dir", str(other_data))
    assert out.startswith(f"data set other-data, in {other_data}\n2,400 training and 600 test ")


def test_doctor_looks_at_everything(call: Call) -> None:
    status, out, _ = call("doctor", "--json")
    found = json.loads(out)
    assert status == 0, out
    assert [c["name"] for c in found] == [
        "Python",
        "packages",
        "code",
        "TensorFlow",
        "data",
        "settings",
        "MLflow store",
        "checkpoints",
        "disk",
    ]
    assert all(c["ok"] for c in found)
    assert found[6]["seen"].endswith("will be made by the first search")
    assert not Path("mlflow.db").exists()


@pytest.mark.parametrize(
    ("name", "value", "check"),
    [
        ("FMNIST_THREADS", "many", "settings"),
        ("FMNIST_JIT_COMPILE", "yes", "settings"),
        ("FMNIST_STORE_PATIENCE", "-1", "settings"),
        ("FMNIST_STATE_DIR", "/proc/nowhere", "checkpoints"),
        ("MLFLOW_TRACKING_URI", "127.0.0.1:5000", "MLflow store"),
        ("MLFLOW_TRACKING_URI", "sqlite:////no/such/folder/mlflow.db", "MLflow store"),
        ("MLFLOW_EXPERIMENT_ID", "77", "MLflow store"),
    ],
)
def test_doctor_ticks_only_what_a_search_would_take(
    call: Call,
    store: Store,
    monkeypatch: pytest.MonkeyPatch,
    name: str,
    value: str,
    check: str,
) -> None:
    monkeypatch.setenv(name, value)
    mlflow.set_tracking_uri(None)  # type: ignore[arg-type]
    monkeypatch.setenv(name, value)
    status, out, _ = call("doctor", "--json")
    assert status == 1
    assert [c["name"] for c in json.loads(out) if not c["ok"]] == [check]
    status, _, err = call("search", "--limit", "600", "--epochs", "1", "--filters", "4")
    assert status in (1, 2)
    assert "Error: " in err


def test_doctor_tells_which_code_runs(call: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    def told(**facts: Any) -> str:
        found = environment.Code(version="1.2", sha256="c" * 64, **facts)
        monkeypatch.setattr(environment, "code", lambda: found)
        return doctor._code()

    commit = {"commit": "0123456789abcdef", "branch": "main"}
    assert told(**commit) == "1.2, Git commit 0123456789ab of main"
    assert told(**commit, dirty=True).endswith(", from which the files of the package differ")
    assert told(no_commit="git is away.") == "1.2, no Git commit: git is away."


def test_doctor_finds_what_is_wrong(call: Call) -> None:
    status, out, err = call("doctor", "--data-dir", "nowhere")
    assert status == 1
    assert "✗ data: There is no data folder nowhere" in out
    assert "Something is wrong with: data." in err


def test_no_arguments_show_the_commands(call: Call) -> None:
    status, out, err = call()
    assert (status, err) == (0, "")
    for name in COMMANDS:
        assert name in out


def test_ctrl_c_while_the_program_is_loaded_is_no_traceback() -> None:
    interrupted = (
        "import builtins, fmnist_tracking.cli as cli; real = builtins.__import__\n"
        "def load(name, *rest, **more):\n"
        "    if name == 'typer': raise KeyboardInterrupt\n"
        "    return real(name, *rest, **more)\n"
        "builtins.__import__ = load; cli.main()"
    )
    done = subprocess.run([sys.executable, "-c", interrupted], capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "")


def test_version(call: Call) -> None:
    from fmnist_tracking import __version__

    assert call("--version") == (0, f"{__version__}\n", "")


@pytest.mark.parametrize(
    "name", ["report", "runs", "best", "activations", "predictions", "promote"]
)
def test_a_run_may_be_named_without_its_option(call: Call, store: Store, name: str) -> None:
    for arguments in ((name, "0123abcd"), (name, "0123abcd", "--run-id", "0123abcd", "--json")):
        status, _, err = call(*arguments)
        assert status == 1
        assert "There is no run 0123abcd in this store" in err
    _, out, _ = call(name, "--help")
    assert f"fmnist-track {name} [OPTIONS] [ID]" in out


def test_a_picture_is_not_taken_for_a_run(call: Call) -> None:
    _, out, _ = call("predict", "--help")
    assert "[ID]" not in out


def test_a_flag_may_be_given_twice(call: Call) -> None:
    assert call("data", "--json", "--json")[0] == 0


def test_an_axis_is_in_the_grid_file_or_among_the_options(call: Call) -> None:
    Path("grid.yaml").write_text("filters: [8]\ndropout: [0.1]\nepochs: [1, 2]\n")
    for arguments, option in (
        (("--filters", "9"), "--filters"),
        (("--axis", "dropout=0.2"), "--axis"),
    ):
        status, _, err = call("search", "--space", "grid.yaml", *arguments)
        assert status == 2
        assert f"given twice, by {option} and in the grid file grid.yaml" in err
    status, _, err = call("search", "--space", "grid.yaml", "--epochs", "3")
    assert (status, err) == (2, "Error: Expected either --epochs or an axis epochs, got both.\n")


def test_under_mlflow_run_a_default_is_not_asked_for(
    call: Call, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It gives every option, and programs that start it write 25 as 25.0."""
    arguments = ["search", "--axis", "epochs=2.0,1;seed=0", "--patience", "0.0"]
    arguments += ["--filters", "4.0", "--repeats", "", "--seed", "0", "--data-dir", "nowhere"]
    assert call(*arguments, "--epochs", "25")[0] == 2
    monkeypatch.setattr(options, "UNDER_MLFLOW_RUN", True)
    status, _, err = call(*arguments, "--epochs", "25.0")
    assert (status, err.split(",")[0]) == (1, "Error: There is no data folder nowhere")
    status, _, err = call(*arguments, "--epochs", "5.0")
    assert (status, err) == (2, "Error: Expected either --epochs or an axis epochs, got both.\n")
    status, _, err = call("search", "--epochs", "2.5")
    assert status == 2
    assert "got '2.5'" in err


def space_of(**given: object) -> object:
    options: dict[str, Any] = {"file": None, "texts": {}, "axes": [], "is_coursework": True}
    space = search._grid(**{**options, **given})
    assert isinstance(space, SearchSpace)
    return space.axes


def test_grid_from_the_options(tmp_path: Path) -> None:
    assert space_of() == COURSEWORK_GRID
    assert space_of(texts={"filters": "8,16", "strides": None}) == {
        **COURSEWORK_GRID,
        "filters": (8, 16),
    }
    assert space_of(axes=["dropout=0.1,0.2; seed=1,2", "learning_rate=0.01"]) == {
        **COURSEWORK_GRID,
        "dropout": (0.1, 0.2),
        "seed": (1, 2),
        "learning_rate": (0.01,),
    }
    file = tmp_path / "grid.yaml"
    file.write_text("dropout: [0.1, 0.2]\nfilters: 8\n")
    assert space_of(file=file, texts={"strides": "1"}) == {
        "dropout": (0.1, 0.2),
        "filters": (8,),
        "strides": (1,),
    }


def test_an_empty_option_is_not_given() -> None:
    # `mlflow run` has no other way to leave a parameter out.
    assert space_of(axes=[""]) == COURSEWORK_GRID
    assert space_of(texts={"filters": ""}) == COURSEWORK_GRID
    file = Path("grid.yaml")
    file.write_text("filters: [24, 48]")
    assert space_of(file=file, texts={"filters": "", "strides": ""}) == {"filters": (24, 48)}


def test_an_error_of_the_system_is_told_in_a_line(
    call: Call, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(_: object) -> None:
        raise OSError(28, "No space left on device", "/tmp/file")

    monkeypatch.setattr(data, "load_dataset", fail)
    status, _, err = call("data")
    assert (status, err) == (1, "Error: No space left on device: /tmp/file.\n")
