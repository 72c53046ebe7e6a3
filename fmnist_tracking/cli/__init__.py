"""The `fmnist-track` command line: options -> one call -> print."""

import sys


def main() -> None:
    """Run the command line; see `fmnist_tracking.cli.app.main`."""
    try:
        from fmnist_tracking.cli import commands
    except KeyboardInterrupt:  # before there is anything to close
        sys.exit(130)
    commands.main()
