"""Serving the explorer on this machine until Ctrl-C."""

from __future__ import annotations

import socket
import tempfile
from pathlib import Path
from typing import Any

import uvicorn

from engine import screen
from engine.edit.opening import Opened, Precision, open_model, training_images
from engine.edit.pictures import unseen
from engine.errors import UsageError
from engine.explore.app import build_app
from engine.explore.studio import Studio
from engine.report.explorer import most_moved, strongest, unit_map
from engine.report.reading import read_evaluation

HOST = "127.0.0.1"


def serve(
    path: Path, labels: Path | None, data: Path | None, port: int, precision: Precision = "auto"
) -> None:
    """Open the model and serve its page; returns when the user ends it.

    Raises:
        UsageError: the port is taken, the model cannot be edited with, or ``data`` is no set of images.
        CheckpointError: no checkpoint is valid.
    """
    with _listen(port) as listening, tempfile.TemporaryDirectory(prefix="diffsiam_") as folder:
        opened = open_model(path, precision)
        if data is not None:
            training_images(opened, data)  # said now, not when somebody asks for an image
        studio = Studio(opened, Path(folder), labels, data)
        app = build_app(studio, context(studio))
        config = uvicorn.Config(app, log_level="warning", access_log=False)
        screen.line(f"{opened.name}, {opened.px} px, {opened.device}: {opened.path}")
        screen.line(f"open http://{HOST}:{listening.getsockname()[1]} in a browser; Ctrl-C ends it")
        uvicorn.Server(config).run(sockets=[listening])


def context(studio: Studio) -> dict[str, Any]:
    """What the page says of the model."""
    opened = studio.opened
    factors, table = unit_map(read_evaluation(opened.path), studio.units)
    return {
        "title": f"DiffSiam explorer: {opened.path.name}",
        "told": _told(opened),
        "factors": factors,
        "rows": list(zip(studio.unit_names, table, strict=True)),
        "strongest": strongest(table),
        "attribute": most_moved(factors, table, studio.attributes),
        "attributes": studio.attributes,
        "dim": opened.model.subsets.ends[-1],
        "scale": opened.config.report.guidance_scale if opened.config else 1.0,
        "data": {"px": opened.px, "numbers": unseen(opened, studio.data, 2) if studio.has_numbers else []},
    }


def _told(opened: Opened) -> str:
    step = f", step {opened.origin['step']:,}" if "step" in opened.origin else ""
    n, d = opened.model.subsets.n, opened.model.subsets.ends[-1]
    return f"{opened.name}{step}: {opened.px} px, z of {d} entries in {n} subsets, on {opened.device}"


def _listen(port: int) -> socket.socket:
    listening = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listening.bind((HOST, port))
    except OSError as error:
        listening.close()
        raise UsageError(f"--port {port}: {error.strerror}; --port 0 takes any that is free") from error
    return listening
