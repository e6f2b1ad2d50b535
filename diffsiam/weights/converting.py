"""Published models out again: PDAE's files, folders of diffusers, our own."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from diffsiam.subsets import balanced_ends
from diffsiam.weights.architecture import NOTHING_ASSUMED, Assumed, unet_to_dict
from diffsiam.weights.contract import ImageContract
from diffsiam.weights.errors import WeightsError
from diffsiam.weights.exported import write_export
from diffsiam.weights.files import write_tensors
from diffsiam.weights.formats import diffusers_keys, diffusers_unet, native
from diffsiam.weights.formats.simsiam import head_to_diti
from diffsiam.weights.isolated import convert_isolated
from diffsiam.weights.loading import read_parts
from diffsiam.weights.parts import Parts

Written = tuple[Parts, str]  # what was read, and a word on what was written


def convert(
    source: Path,
    out: Path,
    to: str = "native",
    assumed: Assumed = NOTHING_ASSUMED,
    isolated: bool = False,
    subsets: int | None = None,
) -> Written:
    """Read a file of any known format and write it in another.

    Args:
        source: file or folder.
        out: what must not exist yet. "native": a .safetensors file for a diffusion model, a folder for
            :func:`diffsiam.load` where there is an encoder; "pdae": a torch file; "diffusers": a folder.
        to: "native", "pdae" or "diffusers".
        assumed: what tensors cannot tell.
        isolated: take the tensors of a torch file that needs foreign classes by a process that runs none of
            them.
        subsets: of a pair, equal and tied to the time, which no file of DiTi records; None: the whole of z.

    Raises:
        WeightsError: the source is refused, the target cannot express it, or something is there already.
    """
    if to not in WRITERS:
        raise WeightsError(f"--to {to}: there is {', '.join(WRITERS)}")
    if out.exists():
        raise WeightsError(f"{out}: exists already")
    parts = _isolated(source, assumed) if isolated else read_parts(source, assumed)
    if subsets is not None:
        parts = _with_subsets(parts, subsets)
    out.parent.mkdir(parents=True, exist_ok=True)
    return parts, WRITERS[to](parts, out)


def _with_subsets(parts: Parts, n: int) -> Parts:
    dim = parts.dim
    if dim is None or not 1 <= n <= dim:
        raise WeightsError(f"{parts.path}: has no z to cut into {n} subsets")
    described = {"ends": balanced_ends(dim, n), "choice": "time_tied", "detach": True, "jump": False}
    return replace(parts, extras={**parts.extras, "subsets": described})


def _isolated(source: Path, assumed: Assumed) -> Parts:
    with tempfile.TemporaryDirectory() as folder:
        plain = Path(folder) / "plain.pt"
        convert_isolated(source, plain)
        parts = read_parts(plain, assumed)  # its tensors are mapped: the open file outlives its name
        return replace(parts, path=source, file=source)


def to_native(parts: Parts, out: Path) -> str:
    """A .safetensors file, or a folder where there is an encoder."""
    if parts.encoder is not None:
        write_export(out, parts, {"converted_from": {"file": parts.path.name, "format": parts.format}})
        return "folder for diffsiam.load"
    assert parts.unet is not None, "every format holds an encoder or a diffusion model"
    native.write(out, parts.unet, unet=unet_to_dict(parts.architecture), contract=parts.contract.to_dict())
    return "diffusion model, for frozen.weights"


def to_pdae(parts: Parts, out: Path) -> str:
    """A torch file with the averages' names, which is what PDAE and DiTi evaluate.

    Raises:
        WeightsError: there is no diffusion model, or it is none of guided diffusion's design.
    """
    config = parts.architecture
    if (config.time, config.resampling, config.eps) != ("scale_shift", "block", 1e-5):
        raise WeightsError(f"{parts.path}: PDAE has scale-shift blocks that resample, this model has not")
    if config.new_attention_order and config.heads * config.head_channels != -1:
        raise WeightsError(
            f"{parts.path}: its attention has the new channel order; PDAE's files have the old one"
        )
    content: dict[str, Any] = {"ema_denoise_fn": dict(parts.unet or {})}
    if parts.decoder is not None and parts.encoder is not None:
        content = {
            "ema_decoder": {**(parts.unet or {}), **parts.decoder},
            "ema_encoder": {f"encoder.{key}": value for key, value in parts.encoder.items()},
            "step": 0,
        }
        if parts.simsiam is not None:
            content["ssl_model"] = head_to_diti(parts.simsiam)
    torch.save(content, out)
    return "trained pair" if "ema_decoder" in content else "diffusion model"


def to_diffusers(parts: Parts, out: Path) -> str:
    """A folder with config.json, safetensors and, where it is known, the schedule.

    Raises:
        WeightsError: there is no diffusion model, or diffusers cannot express it.
    """
    config, contract = parts.architecture, parts.contract
    stated = diffusers_unet.config_to(config, contract.px)
    state = diffusers_keys.to_diffusers(parts.unet or {}, config)
    out.mkdir()
    (out / "config.json").write_text(json.dumps(stated, indent=2) + "\n")
    if contract.steps:
        (out / "scheduler_config.json").write_text(json.dumps(_scheduler(contract), indent=2) + "\n")
    write_tensors(state, out / "diffusion_pytorch_model.safetensors", {"format": "pt"})
    return "UNet2DModel" + ("" if parts.decoder is None else ", without decoder and encoder")


def _scheduler(contract: ImageContract) -> dict[str, Any]:
    return {
        "_class_name": "DDPMScheduler",
        "num_train_timesteps": contract.steps,
        "beta_start": contract.beta_start,
        "beta_end": contract.beta_end,
        "beta_schedule": "linear",
        "prediction_type": "epsilon",
        "clip_sample": True,
    }


WRITERS: dict[str, Callable[[Parts, Path], str]] = {
    "native": to_native,
    "pdae": to_pdae,
    "diffusers": to_diffusers,
}
