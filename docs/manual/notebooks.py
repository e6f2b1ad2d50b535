"""Tutorials as notebooks: ``python`` and ``bash`` blocks become cells.

A comment before a block is for tests alone, and no reader sees it:

    <!-- tests: train.steps=20 -->   appended to the first command of the block: the same, in seconds
    <!-- tests: skip -->             shown, and not run
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent.parent
TUTORIALS = ROOT / "docs" / "tutorials"
AS_NOTEBOOKS = ("rooms", "own_images")  # what runs without a cluster and without a download

_NOTE = re.compile(r"^<!-- tests: (.*?) -->\n", re.MULTILINE)
_BLOCK = re.compile(
    r"(?:^<!-- tests: (?P<note>.*?) -->\n)?^```(?P<kind>\w*)\n(?P<body>.*?)^```$", re.M | re.S
)


def without_test_notes(text: str) -> str:
    """A page as readers see it."""
    return _NOTE.sub("", text)


def blocks(text: str) -> list[tuple[str, str, str]]:
    """(kind, body, note for tests or "") of every code block of a page."""
    return [(m["kind"], m["body"], m["note"] or "") for m in _BLOCK.finditer(text)]


def cheap(text: str) -> str:
    """A tutorial whose commands take seconds: notes appended, what is not to be run taken out."""

    def shorter(match: re.Match[str]) -> str:
        kind, body, note = match["kind"], match["body"], match["note"]
        if note == "skip":
            return ""
        if note:
            first, newline, rest = body.partition("\n")
            body = f"{first} {note}{newline}{rest}"
        return f"```{kind}\n{body}```"

    return _BLOCK.sub(shorter, text)


def notebook(text: str) -> Any:
    """A page as a notebook: blocks of Python as they are, of bash as ``%%bash`` cells, the rest as text."""
    import jupytext

    made = jupytext.reads(without_test_notes(text).replace("```bash\n", "```python\n%%bash\n"), fmt="md")
    made.metadata["kernelspec"] = {"name": "python3", "display_name": "Python 3", "language": "python"}
    for number, cell in enumerate(made.cells):
        cell["id"] = f"cell-{number}"  # else drawn at random: the same page is the same file
    return made


def all_notebooks() -> dict[str, str]:
    """The notebooks' files by the name of their tutorial."""
    import nbformat

    return {name: nbformat.writes(notebook((TUTORIALS / f"{name}.md").read_text())) for name in AS_NOTEBOOKS}


def run(name: str, folder: Path, seconds: int = 300) -> int:
    """Execute a tutorial's notebook in its cheap form, in ``folder``; returns the number of code cells.

    Raises:
        nbclient.exceptions.CellExecutionError: a cell fails; with its output.
    """
    from nbclient import NotebookClient

    made = notebook(cheap((TUTORIALS / f"{name}.md").read_text()))
    where = {"metadata": {"path": str(folder)}}
    NotebookClient(made, timeout=seconds, resources=where).execute()
    return sum(cell.cell_type == "code" for cell in made.cells)
