"""JSON that somebody else may have written, or only half of it: read, or None. Nothing here imports torch."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

DAMAGED = (OSError, ValueError, RecursionError)  # of reading a file of JSON; nesting is recursion


def read_json(path: Path) -> Any:
    """What a file holds; None where it is missing, cut off, no text, or nested beyond reason."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except DAMAGED:
        return None


def read_object(path: Path) -> dict[str, Any]:
    """The same for a file of one object; {} where it is none."""
    found = read_json(path)
    return found if isinstance(found, dict) else {}


def read_lines(path: Path) -> list[dict[str, Any]]:
    """The objects of a file, one a line; a line that is none is left out: the last may be being written."""
    objects = []
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines() if path.is_file() else []:
        try:
            found = json.loads(line)
        except DAMAGED:
            continue
        if isinstance(found, dict):
            objects.append(found)
    return objects
