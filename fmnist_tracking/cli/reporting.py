"""The commands that draw: `report`, `activations` and `predictions`."""

from pathlib import Path

from fmnist_tracking.cli import options
from fmnist_tracking.cli.app import command
from fmnist_tracking.cli.printing import out, print_json, say


@command(example="fmnist-track report --run-id latest")
def report(
    run_id: str = options.RUN_ID,
    output_dir: Path | None = options.OUTPUT_DIR,
    seed: int = options.SAMPLE_SEED,
    data_dir: Path | None = options.DATA_DIR,
    experiment: str | None = options.IN_EXPERIMENT,
    tracking_uri: str | None = options.TRACKING_URI,
    as_json: bool = options.JSON,
) -> None:
    """Write every figure and table of a trial, or of a search and its best trial.

    This opens the sealed test images, and records with the run that it did.
    """
    _write("report", run_id, output_dir, seed, data_dir, experiment, tracking_uri, as_json)


@command(example="fmnist-track activations --run-id best")
def activations(
    run_id: str = options.RUN_ID,
    output_dir: Path | None = options.OUTPUT_DIR,
    seed: int = options.SAMPLE_SEED,
    data_dir: Path | None = options.DATA_DIR,
    experiment: str | None = options.IN_EXPERIMENT,
    tracking_uri: str | None = options.TRACKING_URI,
    as_json: bool = options.JSON,
) -> None:
    """Draw a sample image and its first-layer activation maps, one for each filter."""
    _write("activations", run_id, output_dir, seed, data_dir, experiment, tracking_uri, as_json)


@command(example="fmnist-track predictions --run-id best --seed 7")
def predictions(
    run_id: str = options.RUN_ID,
    output_dir: Path | None = options.OUTPUT_DIR,
    seed: int = options.SAMPLE_SEED,
    data_dir: Path | None = options.DATA_DIR,
    experiment: str | None = options.IN_EXPERIMENT,
    tracking_uri: str | None = options.TRACKING_URI,
    as_json: bool = options.JSON,
) -> None:
    """Draw 16 test images with what the model takes them for."""
    _write("predictions", run_id, output_dir, seed, data_dir, experiment, tracking_uri, as_json)


def _write(
    what: str,
    run_id: str,
    output_dir: Path | None,
    seed: int,
    data_dir: Path | None,
    experiment: str | None,
    tracking_uri: str | None,
    as_json: bool,
) -> None:
    """Run one of the commands that write figures, and print where they are."""
    from fmnist_tracking.workflows import report as workflow

    written = getattr(workflow, what)(
        run_id,
        output_dir=output_dir,
        seed=seed,
        data_dir=data_dir,
        experiment=experiment,
        tracking_uri=tracking_uri,
    )
    if as_json:
        scores = written.evaluation and {
            "test_accuracy": written.evaluation.accuracy,
            "test_macro_f1": written.evaluation.macro.f1,
        }
        print_json(
            {
                "run_id": written.run_id,
                "trial_run_id": written.trial_id,
                "files": [str(path) for path in written.files],
                **(scores or {}),
            }
        )
        return
    if written.evaluation is not None:
        say(
            f"Test accuracy {written.evaluation.accuracy:.4f}, macro F1 "
            f"{written.evaluation.macro.f1:.4f}, trial {written.trial_id[:8]}"
        )
        out.print(str(written.files[0]), soft_wrap=True, markup=False)
    else:
        for path in written.files:
            out.print(str(path), soft_wrap=True, markup=False)
