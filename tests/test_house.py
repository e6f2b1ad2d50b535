"""The rules of the house, read from the source: directions of imports, names, sizes, docstrings, paths."""

import ast
import re
import sys
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
MAY_IMPORT = {
    "kernels": set(),
    "diffsiam": {"kernels"},
    "engine": {"kernels", "diffsiam"},
    "bench": {"kernels", "diffsiam", "engine"},
    "tests": {"kernels", "diffsiam", "engine", "bench"},
}
LONGEST_FILE = 400
MACHINE_PATH = re.compile(r"(?<![\w.}])/(?:home|root|work|tmp|mnt|Users|opt|srv)/")
FILES = sorted(path for part in MAY_IMPORT for path in (ROOT / part).rglob("*.py"))
PUBLISHED = [path for path in FILES if path.relative_to(ROOT).parts[0] != "tests"]


def name_of(path: Path) -> str:
    return str(path.relative_to(ROOT))


def imported_modules(tree: ast.AST) -> set[str]:
    """Top-level names of all modules imported anywhere in a file, inside functions too."""
    plain = {name.name for node in ast.walk(tree) if isinstance(node, ast.Import) for name in node.names}
    from_ = {node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) and node.module}
    return {name.split(".")[0] for name in plain | from_}


def public_definitions(tree: ast.Module) -> list[ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef]:
    kinds = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)
    return [node for node in tree.body if isinstance(node, kinds) and not node.name.startswith("_")]


def test_every_part_of_the_house_is_looked_at():
    assert {path.relative_to(ROOT).parts[0] for path in FILES} == set(MAY_IMPORT)
    assert len(FILES) > 40


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_imports_follow_their_direction(path):
    """kernels <- diffsiam <- engine <- bench <- tests; nothing but tests imports bench, nothing imports tests."""
    part = path.relative_to(ROOT).parts[0]
    ours = imported_modules(ast.parse(path.read_text())) & set(MAY_IMPORT)
    assert ours <= MAY_IMPORT[part] | {part} - {"tests"}


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_no_import_is_relative(path):
    relative = [node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.ImportFrom) and node.level]
    assert not relative


def test_no_module_of_the_engine_hides_one_of_python_or_of_a_dependency():
    """`deepspeed engine/train.py` puts engine/ itself first on sys.path."""
    names = {path.stem for path in (ROOT / "engine").iterdir() if path.suffix == ".py" or (path / "__init__.py").exists()}
    assert "train" in names
    assert not names & set(sys.stdlib_module_names)
    assert not names & set(packages_distributions())


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_files_are_short(path):
    assert len(path.read_text().splitlines()) < LONGEST_FILE


@pytest.mark.parametrize("path", PUBLISHED, ids=name_of)
def test_public_functions_and_classes_say_what_they_are(path):
    silent = [node.name for node in public_definitions(ast.parse(path.read_text())) if not ast.get_docstring(node)]
    assert not silent


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_files_say_what_they_hold(path):
    source = path.read_text()
    assert not source or ast.get_docstring(ast.parse(source))


@pytest.mark.parametrize("path", PUBLISHED, ids=name_of)
def test_no_path_of_one_machine_is_written_down(path):
    found = [line.strip() for line in path.read_text().splitlines() if MACHINE_PATH.search(line)]
    assert not found
