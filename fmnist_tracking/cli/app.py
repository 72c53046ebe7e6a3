"""The `fmnist-track` program: its commands, and errors as lines with an exit status."""

import atexit
import contextlib
import functools
import gc
import inspect
import logging
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn, ParamSpec

import typer

from fmnist_tracking import __version__, runtime
from fmnist_tracking.cli import streams
from fmnist_tracking.cli.options import TRUST_OPTION, UNDER_MLFLOW_RUN
from fmnist_tracking.cli.output import echo, shell_line
from fmnist_tracking.cli.typed import Command, Group
from fmnist_tracking.config import TRUST_ARTIFACT_LOCATION
from fmnist_tracking.errors import FmnistTrackingError, Terminated
from fmnist_tracking.logs import log_plainly
from fmnist_tracking.redact import to_be_typed, without_user

PROGRAM = "fmnist-track"
_SWITCH_SECONDS = 0.0005
P = ParamSpec("P")

app = typer.Typer(
    cls=Group,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def command(
    *, example: str, resumable: bool = False, reads_files: bool = True
) -> Callable[[Callable[P, None]], Callable[P, None]]:
    """Register a function as a command whose errors are lines, not tracebacks.

    It is resumable if the same command goes on where it was interrupted. One that reads or writes
    files of runs can be told to trust the places that the store names.
    """

    def register(function: Callable[P, None]) -> Callable[P, None]:
        @functools.wraps(function)
        def run(*args: P.args, **kwargs: P.kwargs) -> None:
            try:
                _require_folders()
                function(*args, **kwargs)
            except FmnistTrackingError as error:
                _fail(f"Error: {error.message}", error.exit_status)
            except OSError as error:  # a full disk for temporary files, for instance
                file = "" if error.filename is None else f": {error.filename}"
                _fail(f"Error: {error.strerror or error}{file}.", 1)
            except ModuleNotFoundError as error:
                _fail(
                    f"Error: The Python package {error.name} is not installed, which fmnist-track "
                    "needs. Install fmnist-tracking again.",
                    1,
                )
            except Terminated:
                _fail("Stopped by a signal." + (_how_to_resume() if resumable else ""), 143)
            except KeyboardInterrupt:
                _fail("Interrupted." + (_how_to_resume() if resumable else ""), 130)

        register_typed = app.command(
            cls=Command, help=_paragraphs(function), epilog=f"Example: {example}"
        )
        register_typed(_with_trust(run) if reads_files else run)
        return run

    return register


def _with_trust(function: Callable[..., None]) -> Callable[..., None]:
    """Return a command with one more option, `--trust-artifact-location`."""

    @functools.wraps(function)
    def run(*args: Any, trust_artifact_location: bool, **kwargs: Any) -> None:
        if trust_artifact_location:
            os.environ[TRUST_ARTIFACT_LOCATION] = "1"
        function(*args, **kwargs)

    signature = inspect.signature(function)
    option = inspect.Parameter(
        "trust_artifact_location",
        inspect.Parameter.KEYWORD_ONLY,
        default=TRUST_OPTION,
        annotation=bool,
    )
    parameters = [*signature.parameters.values(), option]
    run.__signature__ = signature.replace(parameters=parameters)  # type: ignore[attr-defined]
    run.__annotations__ = {**function.__annotations__, option.name: bool}
    return run


def _paragraphs(function: Callable[..., None]) -> str:
    """Return a docstring with each paragraph on one line, for the terminal to break."""
    text = inspect.getdoc(function) or ""
    return "\n\n".join(" ".join(part.split()) for part in text.split("\n\n"))


def _how_to_resume() -> str:
    if UNDER_MLFLOW_RUN:
        return " The same `mlflow run` command goes on where this one stopped."
    arguments = [part for a in sys.argv[1:] for part in _parts(a) if part != "--fresh"]
    condition = ""
    for place, argument in enumerate(arguments):
        if without_user(argument) != argument:
            address, condition = to_be_typed(argument)
            arguments[place - 1 : place + 1] = ["--tracking-uri", address] if address else []
            break
    return f" Go on{condition} with: {shell_line(*arguments)}"


def _parts(argument: str) -> list[str]:
    """Split `--tracking-uri=ADDRESS`; leave others as they are."""
    name, equals, value = argument.partition("=")
    return [name, value] if equals and name == "--tracking-uri" else [argument]


def _require_folders() -> None:
    try:
        os.getcwd()
    except OSError as error:
        raise FmnistTrackingError(
            f"The working folder cannot be used ({error.strerror}); perhaps it was deleted. Go to "
            "another folder, or leave this one and enter it again."
        ) from None
    try:
        Path.home()
    except RuntimeError:  # a user that the system does not know, in a container for instance
        raise FmnistTrackingError(
            "This user has no home folder, which MLflow asks for. Name one, such as: "
            "export HOME=$PWD"
        ) from None


def _fail(message: str, status: int) -> NoReturn:
    echo(message)
    raise typer.Exit(status)


@app.callback(invoke_without_command=True)
def _root(
    context: typer.Context,
    version: bool = typer.Option(False, "--version", help="Print the version and stop."),
) -> None:
    """Explore a grid on Fashion-MNIST; every point is a tracked experiment.

    Start with `fmnist-track search --limit 12000 --epochs 5`, then
    `fmnist-track report --run-id latest`.
    """
    if version:
        print(__version__)
    elif context.invoked_subcommand is None:
        print(context.get_help())


def main() -> None:
    """Run the command line; exit with 0, 1 (an error), 2 (wrong usage), 130 or 143 (stopped)."""
    streams.prepare()
    runtime.own_process()
    log_plainly()
    logging.getLogger("fmnist_tracking").setLevel(logging.INFO)
    # It tells of each line of a matplotlibrc that it cannot read; none of them counts here.
    logging.getLogger("matplotlib").setLevel(logging.ERROR)
    signal.signal(signal.SIGINT, _stop)
    signal.signal(signal.SIGTERM, _stop)
    signal.signal(signal.SIGQUIT, _stop)
    if signal.getsignal(signal.SIGHUP) != signal.SIG_IGN:  # as nohup has it
        signal.signal(signal.SIGHUP, _stop)
    # What is imported stays; to look through it for garbage takes a fifth of a command's start, and
    # as much again at its end.
    gc.disable()
    atexit.register(gc.freeze)
    # In a search, the thread that writes to the store computes; those that hand out trials must not
    # wait for it long.
    sys.setswitchinterval(_SWITCH_SECONDS)
    try:
        status = app(prog_name=PROGRAM, standalone_mode=False)
    except typer.exceptions.TyperException as error:
        echo(f"Error: {error.format_message()} See `{_program(sys.argv)} --help`.")
        status = error.exit_code
    except FmnistTrackingError as error:  # from reading an option
        echo(f"Error: {error.message}")
        status = error.exit_status
    except Terminated:
        status = 143
    except KeyboardInterrupt:
        status = 130
    finally:
        gc.freeze()  # or it would be looked through at once
        gc.enable()
    missing = streams.finish()
    if missing:
        echo(f"Error: {missing}")
        status = status or 1
    sys.exit(status)


def collect_garbage_again() -> None:
    """Have Python look for garbage again, from a command that has loaded all it needs and goes on.

    What is loaded by now stays. Were it looked through again and again, all threads would wait for
    a third of a second each time.
    """
    gc.freeze()
    gc.enable()


def _stop(number: int, _: object) -> None:
    # Once is enough: a second one would cut short what closes the runs.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    signal.signal(signal.SIGQUIT, signal.SIG_DFL)  # the way out, if that should hang
    with contextlib.suppress(Exception):  # whatever this interrupts may be printing itself
        echo("Stopping: closing what is open.")
    raise KeyboardInterrupt if number == signal.SIGINT else Terminated


def _program(arguments: list[str]) -> str:
    """Return what was called, as far as it is a command, such as "fmnist-track search"."""
    commands = [info.callback.__name__ for info in app.registered_commands if info.callback]
    return " ".join(["fmnist-track", *(a for a in arguments[1:2] if a in commands)])
