"""Code in documentation that is what it says: every command line is one that its command takes, every Python
block runs.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from manual.notebooks import ROOT, blocks
from manual.reference import commands

PAGES = (ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md")))
COMMAND = re.compile(r"(?:srun .*?)?((?:diffsiam|deepspeed) .*)")
PLACEHOLDER = re.compile(r"\b[A-Z][A-Z_]+\b|…|\.\.\.|\[")  # RUN, DIR: not a command line yet


def command_lines(page: Path) -> Iterator[list[str]]:
    """Words of every ``diffsiam`` and ``deepspeed`` line in the code blocks of a page."""
    for kind, body, _ in blocks(page.read_text()):
        if kind in ("", "bash", "slurm"):
            for line in body.replace("\\\n", " ").splitlines():
                if found := COMMAND.match(line):
                    yield shlex.split(found[1], comments=True)


def refusal(words: list[str]) -> str | None:
    """Why a command line is none that the program takes; it is read, not run."""
    if words[0] == "deepspeed":
        return _training_refusal(words)
    known = [(names, c) for names, c in commands() if tuple(words[1 : 1 + len(names)]) == names]
    if not known:
        return f"no command {' '.join(words[1:3])}"
    names, command = known[0]
    try:
        parameters = command.make_context(" ".join(names), words[1 + len(names) :]).params
    except Exception as error:  # usage errors of the library that reads it
        return f"{type(error).__name__}: {getattr(error, 'message', '') or error}"
    return _config_refusal(parameters.get("config"), parameters.get("overrides") or [])


def _training_refusal(words: list[str]) -> str | None:
    from engine.train import parse

    at = words.index("engine/train.py")
    try:
        options = parse(words[at + 1 :])
    except SystemExit:
        return "engine/train.py does not take these options"
    return _config_refusal(options.config, options.overrides)


def _config_refusal(config: Any, overrides: list[str]) -> str | None:
    """Why a config of the repository does not go with its overrides."""
    from engine.config_file import load
    from engine.errors import UsageError

    if config is None or not str(config).startswith("configs/"):
        return None
    try:
        load(ROOT / config, [item for item in overrides if not PLACEHOLDER.search(item)], inputs=False)
    except UsageError as error:
        return str(error)
    return None


def python_blocks(page: Path) -> list[tuple[str, str]]:
    """(body, note for tests) of the Python blocks of a page."""
    return [(body, note) for kind, body, note in blocks(page.read_text()) if kind == "python"]
