"""The commands that list: `runs` and `best`."""

import typer

import fmnist_tracking as ft
from fmnist_tracking.cli import options
from fmnist_tracking.cli.app import command
from fmnist_tracking.cli.output import out, print_json, print_runs, print_trial, print_trials
from fmnist_tracking.errors import ConfigError
from fmnist_tracking.redact import printable


@command(example="fmnist-track runs --run-id latest")
def runs(
    run_id: str | None = options.run_id_option(None, "List the trials of this search instead."),
    repair: bool = typer.Option(
        False,
        "--repair",
        help="Close, as KILLED, the runs that are still open though their process is gone, and "
        "list those.",
    ),
    experiment: str | None = options.IN_EXPERIMENT,
    tracking_uri: str | None = options.TRACKING_URI,
    as_json: bool = options.JSON,
) -> None:
    """List searches and single trainings; with --run-id, the trials of one search."""
    if repair:
        if run_id is not None:
            raise ConfigError("Expected either --repair or --run-id, got both.")
        closed = ft.repair_runs(experiment=experiment, tracking_uri=tracking_uri)
        if as_json:
            print_json([{"run_id": closed_id, "name": name} for closed_id, name in closed])
            return
        for closed_id, name in closed:
            out.print(f"{closed_id[:8]}  {printable(name)}  closed as KILLED", soft_wrap=True)
        if not closed:
            out.print("Every open run has a live process; there is nothing to repair.")
        return
    if run_id is not None:
        result = ft.load_search(run_id, experiment=experiment, tracking_uri=tracking_uri)
        print_trials(result, as_json=as_json)
        return
    found = ft.list_runs(experiment=experiment, tracking_uri=tracking_uri)
    if as_json:
        print_json([summary.to_json() for summary in found])
        return
    print_runs(found)


@command(example="fmnist-track best --json")
def best(
    run_id: str = options.run_id_option("best"),
    experiment: str | None = options.IN_EXPERIMENT,
    tracking_uri: str | None = options.TRACKING_URI,
    as_json: bool = options.JSON,
) -> None:
    """Show the best trial of a search, by validation accuracy; by default of the latest."""
    trial = ft.load_trial(run_id, experiment=experiment, tracking_uri=tracking_uri)
    print_trial(trial, as_json=as_json)
