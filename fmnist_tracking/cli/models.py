"""The commands that use a model: `promote` and `predict`."""

import shlex
import shutil
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import typer

import fmnist_tracking as ft
from fmnist_tracking.cli import options
from fmnist_tracking.cli.app import command
from fmnist_tracking.cli.output import echo, new_table, out, print_json
from fmnist_tracking.config import DEFAULT_MODEL_NAME
from fmnist_tracking.redact import LONGEST_LINE, printable, to_be_typed
from fmnist_tracking.warm_up import warm_up

if TYPE_CHECKING:
    from fmnist_tracking.prediction import Classified


@command(example="fmnist-track promote --run-id best")
def promote(
    run_id: str = options.ONLY_RUN_ID,
    name: str = typer.Option(DEFAULT_MODEL_NAME, "--name", help="Name of the registered model."),
    force: bool = typer.Option(
        False,
        "--force",
        help="Promote it even if its validation accuracy is worse than the champion's, or cannot "
        "be compared with it.",
    ),
    experiment: str | None = options.IN_EXPERIMENT,
    tracking_uri: str | None = options.TRACKING_URI,
    as_json: bool = options.JSON,
) -> None:
    """Register a trial's model, or a search's best one, and make it the champion.

    The champion is the version that `models:/NAME@champion` names, for MLflow to serve. A trial
    takes its place if its validation accuracy is as good, on the same validation images; the
    test images have no part in it.
    """
    done = ft.promote(
        run_id, name=name, force=force, experiment=experiment, tracking_uri=tracking_uri
    )
    if as_json:
        print_json(done.to_json())
        return
    if done.overruled:
        echo(f"Forced. {done.overruled}")
    if not done.changed:
        echo("It is the champion already; nothing is changed.")
    elif done.previous is None:
        echo("There was no champion before.")
    else:
        echo(f"The champion before: {done.previous.line()}")
    if done.changed and not done.registered:
        echo("The trial had been registered before; that version is used.")
    out.print(f"champion: {done.champion.line()}", soft_wrap=True)
    say_how_to_serve(name, tracking_uri)


def say_how_to_serve(name: str, tracking_uri: str | None) -> None:
    """Tell the command that serves the champion, as one line for a shell."""
    words = ["mlflow", "models", "serve", "-m", f"models:/{name}@champion"]
    line = shlex.join([*words, "--env-manager", "local", "--port", "5001"])
    address, condition = to_be_typed(tracking_uri) if tracking_uri else (None, "")
    if address:
        line = f"MLFLOW_TRACKING_URI={shlex.quote(address)} {line}"
    programs = Path(sys.executable).parent
    if shutil.which("mlflow") != str(programs / "mlflow"):  # this environment is not activated
        line = f'PATH={shlex.quote(str(programs))}:"$PATH" {line}'
    echo(f"Next{condition.rstrip(',')}: {line}")


@command(example="fmnist-track predict --run-id best shoe.jpg shirt.png")
def predict(
    images: list[Path] = typer.Argument(
        ..., metavar="IMAGE…", help="Pictures, of any size, colours and usual format."
    ),
    run_id: str = options.RUN_ID,
    output_dir: Path | None = options.path_option(
        "--output-dir", "DIR", "Also write what the model sees of each picture into this folder."
    ),
    trust_code: bool = options.TRUST_CODE,
    experiment: str | None = options.IN_EXPERIMENT,
    tracking_uri: str | None = options.TRACKING_URI,
    as_json: bool = options.JSON,
) -> None:
    """Classify your own pictures: one thing on a plain background each.

    For a model of Fashion-MNIST, each is made as that itself was made: trimmed, brought to 28 by 28
    pixels, grey, light on black; for another, it is brought to the size of its images. What was
    done is told for each, and what speaks against the answer. The model is asked for the mirrored
    picture too: Fashion-MNIST has shoes with the toe to the left only.
    """
    warm_up()
    done = ft.predict(
        run_id,
        images,
        output_dir=output_dir,
        trust_code=trust_code,
        experiment=experiment,
        tracking_uri=tracking_uri,
        echo=echo,
    )
    wrong = [picture for picture in done.pictures if picture.error is not None]
    if as_json:
        print_json(done.to_json())
    else:
        _print_pictures([picture for picture in done.pictures if picture.error is None])
    for picture in wrong:
        echo(f"Error: {picture.error}")
    if wrong:
        raise typer.Exit(1)


def _print_pictures(pictures: "list[Classified]") -> None:
    # Of Fashion-MNIST alone.
    mirrored = ("mirrored",) if any(picture.mirrored for picture in pictures) else ()
    answers = ("class", "second", "third", *mirrored)
    table = new_table("picture", *answers, wrapped=answers)
    below = []
    for picture in pictures:
        name = printable(str(picture.path), LONGEST_LINE)
        width, height = picture.size or (0, 0)
        done = ", ".join(picture.steps) or "used as it is"
        echo(f"{name}: {width} by {height}; {done}")
        shown = (*picture.guesses, *(picture.mirrored for _ in mirrored))
        table.add_row(name, *(f"{g.name} {g.probability:.1%}" if g else "" for g in shown))
        below += [f"{name}: {note.text}" for note in picture.notes]
    below += [str(picture.seen) for picture in pictures if picture.seen is not None]
    if pictures:
        out.print(table)
    for line in below:
        out.print(line, soft_wrap=True)
