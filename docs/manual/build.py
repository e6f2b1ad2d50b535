"""``make docs``: tutorials run, snippets are tried, the site is built, its links are followed."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

from manual import links, notebooks, slurm, snippets

ROOT = notebooks.ROOT
SITE = ROOT / "build" / "site"
REPORT = "runs/first/report/index.html"  # that the tutorial says is there


def main() -> int:
    """Everything, the slowest last; 1 if anything is wrong."""
    failures: list[str] = []
    for step in (command_lines, site, tutorials, job):
        begun = time.monotonic()
        found = step()
        failures += found
        print(f"{step.__name__}: {len(found)} wrong, {time.monotonic() - begun:.0f} s")
    for failure in failures:
        print(failure)
    return 1 if failures else 0


def command_lines() -> list[str]:
    """Command lines in README and docs that the program would refuse."""
    wrong = []
    for page in snippets.PAGES:
        for words in snippets.command_lines(page):
            if not any(snippets.PLACEHOLDER.search(word) for word in words[1:]) and (
                reason := snippets.refusal(words)
            ):
                wrong.append(f"{page.relative_to(ROOT)}: {' '.join(words)}: {reason}")
    return wrong


def site() -> list[str]:
    """Build the site, and follow every link in it."""
    built = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--quiet", "--site-dir", str(SITE)],
        cwd=ROOT,
        env={**os.environ, "NO_MKDOCS_2_WARNING": "1"},
        capture_output=True,
        text=True,
    )
    if built.returncode:
        return [f"mkdocs: {line}" for line in (built.stdout + built.stderr).splitlines() if line.strip()]
    return links.broken(SITE)


def tutorials() -> list[str]:
    """Run the tutorials in their short form, and every other Python block with the model that they leave."""
    os.environ["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))
    with tempfile.TemporaryDirectory() as place:
        folders = {name: Path(place) / name for name in notebooks.AS_NOTEBOOKS}
        with ThreadPoolExecutor() as pool:  # each is one process at a time
            wrong = [text for found in pool.map(_run_tutorial, folders, folders.values()) for text in found]
        if not wrong and not (folders["rooms"] / REPORT).is_file():
            wrong.append(f"tutorials/rooms.md: no {REPORT}")
        with contextlib.chdir(folders["rooms"]):
            for page in snippets.PAGES:
                if page.stem not in notebooks.AS_NOTEBOOKS:
                    wrong += _tried(str(page.relative_to(ROOT)), partial(_run_python, page))
    return wrong


def job() -> list[str]:
    """Run the Slurm tutorial's script without Slurm."""
    with tempfile.TemporaryDirectory() as place:
        return slurm.run(Path(place))


def _run_tutorial(name: str, folder: Path) -> list[str]:
    shutil.copytree(ROOT / "configs", folder / "configs")
    return _tried(f"tutorials/{name}.md", partial(notebooks.run, name, folder))


def _run_python(page: Path) -> None:
    """The Python blocks of a page one after another, where the tutorials were, with some images at hand."""
    import numpy as np

    from engine.data.rooms import Rooms

    names: dict[str, Any] = {"images": Rooms(16, seed=3, count=4).images(np.arange(4))}
    for body, _ in snippets.python_blocks(page):
        exec(compile(body, str(page), "exec"), names)


def _tried(what: str, run: Callable[[], Any]) -> list[str]:
    try:
        run()
    except Exception as error:  # whatever a snippet raises is what is wrong with it
        return [f"{what}: {type(error).__name__}: {str(error)[-1500:]}"]
    return []


if __name__ == "__main__":
    sys.exit(main())
