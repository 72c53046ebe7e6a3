"""MLproject, conda.yaml, the README and the pages of docs/ say what the code does."""

import inspect
import itertools
import re
import shlex
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from packaging.requirements import Requirement
from typer.models import OptionInfo

from fmnist_tracking.cli.commands import app
from fmnist_tracking.config import FIELDS
from fmnist_tracking.tracking.experiments import PROJECT_PARAMETERS

ROOT = Path(__file__).parent.parent
PROJECT = yaml.safe_load((ROOT / "MLproject").read_text())
ENTRIES = PROJECT["entry_points"]
README = (ROOT / "README.md").read_text()
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted(ROOT.glob("docs/**/*.md"))]
TEXTS = {str(page.relative_to(ROOT)): page.read_text() for page in PAGES}
COMMANDS = {i.callback.__name__: i.callback for i in app.registered_commands if i.callback}
# `mlflow run` decides the first two itself, standard output is for a person there, and MLproject
# has no parameters that are given without a value; nor what is for one of those alone.
NOT_IN_MLPROJECT = {
    *("experiment", "tracking_uri", "upgrade_store", "trust_artifact_location"),
    *("as_json", "dry_run", "fresh", "skip_impossible", "keep_checkpoints", "trust_code", "final"),
}
WITH_A_FLAG_ALONE = {("train", "run_id")}


def options(command: str) -> dict[str, Any]:
    """The options of a command alone: default by parameter name."""
    parameters = inspect.signature(COMMANDS[command]).parameters
    defaults = {name: p.default for name, p in parameters.items()}
    return {name: d for name, d in defaults.items() if isinstance(d, OptionInfo)}


def spelled(option: Any) -> str:
    return next(str(word) for word in option.param_decls if word.startswith("--"))


@pytest.mark.parametrize("entry", [e for e in ENTRIES if e != "main"])
def test_every_parameter_of_mlproject_reaches_its_command(entry: str) -> None:
    words = shlex.split(ENTRIES[entry]["command"])
    assert words[:4] == ["python", "-m", "fmnist_tracking", entry]
    given = dict(zip(words[4::2], words[5::2], strict=True))
    expected = {
        spelled(option): "{" + name + "}"
        for name, option in options(entry).items()
        if name not in NOT_IN_MLPROJECT and (entry, name) not in WITH_A_FLAG_ALONE
    }
    assert given == expected
    assert {f"{{{name}}}" for name in ENTRIES[entry]["parameters"]} == set(given.values())


@pytest.mark.parametrize("entry", [e for e in ENTRIES if e != "main"])
def test_the_defaults_of_mlproject_are_the_command_s(entry: str) -> None:
    for name, parameter in ENTRIES[entry]["parameters"].items():
        default = options(entry)[name].default
        if default is ...:
            assert "default" not in parameter, name
        elif default in (None, [], ""):
            assert parameter["default"] == "", name
        else:
            assert parameter["default"] == default, name
        assert parameter["type"] == "string", name


def test_main_is_search() -> None:
    assert ENTRIES["main"] == ENTRIES["search"]
    assert set(ENTRIES) == {"main", "search", "train", "report", "activations", "predictions"}


def counting(lines: Iterable[str]) -> Iterator[Requirement]:
    """The requirements that count for Python 3.11."""
    python = {"python_full_version": "3.11.7", "python_version": "3.11"}
    for requirement in map(Requirement, filter(None, lines)):
        if requirement.marker is None or requirement.marker.evaluate(python):
            yield requirement


def test_conda_yaml_pins_what_the_package_needs_as_tested() -> None:
    python, pip, packages = yaml.safe_load((ROOT / "conda.yaml").read_text())["dependencies"]
    assert (python, pip) == ("python=3.11", "pip")
    pinned = packages["pip"]
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    tested = {r.name: str(r.specifier) for r in counting(line for line in lines if line[:1] != "#")}
    listed = (ROOT / "pyproject.toml").read_text().split("dependencies = [")[1].split("\n]")[0]
    needs = [r.name for r in counting(re.findall(r'^    "([^"]+)",', listed, re.MULTILINE))]
    assert [Requirement(line).name for line in pinned] == needs
    for line in pinned:
        assert tested[Requirement(line).name] == str(Requirement(line).specifier)


def test_readme_names_every_command() -> None:
    for name in COMMANDS:
        assert f"fmnist-track {name}" in README, name


def test_readme_is_one_page() -> None:
    assert README.count("\n") < 200


def found(pattern: str) -> list[tuple[str, str]]:
    """What a pattern catches in each document, with the document's name."""
    return [
        (name, caught)
        for name, text in TEXTS.items()
        for caught in re.findall(pattern, text, re.MULTILINE)
    ]


def test_the_commands_of_the_documents_can_be_typed() -> None:
    known = {name: {spelled(o) for o in options(name).values()} for name in COMMANDS}
    typed = found(r"^(?: {4})?(?:\$ )?fmnist-track (.+)$")
    assert len(typed) > 20
    for name, line in [*typed, *found(r"`fmnist-track ([^`]+)`")]:
        words = shlex.split(line, comments=True)
        if words[0].startswith("--"):
            continue
        used = {word for word in words[1:] if word.startswith("--")}
        assert used <= known[words[0]] | {"--help"}, f"{name}: {line}"


def test_the_mlflow_parameters_of_the_documents_are_of_mlproject() -> None:
    lines = found(r"^(?:\$ )?mlflow run \. (.+)$")
    assert {name for name, _ in lines} >= {"README.md", "docs/index.md"}
    for name, line in lines:
        words = shlex.split(line, comments=True)
        entry = words[words.index("-e") + 1]
        for flag, word in itertools.pairwise(words):
            if flag == "-P":
                assert word.split("=")[0] in ENTRIES[entry]["parameters"], f"{name}: {line}"


def test_the_make_targets_of_the_documents_exist() -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    named = found(r"(?:`|^ {4})make ([a-z-]+)")
    assert {name for name, _ in named} >= {"README.md", "CONTRIBUTING.md", "docs/index.md"}
    assert {(name, target) for name, target in named if target not in targets} == set()


def anchor(heading: str) -> str:
    """What a heading is called in an address, by code hosts and by the site."""
    return re.sub(r"[^\w\- ]", "", heading.strip().lower()).replace(" ", "-")


def test_links_of_the_documents_lead_somewhere() -> None:
    for page in [*PAGES, ROOT / "CHANGELOG.md"]:
        for link, place in re.findall(r"\]\(([^)#]*)(?:#([^)]*))?\)", page.read_text()):
            if link.startswith("http"):
                continue
            target = page.parent / link if link else page
            assert target.exists(), f"{page.name}: {link}"
            if place:
                headings = re.findall(r"^#+ (.+)$", target.read_text(), re.MULTILINE)
                assert place in map(anchor, headings), f"{page.name}: {link}#{place}"


def test_the_settings_of_the_documents_are_the_code_s() -> None:
    text = (ROOT / "docs" / "your-own-network.md").read_text()
    table = text.split("## The coursework's settings")[1].split("\n## ")[0]
    rows = re.findall(r"^\| `(\w+)` \| ([\d.]+) \| [^|]+ \| ([^|]+) \|$", table, re.MULTILINE)
    expected = [(name, f"{own.default:g}", own.about) for name, own in FIELDS.items()]
    assert rows == expected


def test_every_layer_is_in_the_page_on_the_code() -> None:
    pyproject = (ROOT / "pyproject.toml").read_text()
    layers = re.findall(r'^    "([^"]+)",', pyproject.split("\nlayers = [")[1].split("]")[0], re.M)
    page = (ROOT / "docs" / "architecture.md").read_text()
    assert "\n".join(f"    {layer}" for layer in layers if layer != "__main__") in page
    for module in {m for layer in layers for m in layer.split(" | ")} - {"__main__"}:
        assert re.search(rf"^\|.*`{module}`.*\|.*\|$", page, re.MULTILINE), module


def test_the_tests_that_the_guarantees_name_are_there() -> None:
    text = (ROOT / "docs" / "guarantees.md").read_text()
    named = set(re.findall(r"`(test_\w+)`", text))
    sources = "\n".join(path.read_text() for path in (ROOT / "tests").glob("test_*.py"))
    defined = set(re.findall(r"^def (test_\w+)", sources, re.MULTILINE))
    assert len(named) > 50
    assert named - defined == set()


def test_no_test_module_imports_another() -> None:
    modules = {path.stem for path in (ROOT / "tests").glob("test_*.py")}
    assert len(modules) > 50
    for path in (ROOT / "tests").glob("*.py"):
        # Those too that a script in a string imports.
        imported = set(re.findall(r"\b(?:from|import) (\w+)", path.read_text()))
        assert imported & modules == set(), path.name


def test_the_files_with_hashes_have_the_pinned_versions() -> None:
    def pins(name: str) -> set[str]:
        lines = (ROOT / name).read_text().splitlines()
        return {line.rstrip(" \\") for line in lines if "==" in line and not line.startswith("#")}

    pinned = pins("constraints.txt")
    assert pins("hashes.txt") == pinned
    assert {line for line in pins("bootstrap.txt") if line.startswith("uv==")} <= pinned
    for name in ("hashes.txt", "bootstrap.txt"):
        text = (ROOT / name).read_text()
        entries = re.findall(r"^[^#\s]", text, re.MULTILINE)
        assert len(entries) == len(re.findall(r"^\S+==.* \\\n +--hash=sha256:", text, re.MULTILINE))


def test_what_continuous_integration_runs_is_pinned_by_commit() -> None:
    for workflow in (ROOT / ".github" / "workflows").iterdir():
        for used in re.findall(r"uses: (\S+)", workflow.read_text()):
            assert re.fullmatch(r"[\w/-]+@[0-9a-f]{40}", used), used


def test_a_run_that_mlflow_run_made_has_parameters_of_the_project_alone() -> None:
    assert {
        name for entry in ENTRIES.values() for name in entry["parameters"]
    } <= PROJECT_PARAMETERS
