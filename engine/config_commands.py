"""``diffsiam config``, for engine/cli.py. The bodies are imported when they run."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from engine.command_line import Overrides, complete_name


def register(app: typer.Typer) -> None:
    """Add the commands to ``app``, a group of their own."""
    for command in (show, explain):
        app.command()(command)


def show(
    config: Annotated[Path, typer.Argument(help="JSON file.")],
    overrides: Overrides = None,
) -> None:
    """Print every effective value: defaults, method, file and overrides together. Needs no images or
    weights."""
    from engine.config_file import dump, load

    print(dump(load(config, overrides or [], inputs=False)), end="")


def explain(
    key: Annotated[
        str | None,
        typer.Argument(
            help="Such as subsets.choice, or a section; none: all sections.", autocompletion=complete_name
        ),
    ] = None,
) -> None:
    """Say what a key means, what it may be and what it is by default."""
    from engine import screen
    from engine.config_explain import explain as entries

    found = entries(key)
    if len(found) == 1:
        entry = found[0]
        rows = [("type", entry.type), ("default", entry.default), ("", entry.description)]
        screen.block(rows, entry.key)
        return
    section, title = (found[1:], f"{key}: {found[0].description}") if key else (found, "")
    if title:
        screen.line(title)
    screen.table(
        ["key", "type", "default", ""],
        [[entry.key, entry.type, entry.default, entry.description] for entry in section],
    )
