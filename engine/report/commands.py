"""The commands that show what a run learned, for engine/cli.py. Their bodies are imported when they run."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def register(app: typer.Typer) -> None:
    """Add the commands to ``app``."""
    app.command()(report)
    app.command()(explore)


def report(
    runs: Annotated[
        list[Path], typer.Argument(metavar="RUN...", help="Directories of trainings; several side by side.")
    ],
    out: Annotated[Path | None, typer.Option(help="File (default: report/index.html in the run).")] = None,
    explorer: Annotated[
        bool, typer.Option("--explorer", help="Make the pictures of its explorer first: minutes.")
    ] = False,
    labels: Annotated[
        Path | None,
        typer.Option(help="CSV of image and labels, or CelebA's list: which subset knows which label."),
    ] = None,
    data: Annotated[
        Path | None, typer.Option(help="Folder of the labelled images (default: the training set).")
    ] = None,
    claims: Annotated[
        Path | None, typer.Option(help="claims.json of bench.claims (default: the one beside the runs).")
    ] = None,
) -> None:
    """One HTML file of what was learned: alarms, factor map, explorer, curves, tables, sheets."""
    from engine import screen
    from engine.report.page import LIMIT, write_report
    from engine.report.reading import read_runs

    found = read_runs(runs)
    for run in found if explorer else ():
        from engine.report.lattice import render

        render(run.run_dir, run.config.report.guidance_scale)
    for run in found if labels else ():
        from engine.report.labels import measure_labels

        measure_labels(run.run_dir, labels, data)
    page = write_report(runs, out, claims)
    screen.line(f"written: {page}, {page.stat().st_size / 1e6:.1f} MB of at most {LIMIT / 1e6:.0f}")


def explore(
    run: Annotated[
        Path, typer.Argument(metavar="RUN", help="Directory of a training, export, or published pair.")
    ],
    labels: Annotated[
        Path | None, typer.Option(help="CSV of image and attributes, or CelebA's list: attributes to push.")
    ] = None,
    data: Annotated[
        Path | None, typer.Option(help="Folder that numbers count in (default: the training set).")
    ] = None,
    port: Annotated[int, typer.Option(min=0, max=65535, help="Of 127.0.0.1; 0: any that is free.")] = 8765,
) -> None:
    """Edit your own images in the browser: a local page, nothing leaves this machine."""
    from engine.errors import UsageError

    try:
        from engine.explore.serve import serve
    except ModuleNotFoundError as error:
        raise UsageError(f"{error.name} is not installed; pip install 'diffsiam[explore]'") from error
    serve(run, labels, data, port)
