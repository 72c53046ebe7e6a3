"""The heavy libraries that a command imports."""

import json
import subprocess
import sys

HEAVY = (
    "tensorflow",
    "keras",
    "keras_tuner",
    "mlflow",
    "matplotlib",
    "sklearn",
    "pandas",
    "PIL",
)
PROBE = """
import json, sys
sys.argv = ["fmnist-track", *{arguments!r}]
from fmnist_tracking.cli import main
try:
    main()
except SystemExit as ended:
    status = ended.code or 0
print(json.dumps([status, sorted(set(sys.modules) & set({heavy!r}))]))
"""


def loaded_by(*arguments: str) -> tuple[int, set[str]]:
    code = PROBE.format(arguments=arguments, heavy=HEAVY)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    status, modules = json.loads(done.stdout.splitlines()[-1])
    return status, set(modules)
