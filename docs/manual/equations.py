"""docs/equations.toml -> a page: each equation with the lines that compute it and the tests that hold it."""

from __future__ import annotations

import ast
import tomllib
from dataclasses import dataclass
from functools import cache
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent.parent
TABLE = ROOT / "docs" / "equations.toml"
HEAD = """# Equations and lines

Every numbered equation and algorithm of the thesis ("Unsupervised Learning with Diffusion Models", Wang
Jiankun, NTU, 2023), the lines that compute it, and the tests that hold it. This page is made from the code:
where a line or a test is gone, making it fails.
"""


class Lost(ValueError):
    """A line or a test that the table names is not where it says."""


@dataclass(frozen=True)
class Place:
    """Lines of the code: file, first line (from 1), the symbol that holds them, their text."""

    file: str
    number: int
    symbol: str
    text: str


@dataclass(frozen=True)
class Entry:
    """One equation; tests as "file.py::name"."""

    label: str
    title: str
    latex: str
    note: str
    places: tuple[Place, ...]
    tests: tuple[str, ...]


def entries(table: Path = TABLE, root: Path = ROOT) -> list[Entry]:
    """The table with every place found.

    Raises:
        Lost: a place is gone or ambiguous, or a test does not exist.
    """
    found = []
    for raw in tomllib.loads(table.read_text())["entry"]:
        places = tuple(locate(root, **place) for place in raw["places"])
        for test in raw["tests"]:
            demand_test(root, test)
        found.append(
            Entry(
                raw["label"],
                raw["title"],
                raw.get("latex", ""),
                raw.get("note", ""),
                places,
                tuple(raw["tests"]),
            )
        )
    return found


def locate(root: Path, file: str, symbol: str, line: str, show: int = 1) -> Place:
    """The ``show`` lines of ``symbol`` from the one that holds ``line`` on.

    Raises:
        Lost: there is no such file, symbol or line, or there are several.
    """
    path = root / file
    if not path.is_file():
        raise Lost(f"{file}: no such file")
    lines = path.read_text().splitlines()
    node = _symbol(path, symbol)
    if node is None or node.end_lineno is None:
        raise Lost(f"{file}: no {symbol} there")
    hits = [n for n in range(node.lineno, node.end_lineno + 1) if line in lines[n - 1]]
    if len(hits) != 1:
        raise Lost(f"{file}: {symbol}: {len(hits)} lines hold {line!r}, want one")
    (number,) = hits
    shown = lines[number - 1 : number - 1 + show]
    margin = min(len(text) - len(text.lstrip()) for text in shown)
    return Place(file, number, symbol, "\n".join(text[margin:] for text in shown))


def demand_test(root: Path, test: str) -> None:
    """Raise :class:`Lost` unless the file of ``test`` ("file.py::name") defines it."""
    file, _, name = test.partition("::")
    path = root / "tests" / file
    functions = (n for n in ast.walk(_tree(path)) if isinstance(n, ast.FunctionDef)) if path.is_file() else ()
    if name not in {node.name for node in functions}:
        raise Lost(f"tests/{file}: no test {name}")


def page() -> str:
    """The page in Markdown, formulas as MathML."""
    from latex2mathml.converter import convert

    parts = [HEAD]
    for entry in entries():
        name = entry.label if entry.label.startswith("Algorithm") else f"Eq. {entry.label}"
        parts.append(f"## {name}: {entry.title}\n")
        if entry.latex:
            parts.append(f'<div class="formula">{convert(entry.latex, display="block")}</div>\n')
        if entry.note:
            parts.append(f"{entry.note}\n")
        parts += [
            f'``` python title="{p.file}, line {p.number}, {p.symbol}"\n{p.text}\n```\n' for p in entry.places
        ]
        parts.append("Held by " + ", ".join(f"`{test}`" for test in entry.tests) + ".\n")
    return "\n".join(parts)


@cache
def _tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text())


def _symbol(path: Path, name: str) -> ast.stmt | None:
    """The definition of a dotted name."""
    kinds = (ast.FunctionDef, ast.ClassDef)
    body: list[ast.stmt] = _tree(path).body
    node: ast.stmt | None = None
    for part in name.split("."):
        node = next((n for n in body if isinstance(n, kinds) and n.name == part), None)
        if node is None:
            return None
        body = node.body  # type: ignore[attr-defined]
    return node
