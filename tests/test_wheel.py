"""The distributions: the wheel is built from the source one, and works where nothing else is."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from fmnist_tracking import __version__

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parent.parent
UV = Path(sys.executable).with_name("uv")
SMALLEST = ("--limit", "600", "--epochs", "1", "--filters", "2", "--strides", "1")


def uv(*arguments: str | Path, **variables: str) -> None:
    """Run uv; without a package index there is nothing to test, but in continuous integration."""
    done = subprocess.run(
        [UV, *arguments], env={**os.environ, **variables}, capture_output=True, text=True
    )
    if done.returncode != 0:
        if "error sending request" in done.stderr.lower() and not os.environ.get("CI"):
            pytest.skip("no package index answers")
        pytest.fail(done.stderr)


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel that is built from the source distribution, that alone, of a copy of the code."""
    folder = tmp_path_factory.mktemp("built")
    leftovers = shutil.ignore_patterns(".*", "__pycache__", "build", "site", "*.egg-info")
    shutil.copytree(ROOT, folder / "checkout", ignore=leftovers)
    uv("build", "--sdist", "--out-dir", folder, folder / "checkout")
    (source,) = folder.glob("*.tar.gz")
    uv("build", "--wheel", "--out-dir", folder / "wheel", source)
    (built,) = (folder / "wheel").glob("*.whl")
    return built


def test_the_wheel_searches_and_reports_away_from_the_checkout(
    wheel: Path, tmp_path: Path, cache: Path
) -> None:
    environment = tmp_path / "environment"
    uv("venv", "--python", sys.executable, environment)
    uv("pip", "install", "--python", environment, "--constraint", ROOT / "constraints.txt", wheel)
    clean = {k: v for k, v in os.environ.items() if not k.startswith("PYTHON")}
    clean["PATH"] = f"{environment / 'bin'}{os.pathsep}/usr/bin{os.pathsep}/bin"
    folder = tmp_path / "elsewhere"
    folder.mkdir()

    def run(*arguments: str) -> str:
        done = subprocess.run(
            [environment / "bin" / "fmnist-track", *arguments],
            cwd=folder,
            env=clean,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=600,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    assert run("--version") == f"{__version__}\n"
    found = json.loads(run("search", *SMALLEST, "--kernel-sizes", "3", "--json"))
    assert (found["finished"], found["failed"]) == (1, 0)
    written = json.loads(run("report", "--run-id", "latest", "--json"))
    assert written["run_id"] == found["run_id"]
    (page,) = folder.glob("reports/*/index.html")
    assert "</html>" in page.read_text()
    code = "import fmnist_tracking; print(fmnist_tracking.__file__)"
    where = subprocess.run(
        [environment / "bin" / "python", "-c", code],
        cwd=folder,
        env=clean,
        capture_output=True,
        text=True,
        check=True,
    )
    assert Path(where.stdout.strip()).is_relative_to(environment)
