"""Where workers may be started from, and where that is refused before anything is begun."""

import subprocess
import sys
from pathlib import Path

import pytest

from environments import own_environment

START = "start_helpers([])"
IMPORT = "from fmnist_tracking.workers import start_helpers\n"
GUARD = 'if __name__ == "__main__":'
REFUSED = [
    START,
    f"print('x')\nfor _ in range(2):\n    {START}",
    f"import logging\nlog = logging.getLogger(__name__)\n{START}",
    f"{GUARD}\n    print('x')\n{START}",
    f"if __name__ != '__main__':\n    print('imported')\n{START}",
    "from threading import Thread\nthread = Thread(target=start_helpers, args=([],))\n"
    "thread.start(), thread.join()",
    f"exec('\\n\\n\\n{START}')",
    f"import sys\n{GUARD}\n    if len(sys.argv) > 9:\n        sys.exit()\n{START}",
    f"def never():\n    assert __name__ == '__main__'\n{START}",
]
TAKEN = [
    f"{GUARD}\n    {START}",
    f"try:\n    {GUARD}\n        {START}\nfinally:\n    pass",
    f"if __name__ != '__main__':\n    raise SystemExit\n{START}",
    f"import sys\nif __name__ != '__main__':\n    sys.exit()\n{START}",
    f"main = __name__ == '__main__'\nif main:\n    {START}",
    f"match __name__:\n    case '__main__':\n        {START}",
    f"while __name__ == '__main__':\n    {START}\n    break",
    f"{START} if __name__ == '__main__' else None",
    f"True and __name__ == '__main__' and {START}",
    f"is_main: bool = __name__ == '__main__'\nif is_main:\n    {START}",
    f"def main():\n    {START}\n{GUARD}\n    main()",
]


def run(*words: str, folder: Path, typed: str | None = None) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [sys.executable, *words],
        cwd=folder,
        env=own_environment(),
        input=typed,
        capture_output=True,
        text=True,
        timeout=60,
    )


@pytest.mark.parametrize("body", REFUSED)
def test_a_call_that_workers_would_repeat_is_refused(body: str, tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(IMPORT + body + "\n")
    done = run("mine.py", folder=tmp_path)
    assert "ConfigError" in done.stderr
    assert f"{tmp_path / 'mine.py'}" in done.stderr
    assert f"line {1 + len(body.splitlines())}." in done.stderr


@pytest.mark.parametrize("body", TAKEN)
def test_a_call_that_only_the_main_process_makes_is_taken(body: str, tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(IMPORT + body + "\n")
    done = run("mine.py", folder=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")


def test_a_program_that_workers_cannot_import_is_refused(tmp_path: Path) -> None:
    for body in (START, f"{GUARD}\n    {START}"):
        done = run("-", folder=tmp_path, typed=IMPORT + body + "\n")
        assert "ConfigError" in done.stderr
        assert "<stdin>" in done.stderr
    assert run("-c", IMPORT + START, folder=tmp_path).stderr == ""


def test_a_module_is_a_program_too(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(f"{IMPORT}{GUARD}\n    {START}\n")
    assert run("-m", "mine", folder=tmp_path).stderr == ""
