"""The program with all of its commands: importing a module registers those in it."""

# In the order in which --help lists them.
from fmnist_tracking.cli import search, runs, report, models, setup  # noqa: I001, F401
from fmnist_tracking.cli.app import app, main

__all__ = ["app", "main"]
