"""A finished run as a folder that others can use: averaged networks, subsets, schedule, and a card."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import Tensor

from diffsiam.encoder import EncoderConfig
from diffsiam.model import load_model, subsets_to_dict
from diffsiam.weights import Parts, WeightsError, read_parts
from diffsiam.weights.exported import DESCRIPTION, write_export
from diffsiam.weights.keys import without_prefix
from engine import checkpoint
from engine.build import build_subsets, unet_config
from engine.checkpoint import Checkpoint
from engine.config import Config
from engine.config_file import from_dict
from engine.errors import UsageError
from engine.model_card import card, measured
from engine.published import demand_same_file, image_contract, read_frozen, record


def export_run(run_dir: Path, out: Path, with_frozen: bool = True) -> dict[str, Any]:
    """Write the newest checkpoint's averages of a run as a folder for :func:`diffsiam.load`.

    Args:
        run_dir: of a training of the representation.
        out: must not exist.
        with_frozen: include the diffusion model; without it the folder is slim, and says by file and sha256
            which one is needed to reconstruct.

    Returns:
        model.json.

    Raises:
        UsageError: there is no checkpoint, it is of another task, ``out`` exists, or the frozen model of the
            run is not where it was or not what it was.
        CheckpointError: no checkpoint is valid.
    """
    found, config, parts = averages(run_dir, with_frozen)
    provenance = _provenance(found, run_dir)
    text = card(parts, config, provenance, measured(run_dir), out.name)
    try:
        write_export(out, parts, provenance, text, parts.extras)
        read_parts(out)  # what cannot be read again is no export
    except (WeightsError, OSError) as error:
        raise UsageError(f"export: {error}") from error
    return json.loads((out / DESCRIPTION).read_text())


def averages(run_dir: Path, with_frozen: bool = True) -> tuple[Checkpoint, Config, Parts]:
    """The newest checkpoint of a training of the representation, its config, and its averaged networks.

    Raises:
        UsageError, CheckpointError: see :func:`export_run`.
    """
    found = checkpoint.latest(run_dir)
    if found is None:
        raise UsageError(f"{run_dir}: no checkpoint there; give the directory of a run")
    config = from_dict(found.stated("config"))
    if config.task != "diffsiam":
        raise UsageError(f"{run_dir}: trained a diffusion model; {run_dir}/unet.safetensors is its export")
    extras = {
        "subsets": subsets_to_dict(build_subsets(config, found.stated("boundaries"))),
        "schedule": {**config.schedule.model_dump(), "gamma": config.loss.gamma},
        "frozen": found.stated("weights"),
    }
    return found, config, replace(_parts(found, config, with_frozen), extras=extras)


def add_onnx(folder: Path) -> float:
    """Write ``encoder.onnx`` into an exported folder; returns its largest relative difference from torch.

    Raises:
        UsageError: the extra is not installed, or onnxruntime computes something else.
    """
    from diffsiam.onnx_encoder import ParityError, export_onnx

    try:
        return export_onnx(load_model(folder), folder / "encoder.onnx")
    except ModuleNotFoundError as error:
        raise UsageError(f"--onnx: {error.name} is not installed; pip install 'diffsiam[onnx]'") from error
    except (ParityError, ValueError) as error:
        raise UsageError(f"--onnx: {error}") from error


def _parts(found: Checkpoint, config: Config, with_frozen: bool) -> Parts:
    average: Mapping[str, Tensor] = found.load("ema")
    e = config.encoder
    parts = Parts(
        found.path,
        found.path,
        "diffsiam",
        encoder=without_prefix(average, "encoder."),
        encoder_config=EncoderConfig(e.arch, config.data.px, e.width, e.dim, norm=e.norm),
        decoder=without_prefix(average, "decoder.") or None,
        contract=image_contract(config, found.state.get("framing")),
    )
    if not config.needs_frozen:
        return parts
    frozen = read_frozen(config)
    if frozen is None:  # random weights, for trials: there is nothing to include
        return replace(parts, config=unet_config(config))
    demand_same_file(found.stated("weights"), record(frozen))
    return replace(parts, config=frozen.config, unet=frozen.unet if with_frozen else None)


def _provenance(found: Checkpoint, run_dir: Path) -> dict[str, Any]:
    manifest = json.loads((found.path / "manifest.json").read_text())
    return {
        "run": run_dir.name,
        "step": found.step,
        "config_hash": found.config_hash,
        "data_fingerprint": found.stated("data"),
        "versions": manifest.get("versions", {}),
        "config": found.stated("config"),
    }
