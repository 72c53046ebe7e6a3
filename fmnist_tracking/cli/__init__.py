"""The `fmnist-track` command line: options -> one workflow call -> print."""

# Importing a module registers its commands, in the order in which --help lists them.
from fmnist_tracking.cli import searching, listing, reporting, using, checking  # noqa: I001, F401
from fmnist_tracking.cli.app import main

__all__ = ["main"]
