"""``diffsiam report``: one HTML file that needs nothing else, of one run or of several side by side."""

from __future__ import annotations

import base64
import hashlib
import json
import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from engine.errors import UsageError
from engine.report import told
from engine.report.alarms import checks
from engine.report.compare import config_differences, differences, final_numbers
from engine.report.curves import own_charts, shared_charts
from engine.report.embedding import Embedded, embed
from engine.report.evaluations import tables
from engine.report.explorer import INDEX, TILES, explorer
from engine.report.facts import facts, state
from engine.report.maps import maps
from engine.report.reading import Run, find_claims, read_claims, read_runs

LIMIT = 4_000_000  # bytes of the page
PAGE = "index.html"  # in RUN/report


def templates() -> Environment:
    """Where everything that is put into a page is escaped, whatever it is."""
    loader = PackageLoader("engine.report")
    environment = Environment(loader=loader, autoescape=True, undefined=StrictUndefined, trim_blocks=True)
    environment.filters |= {"share": told.share, "number": told.number}
    environment.globals |= {"source": lambda name: _source(environment, name), "hash": script_hash}
    return environment


def write_report(
    run_dirs: Sequence[Path], out: Path | None = None, claims: Path | None = None, running: bool = False
) -> Path:
    """Write the page of these runs; returns its path.

    Args:
        out: None: ``report/index.html`` in the first run's directory.
        claims: claims.json of ``bench.claims``; None: the one beside the runs, if there is one.
        running: the run is training now.

    Raises:
        UsageError: there is no run, or the page cannot be written.
    """
    runs = read_runs(run_dirs)
    found = claims or find_claims(run_dirs)
    html = page(runs, read_claims(found) if found else None, running)
    out = out or run_dirs[0] / "report" / PAGE
    beside = out.with_name(f".{out.name}_{os.getpid()}")
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        beside.write_text(html, encoding="utf-8")
        os.replace(beside, out)  # a reader never sees half of it
    except OSError as error:
        raise UsageError(f"--out {out}: cannot be written ({error.strerror}); choose another file") from error
    return out


def page(runs: Sequence[Run], claims: dict[str, Any] | None = None, running: bool = False) -> str:
    """The whole page as text.

    Raises:
        UsageError: even without pictures it would be larger than LIMIT.
    """
    template, context = templates().get_template("report.html"), _context(runs, claims, running)
    paths = [path for run in runs for path in _pictures(run)]
    bare = len(template.render(**context, embedded={path: Embedded("", 1, 1) for path in paths}).encode())
    if bare >= LIMIT:
        raise UsageError(f"{len(runs)} runs make a page of {bare:,} bytes without pictures; give fewer runs")
    embedded = embed(paths, LIMIT - bare - 200 * (1 + len(paths)))
    return template.render(**context, embedded=embedded)


def _context(runs: Sequence[Run], claims: dict[str, Any] | None, running: bool) -> dict[str, Any]:
    several = len(runs) > 1
    views = [_view(run, i, running) for i, run in enumerate(runs)]
    names = list(dict.fromkeys(what for view in views for what in view["facts"]))
    trained = [(what, [view["facts"].get(what, "-") for view in views]) for what in names]
    return {
        "title": f"DiffSiam report: {', '.join(run.name for run in runs)}",
        "made": time.strftime("%Y-%m-%d %H:%M %Z"),
        "running": running and not all(run.is_done for run in runs),
        "views": views,
        "trained": trained,
        "shared": shared_charts(runs),
        "config_differences": [[key, *cells] for key, cells in config_differences(runs)] if several else [],
        "final": [[name, *cells] for name, cells in final_numbers(runs)],
        "differences": differences(runs) if several else [],
        "claims": claims,
    }


def _view(run: Run, number: int, running: bool) -> dict[str, Any]:
    found = checks(run)
    return {
        "run": run,
        "id": f"run{number}",
        "state": state(run, running),
        "facts": facts(run),
        "checks": found,
        "alarms": [check for check in found if check.level == "alarm"],
        "cautions": [check for check in found if check.level == "caution"],
        "charts": own_charts(run),
        "maps": maps(run),
        "tables": tables(run),
        "explorer": explorer(run),
        "config": json.dumps(run.config.to_dict(), indent=1),
    }


def _pictures(run: Run) -> list[Path]:
    tiles = run.run_dir / "report" / TILES
    made = [tiles] if (run.run_dir / "report" / INDEX).is_file() and tiles.is_file() else []
    return [*made, *(sheet.path for sheet in run.sheets)]


def _source(environment: Environment, name: str) -> str:
    """A file of the templates as it is."""
    assert environment.loader is not None
    return environment.loader.get_source(environment, name)[0]


def script_hash(text: str) -> str:
    """For a page's content security policy: no other script than this one runs in it."""
    return f"sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}"
