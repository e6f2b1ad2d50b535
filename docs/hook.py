"""The hook of mkdocs: adds the pages that are made from the code, and pictures that lie elsewhere."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from manual import equations, notebooks, reference
from mkdocs.structure.files import File, Files

ROOT = Path(__file__).resolve().parent.parent
GALLERY = ROOT / "bench" / "results" / "gallery"


def on_files(files: Files, config: Any) -> Files:
    """Add what no file in docs/ holds."""
    pages: dict[str, Callable[[], str]] = {
        "equations.md": equations.page,
        "config.md": reference.config_page,
        "commands.md": reference.commands_page,
        "benchmarks/index.md": reference.benchmarks_page,
    }
    made = {name: make() for name, make in pages.items()}
    made |= {f"kernels/{name}.md": reference.kernel_page(name) for name in reference.KERNELS}
    made |= {f"benchmarks/{name}.md": text for name, text in reference.device_pages().items()}
    made |= {f"notebooks/{name}.ipynb": text for name, text in notebooks.all_notebooks().items()}
    for name, text in made.items():
        files.append(File.generated(config, name, content=text))
    for picture in sorted(GALLERY.glob("*.png")):
        files.append(File.generated(config, f"gallery/{picture.name}", abs_src_path=str(picture)))
    return files


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Leave out what is for tests alone."""
    return notebooks.without_test_notes(markdown)
