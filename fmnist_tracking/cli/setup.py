"""The commands that look after the installation: `data`, `doctor` and `ui`."""

import os
from pathlib import Path

import typer

import fmnist_tracking as ft
from fmnist_tracking.cli import options
from fmnist_tracking.cli.app import command
from fmnist_tracking.cli.output import echo, new_table, out, print_json
from fmnist_tracking.errors import FmnistTrackingError, for_command_line
from fmnist_tracking.redact import LONGEST_LINE, printable


@command(example="fmnist-track data", reads_files=False)
def data(data_dir: Path | None = options.DATA_DIR, as_json: bool = options.JSON) -> None:
    """Find or fetch the images, verify or check them, and show what they are."""
    found = ft.load_dataset(data_dir)
    facts = {
        "name": found.name,
        "source": found.source,
        "train_images": len(found.train_images),
        "test_images": len(found.test_images),
        "image_shape": found.image_shape,
        "classes": found.classes,
        "class_names": found.class_names,
        "is_fashion_mnist": found.is_fashion_mnist,
        "sha256": found.sha256,
        "data_sha256": found.digest,
    }
    if as_json:
        print_json(facts)
        return
    verified = ", verified" if found.is_fashion_mnist else ""
    out.print(f"{found.name}{verified}, in {found.source}", soft_wrap=True)
    out.print(found.summary)
    if not found.is_fashion_mnist:
        names = printable(", ".join(found.class_names), LONGEST_LINE)
        out.print(f"Classes: {names}", soft_wrap=True)
    table = new_table("part", "SHA-256 of its decompressed IDX file")
    for part, digest in found.sha256.items():
        table.add_row(part, digest)
    table.add_row("all", found.digest)
    out.print(table)


@command(example="fmnist-track doctor")
def doctor(
    data_dir: Path | None = options.DATA_DIR,
    tracking_uri: str | None = options.TRACKING_URI,
    relocate: bool = typer.Option(
        False,
        "--relocate",
        help="Where the folder of a SQLite store was moved or copied: write the addresses of its "
        "runs' files anew, for where they are now.",
    ),
    upgrade_store: bool = options.UPGRADE_STORE,
    as_json: bool = options.JSON,
) -> None:
    """Check the installation: packages, code, TensorFlow, data, store and disk.

    To see whether the store can be used, a small file is written there, read and removed.
    """
    found = []
    for check in ft.check_installation(
        tracking_uri=tracking_uri, data_dir=data_dir, relocate=relocate, upgrade=upgrade_store
    ):
        found.append(check)
        if not as_json:
            mark = "✓" if check.ok else "✗"
            seen = for_command_line(check.message)
            out.print(f"{mark} {check.name}: {seen}", soft_wrap=True)
    if as_json:
        print_json(
            [
                {"name": check.name, "ok": check.ok, "seen": for_command_line(check.message)}
                for check in found
            ]
        )
    wrong = [check.name for check in found if not check.ok]
    if wrong:
        raise FmnistTrackingError(f"Something is wrong with: {', '.join(wrong)}.")


@command(example="fmnist-track ui --port 5001", reads_files=False)
def ui(
    host: str = typer.Option("127.0.0.1", "--host", help="Address to listen on."),
    port: int = options.whole_option(5000, "--port", 1, 65535, help="Port to listen on."),
    tracking_uri: str | None = options.TRACKING_URI,
) -> None:
    """Start MLflow's page on the store that these commands use."""
    from fmnist_tracking.doctor import prepare_ui

    prepared = prepare_ui(host=host, port=port, tracking_uri=tracking_uri, echo=echo)
    if prepared is not None:
        command, environment = prepared
        # In place of this process, so that signals reach the server, which ends its own children.
        os.execve(command[0], command, environment)
