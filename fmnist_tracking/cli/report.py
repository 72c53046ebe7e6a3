"""The commands that draw: `report`, `activations` and `predictions`."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

import fmnist_tracking as ft
from fmnist_tracking.cli import options
from fmnist_tracking.cli.app import command
from fmnist_tracking.cli.output import echo, out, print_json
from fmnist_tracking.warm_up import warm_up

if TYPE_CHECKING:
    from fmnist_tracking.reports.build import Part

# Apart from a report's own figures, which are of test images.
_VALIDATION_DIR = options.path_option(
    "--output-dir",
    "DIR",
    "Where the files go. Default: reports/, the run's first characters, and validation/.",
)

_LAYER = typer.Option(
    "",
    "--layer",
    metavar="NAME",
    help="The convolution whose activation maps are drawn. Default: the first.",
)


@command(example="fmnist-track report --run-id latest")
def report(
    run_id: str = options.ONLY_RUN_ID,
    output_dir: Path | None = options.OUTPUT_DIR,
    seed: int = options.SAMPLE_SEED,
    layer: str = _LAYER,
    data_dir: Path | None = options.DATA_DIR,
    trust_code: bool = options.TRUST_CODE,
    experiment: str | None = options.IN_EXPERIMENT,
    tracking_uri: str | None = options.TRACKING_URI,
    as_json: bool = options.JSON,
) -> None:
    """Write every figure and table of a trial, or of a search and its best trial.

    This opens the sealed test images, and records with the run that it did.
    """
    _write(
        "report",
        run_id,
        output_dir,
        seed,
        data_dir,
        trust_code,
        experiment,
        tracking_uri,
        as_json,
        layer,
    )


@command(example="fmnist-track activations --run-id best")
def activations(
    run_id: str = options.ONLY_RUN_ID,
    output_dir: Path | None = _VALIDATION_DIR,
    seed: int = options.SAMPLE_SEED,
    layer: str = _LAYER,
    data_dir: Path | None = options.DATA_DIR,
    trust_code: bool = options.TRUST_CODE,
    experiment: str | None = options.IN_EXPERIMENT,
    tracking_uri: str | None = options.TRACKING_URI,
    as_json: bool = options.JSON,
) -> None:
    """Draw a validation image and its activation maps in a convolution, one for each filter.

    The model was not trained on that image. The test images stay sealed; `report` opens them.
    """
    _write(
        "activations",
        run_id,
        output_dir,
        seed,
        data_dir,
        trust_code,
        experiment,
        tracking_uri,
        as_json,
        layer,
    )


@command(example="fmnist-track predictions --run-id best --seed 7")
def predictions(
    run_id: str = options.ONLY_RUN_ID,
    output_dir: Path | None = _VALIDATION_DIR,
    seed: int = options.SAMPLE_SEED,
    data_dir: Path | None = options.DATA_DIR,
    trust_code: bool = options.TRUST_CODE,
    experiment: str | None = options.IN_EXPERIMENT,
    tracking_uri: str | None = options.TRACKING_URI,
    as_json: bool = options.JSON,
) -> None:
    """Draw 16 validation images with what the model takes them for.

    The model was not trained on those images. The test images stay sealed; `report` opens them.
    """
    _write(
        "predictions",
        run_id,
        output_dir,
        seed,
        data_dir,
        trust_code,
        experiment,
        tracking_uri,
        as_json,
    )


def _write(
    part: "Part",
    run_id: str,
    output_dir: Path | None,
    seed: int,
    data_dir: Path | None,
    trust_code: bool,
    experiment: str | None,
    tracking_uri: str | None,
    as_json: bool,
    layer: str = "",
) -> None:
    """Run one of the commands that write figures, and print where they are."""
    warm_up()
    written = ft.report(
        run_id,
        part=part,
        output_dir=output_dir,
        seed=seed,
        layer=layer or None,
        data_dir=data_dir,
        trust_code=trust_code,
        experiment=experiment,
        tracking_uri=tracking_uri,
        echo=echo,
    )
    if as_json:
        content: dict[str, Any] = {
            "run_id": written.run_id,
            "trial_run_id": written.model.run_id,
            "model": written.model.to_json(),
            "images": "validation" if written.evaluation is None else "test",
            "files": [str(path) for path in written.files],
            "kept": written.kept,
        }
        if written.evaluation is not None:
            content["test_accuracy"] = written.evaluation.accuracy
            content["test_macro_f1"] = written.evaluation.macro.f1
        print_json(content)
        return
    if written.evaluation is not None:
        echo(
            f"Test accuracy {written.evaluation.accuracy:.4f}, macro F1 "
            f"{written.evaluation.macro.f1:.4f}, trial {written.model.run_id[:8]}"
        )
        echo("The report, a page for a browser:")
        out.print(str(written.files[0]), soft_wrap=True)
    else:
        for path in written.files:
            out.print(str(path), soft_wrap=True)
