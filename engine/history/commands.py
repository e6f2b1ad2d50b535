"""``diffsiam runs``, for engine/cli.py. The bodies are imported when they run."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

Json = Annotated[bool, typer.Option("--json", help="For programs.")]


def register(app: typer.Typer) -> None:
    """Add the commands to ``app``, a group of their own."""
    for command in (list_, compare, reproduce, prune):
        app.command(command.__name__.rstrip("_"))(command)


def list_(
    folder: Annotated[Path, typer.Argument(help="That holds runs.")] = Path("runs"), as_json: Json = False
) -> None:
    """The runs in a folder: what they are, how far they got, their last loss."""
    from engine.history.listing import show_list

    show_list(folder, as_json)


def compare(
    runs: Annotated[list[Path], typer.Argument(metavar="RUN...", help="Two or more.")], as_json: Json = False
) -> None:
    """In what runs differ: config, data, weights, versions, metrics at the last common step, report."""
    from engine.errors import UsageError
    from engine.history.listing import show_comparison

    if len(runs) < 2:
        raise UsageError("compare: give two runs or more")
    show_comparison(runs, as_json)


def reproduce(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="With a checkpoint.")],
    out: Annotated[Path | None, typer.Option(help="Directory of the new run (default: RUN_again).")] = None,
    prepare: Annotated[
        bool, typer.Option("--prepare", help="Check and write the config only; prints the command.")
    ] = False,
) -> None:
    """Train a run once more from what it recorded, and say whether the same comes out, to the bit.

    On one rank; --prepare prints the command for several.
    """
    from engine.history.reproducing import reproduce as again

    again(run, out or run.with_name(f"{run.name}_again"), prepare)


def prune(
    runs: Annotated[list[Path], typer.Argument(metavar="RUN...", help="That have ended.")],
    keep: Annotated[int, typer.Option(min=1, help="Newest valid checkpoints that stay.")] = 1,
    features: Annotated[
        bool, typer.Option("--features", help="Also the features that evaluations keep.")
    ] = False,
    yes: Annotated[bool, typer.Option("--yes", help="Do it; without, only say what would go.")] = False,
) -> None:
    """Remove old checkpoints and leftovers of ended runs."""
    from engine.history.pruning import prune as run

    run(runs, keep, features, yes)
