"""The site of docs/: what it says of the code is found there. Building it, and running what it shows, is
``make docs``.
"""

from __future__ import annotations

import ast
import json
import re
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "docs"))

from manual import equations, links, notebooks, reference, snippets  # noqa: E402  (after the path is right)
from manual.equations import Lost  # noqa: E402

NUMBERED = {*(f"2.{i}" for i in (1, 2)), *(f"3.{i}" for i in range(1, 13))}


def test_every_equation_and_algorithm_has_its_lines_and_its_tests():
    found = {entry.label: entry for entry in equations.entries()}
    assert set(found) == NUMBERED | {f"Algorithm {i}" for i in (1, 2, 3)}
    assert all(entry.places and entry.tests for entry in found.values())


def test_every_equation_that_the_code_names_is_in_the_table():
    labels = {entry.label for entry in equations.entries()}
    for part in ("kernels", "diffsiam", "engine"):
        for path in (ROOT / part).rglob("*.py"):
            for number in re.findall(r"thesis Eq\. (\d+\.\d+)", path.read_text()):
                assert number in labels, path


SOURCE = '''
"""A file."""


class Schedule:
    def at(self, t):
        a = t + 1
        return a


def at(t):
    a = t + 1
    return a
'''


@pytest.fixture
def project(tmp_path) -> Path:
    (tmp_path / "code.py").write_text(SOURCE)
    (tmp_path / "tests").mkdir()
    (tmp_path / "tests" / "test_code.py").write_text("class TestAt:\n    def test_it(self):\n        pass\n")
    return tmp_path


def test_a_line_is_found_in_its_symbol_wherever_that_moved(project):
    place = equations.locate(project, "code.py", "at", "a = t + 1", show=2)
    assert SOURCE.splitlines()[place.number - 1] == "    a = t + 1"
    assert place.number == 12
    assert place.text == "a = t + 1\nreturn a"
    assert equations.locate(project, "code.py", "Schedule.at", "a = t + 1").number == 7


@pytest.mark.parametrize(
    ("file", "symbol", "line", "said"),
    [
        ("gone.py", "at", "a = t + 1", "no such file"),
        ("code.py", "Schedule.gone", "a = t + 1", "no Schedule.gone"),
        ("code.py", "at", "a = t + 2", "0 lines hold"),
        ("code.py", "at", "a", "3 lines hold"),
    ],
)
def test_a_line_that_is_gone_or_ambiguous_is_lost(project, file, symbol, line, said):
    with pytest.raises(Lost, match=said):
        equations.locate(project, file, symbol, line)


def test_a_test_that_is_gone_is_lost(project):
    equations.demand_test(project, "test_code.py::test_it")
    for gone in ("test_code.py::test_other", "test_none.py::test_it"):
        with pytest.raises(Lost):
            equations.demand_test(project, gone)


def test_the_config_page_has_every_key_and_no_cell_is_torn_by_a_pipe():
    from engine.config_explain import leaves

    page = reference.config_page()
    rows = [line for line in page.splitlines() if line.startswith("| `")]
    assert {row.split("`")[1] for row in rows} >= set(leaves())
    for row in rows:
        outside = re.sub(r"`[^`]*`", "", row).replace("\\|", "")
        assert outside.count("|") in (5, 7), row


def test_the_command_page_has_every_command_with_an_example():
    page = reference.commands_page()
    for names, _ in reference.commands():
        section = page.split(f"## {' '.join(names)}\n")[1].split("\n## ")[0]
        assert f"diffsiam {' '.join(names)}" in section
        assert "Examples:" in section


@pytest.mark.parametrize("name", reference.KERNELS)
def test_a_kernel_s_page_shows_its_formula_reference_and_registers(name):
    page = reference.kernel_page(name)
    formula = ast.get_docstring(ast.parse((ROOT / "kernels" / name / "ref.py").read_text()))
    assert formula in page
    assert f"def {name}(" in page.split("## Its reference")[1]
    expected = json.loads((ROOT / "kernels" / "aot_expected.json").read_text())
    first = next(row for row in expected if row["kernel"].startswith(name))
    assert f"| {first['kernel']} | {first['dtype']} | {first['arch']} | {first['registers']} |" in page


def test_every_kernel_of_the_house_has_a_page():
    assert set(reference.KERNELS) == {path.parent.name for path in (ROOT / "kernels").glob("*/kernel.py")}


@pytest.mark.parametrize("page", snippets.PAGES, ids=lambda page: page.name)
def test_every_command_line_in_readme_and_docs_is_one_that_the_program_takes(page):
    for words in snippets.command_lines(page):
        if not any(snippets.PLACEHOLDER.search(word) for word in words[1:]):
            assert snippets.refusal(words) is None, " ".join(words)


def test_what_no_command_takes_is_refused():
    for line in (
        "diffsiam fly",
        "diffsiam export onlyone",
        "diffsiam rooms --pixels 3",
        "diffsiam train --config configs/bedroom.json train.stps=3",
        "deepspeed engine/train.py --config configs/bedroom.json --dryest",
    ):
        assert snippets.refusal(line.split()), line


TUTORIAL = """# Title

Text.

<!-- tests: train.steps=2 -->
```bash
diffsiam train --config c.json
```

<!-- tests: skip -->
```bash
make install
```

```python
x = 1
```
"""


def test_notes_for_tests_shorten_what_runs_and_no_reader_sees_them():
    assert "tests:" not in notebooks.without_test_notes(TUTORIAL)
    assert "diffsiam train --config c.json\n" in notebooks.without_test_notes(TUTORIAL)
    short = notebooks.cheap(TUTORIAL)
    assert "diffsiam train --config c.json train.steps=2\n" in short
    assert "make install" not in short
    assert "x = 1" in short


def test_the_words_of_an_untagged_block_are_not_taken_for_text_between_blocks():
    page = "```\none\n```\n\nbetween\n\n```python\ntwo\n```\n"
    assert notebooks.blocks(page) == [("", "one\n", ""), ("python", "two\n", "")]


@pytest.mark.parametrize(
    ("body", "wrong"),
    [
        ('<a href="other.html#here">x</a><img src="a.png">', None),
        ('<a href="https://example.org">x</a>', None),
        ('<a href="gone.html">x</a>', "no such file"),
        ('<a href="other.html#gone">x</a>', "no such anchor"),
        ('<a href="#gone">x</a>', "no such anchor"),
        ('<script src="https://example.org/x.js"></script>', "fetched from elsewhere"),
    ],
)
def test_a_broken_link_is_found(tmp_path, body, wrong):
    (tmp_path / "index.html").write_text(body)
    (tmp_path / "other.html").write_text('<h1 id="here">x</h1>')
    (tmp_path / "a.png").write_bytes(b"")
    found = links.broken(tmp_path)
    assert len(found) == (wrong is not None)
    assert wrong is None or found[0].endswith(wrong)


@pytest.mark.parametrize("page", ["README.md", "BENCHMARKS.md"])
def test_files_that_the_repository_s_pages_link_to_are_there(page):
    text = (ROOT / page).read_text()
    for target in re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", text):
        assert target.startswith("https://") or (ROOT / target).exists(), target
