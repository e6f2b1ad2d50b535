"""The rules of the house, read from the source: directions of imports, names, sizes, docstrings, paths."""

import ast
import re
import sys
from collections.abc import Callable, Iterable
from functools import cache
from importlib.metadata import packages_distributions
from pathlib import Path

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
SOURCES = {
    path.relative_to(ROOT): path.read_text() for part in MAY_IMPORT for path in (ROOT / part).rglob("*.py")
}
PUBLISHED = {path: source for path, source in SOURCES.items() if path.parts[0] != "tests"}


parse = cache(ast.parse)


def offenders(rule: Callable[[Path, str], object], sources: dict[Path, str] = SOURCES) -> dict[str, object]:
    """What ``rule`` finds wrong, by file."""
    found = {str(path): rule(path, source) for path, source in sorted(sources.items())}
    return {path: wrong for path, wrong in found.items() if wrong}


def imports(source: str) -> Iterable[ast.Import | ast.ImportFrom]:
    """All import statements of a file, those inside functions too."""
    return (node for node in ast.walk(parse(source)) if isinstance(node, ast.Import | ast.ImportFrom))


def top_level_names(statement: ast.Import | ast.ImportFrom) -> set[str]:
    names = (
        [statement.module or ""]
        if isinstance(statement, ast.ImportFrom)
        else [a.name for a in statement.names]
    )
    return {name.split(".")[0] for name in names}


def test_every_part_of_the_house_is_looked_at():
    assert {path.parts[0] for path in SOURCES} == set(MAY_IMPORT)
    assert len(SOURCES) > 40


def test_imports_follow_their_direction():
    """kernels <- diffsiam <- engine <- bench <- tests: only tests import bench, nothing imports tests."""

    def upwards(path: Path, source: str) -> set[str]:
        ours = set().union(*map(top_level_names, imports(source))) & set(MAY_IMPORT)
        part = path.parts[0]
        return ours - MAY_IMPORT[part] - ({part} - {"tests"})

    assert offenders(upwards) == {}


def test_imports_are_absolute():
    def relative(_: Path, source: str) -> list[int]:
        return [s.lineno for s in imports(source) if isinstance(s, ast.ImportFrom) and s.level]

    assert offenders(relative) == {}


def test_no_module_of_the_engine_hides_one_of_python_or_of_a_dependency():
    """`deepspeed engine/train.py` puts engine/ itself first on sys.path."""
    names = {path.parts[1].removesuffix(".py") for path in SOURCES if path.parts[0] == "engine"} - {
        "__init__"
    }
    assert {"train", "data"} <= names
    assert not names & set(sys.stdlib_module_names)
    assert not names & set(packages_distributions())


def test_files_are_short():
    def lines(_: Path, source: str) -> int | None:
        count = len(source.splitlines())
        return count if count >= LONGEST_FILE else None

    assert offenders(lines) == {}


def test_files_say_what_they_hold():
    assert offenders(lambda _, source: source and not ast.get_docstring(parse(source))) == {}


def test_public_functions_and_classes_say_what_they_are():
    kinds = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)

    def silent(_: Path, source: str) -> list[str]:
        public = (n for n in parse(source).body if isinstance(n, kinds) and not n.name.startswith("_"))
        return [node.name for node in public if not ast.get_docstring(node)]

    assert offenders(silent, PUBLISHED) == {}


def test_no_path_of_one_machine_is_written_down():
    def paths(_: Path, source: str) -> list[str]:
        return [line.strip() for line in source.splitlines() if MACHINE_PATH.search(line)]

    assert offenders(paths, PUBLISHED) == {}
