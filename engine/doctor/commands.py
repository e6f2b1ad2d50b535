"""``diffsiam doctor``, for engine/cli.py. Its body is imported when it runs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def register(app: typer.Typer) -> None:
    """Add the command to ``app``."""
    app.command()(doctor)


def doctor(
    require: Annotated[
        str,
        typer.Option(
            help="Exit with code 2 unless these are there: cuda, bf16, xformers, triton, compile, dali, "
            "fused, nccl, deepspeed, tensorboard, wandb."
        ),
    ] = "",
    as_json: Annotated[bool, typer.Option("--json", help="For programs.")] = False,
    quick: Annotated[bool, typer.Option("--quick", help="Without the ten seconds of measuring.")] = False,
    folder: Annotated[Path, typer.Option(help="Where runs will go: its disk is looked at.")] = Path("runs"),
) -> None:
    """What this machine can do: devices, versions, which path is chosen and why, speed, what to install."""
    from engine.screen import quiet_libraries

    quiet_libraries()
    from engine.doctor.report import doctor as examine

    examine(require, as_json, quick, folder)
