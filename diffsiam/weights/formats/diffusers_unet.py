"""diffusers' ``UNet2DModel``: a folder of config.json and diffusion_pytorch_model.safetensors (or .bin).

Its tensors are those of guided diffusion under other names, but for attention, whose q, k and v are three
matrices of all heads (:mod:`diffsiam.weights.formats.diffusers_keys`). Both of its designs are read and
written: DDPM's (``google/ddpm-cifar10-32``: time added, resampling by convolutions) and guided diffusion's
(scale and shift, resampling in residual blocks).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from diffsiam.attention import head_count
from diffsiam.unet import UNet, UNetConfig
from diffsiam.weights.architecture import Assumed, demand_plausible
from diffsiam.weights.contract import ImageContract
from diffsiam.weights.errors import WeightsError
from diffsiam.weights.files import Content, read_json
from diffsiam.weights.formats.diffusers_keys import from_diffusers, modern
from diffsiam.weights.keys import canonical, flat, is_flat
from diffsiam.weights.parts import Parts
from diffsiam.weights.states import sound

NAME = "diffusers"
SIGN = "conv_in.weight"
MODEL = "UNet2DModel"

DEFAULTS: dict[str, Any] = {  # of diffusers, for keys that a config.json leaves out
    "in_channels": 3,
    "out_channels": 3,
    "center_input_sample": False,
    "time_embedding_type": "positional",
    "time_embedding_dim": None,
    "freq_shift": 0,
    "flip_sin_to_cos": True,
    "block_out_channels": [224, 448, 672, 896],
    "down_block_types": ["DownBlock2D", "AttnDownBlock2D", "AttnDownBlock2D", "AttnDownBlock2D"],
    "up_block_types": ["AttnUpBlock2D", "AttnUpBlock2D", "AttnUpBlock2D", "UpBlock2D"],
    "mid_block_type": "UNetMidBlock2D",
    "mid_block_scale_factor": 1,
    "layers_per_block": 2,
    "downsample_padding": 1,
    "downsample_type": "conv",
    "upsample_type": "conv",
    "dropout": 0.0,
    "act_fn": "silu",
    "attention_head_dim": 8,
    "norm_num_groups": 32,
    "attn_norm_num_groups": None,
    "norm_eps": 1e-5,
    "resnet_time_scale_shift": "default",
    "add_attention": True,
    "class_embed_type": None,
    "num_class_embeds": None,
}
ONLY: dict[str, tuple[Any, ...]] = {  # the values that our class has
    "in_channels": (3,),
    "out_channels": (3, 6),
    "center_input_sample": (False,),
    "time_embedding_type": ("positional",),
    "mid_block_type": ("UNetMidBlock2D",),
    "mid_block_scale_factor": (1,),
    "downsample_padding": (0, 1),
    "act_fn": ("silu", "swish"),
    "resnet_time_scale_shift": ("default", "scale_shift"),
    "add_attention": (True,),
    "class_embed_type": (None,),
    "num_class_embeds": (None,),
}
NOISE = {"beta_schedule": "linear", "prediction_type": "epsilon", "trained_betas": None}


def matches(content: Content) -> bool:
    """The first convolution's name, or the class that config.json states."""
    named = content.config is not None and content.config.get("_class_name") == MODEL
    return named or (
        is_flat(content.tree) and SIGN in content.tree and "conv_norm_out.weight" in content.tree
    )


def parts(content: Content, assumed: Assumed) -> Parts:
    """The U-Net, under guided diffusion's names.

    Raises:
        WeightsError: no config.json, or one that asks for what our U-Net has not.
    """
    beside = content.file.with_name("config.json")
    stated = content.config if content.config is not None else read_json(beside) if beside.is_file() else None
    if stated is None:
        raise WeightsError(
            "is of diffusers, whose architecture is in config.json: give the folder that holds both"
        )
    config = config_from(stated)
    demand_plausible(config, len(content.tree))
    for name, value in assumed.given().items():
        if name == "dropout":
            config = UNetConfig(**{**vars(config), "dropout": value})
        elif getattr(config, name) != value:
            raise WeightsError(
                f"its config.json means {name} = {getattr(config, name)}, {value} is asked for"
            )
    state = sound(modern(canonical(flat(content.tree, "the file"))), content.file.stat().st_size)
    return Parts(
        content.path,
        content.file,
        NAME,
        unet=from_diffusers(state, config),
        config=config,
        contract=_contract(stated, content.scheduler),
    )


def config_from(stated: Mapping[str, Any]) -> UNetConfig:
    """Our architecture for a config.json.

    Raises:
        WeightsError: it asks for what our U-Net has not.
    """
    c = DEFAULTS | {key: value for key, value in stated.items() if key in DEFAULTS}
    for key, allowed in ONLY.items():
        if c[key] not in allowed:
            raise WeightsError(f"its config.json has {key} = {c[key]!r}; the U-Net here has {allowed[0]!r}")
    widths, down = c["block_out_channels"], c["down_block_types"]
    attention = tuple(2**i for i, kind in enumerate(down) if "Attn" in kind)
    up = tuple(2 ** (len(down) - 1 - i) for i, kind in enumerate(c["up_block_types"]) if "Attn" in kind)
    if len(down) != len(widths) or attention != up[::-1]:
        raise WeightsError("its config.json has other blocks on the way up than on the way down")
    if any(width % widths[0] for width in widths):
        raise WeightsError(f"its widths {list(widths)} are no multiples of the first")
    groups, attended = c["norm_num_groups"], c["attn_norm_num_groups"]
    scales = c["resnet_time_scale_shift"] == "scale_shift"
    if (attended or (None if scales else groups)) != groups:
        raise WeightsError("its middle attention has another norm than its blocks (attn_norm_num_groups)")
    head = c["attention_head_dim"]
    embedding = c["time_embedding_dim"]
    return UNetConfig(
        base_channels=widths[0],
        channel_mult=tuple(width // widths[0] for width in widths),
        blocks=c["layers_per_block"],
        attention=attention,
        heads=1,
        head_channels=-1 if head is None else head,
        new_attention_order=head is not None,
        dropout=c["dropout"],
        learn_sigma=c["out_channels"] == 6,
        embedding=None if embedding in (None, 4 * widths[0]) else embedding,
        time="scale_shift" if scales else "add",
        resampling=_resampling(c, down[:-1], c["up_block_types"][:-1]),
        padding=c["downsample_padding"],
        groups=groups,
        eps=c["norm_eps"],
        frequency_shift=c["freq_shift"],
        sines_first=not c["flip_sin_to_cos"],
    )


def _resampling(c: Mapping[str, Any], down: list[str], up: list[str]) -> str:
    """How all levels resample.

    Raises:
        WeightsError: not all alike, or in another way than convolutions and residual blocks.
    """

    def of(kind: str, attended: str) -> str:
        if kind in ("DownBlock2D", "UpBlock2D"):
            return "conv"
        if kind in ("ResnetDownsampleBlock2D", "ResnetUpsampleBlock2D"):
            return "resnet"
        return c[attended] if kind in ("AttnDownBlock2D", "AttnUpBlock2D") else kind

    found = {of(kind, "downsample_type") for kind in down} | {of(kind, "upsample_type") for kind in up}
    if len(found) > 1 or not found <= {"conv", "resnet"}:
        raise WeightsError(f"its config.json mixes or names other ways to resample: {sorted(found)}")
    return "block" if found == {"resnet"} else "conv"


def _contract(stated: Mapping[str, Any], scheduler: Mapping[str, Any] | None) -> ImageContract:
    """Resolution and, where the folder has it, the schedule.

    Raises:
        WeightsError: the schedule is not linear, or the model predicts something other than the noise.
    """
    size = stated.get("sample_size")
    px = size if isinstance(size, int) else None
    if scheduler is None:
        return ImageContract(px=px)
    for key, value in NOISE.items():
        if scheduler.get(key, value) != value:
            raise WeightsError(f"its scheduler has {key} = {scheduler[key]!r}; here it is {value!r}")
    names = ("num_train_timesteps", "beta_start", "beta_end")
    steps, start, end = (scheduler.get(name) for name in names)
    return ImageContract(px=px, steps=steps, beta_start=start, beta_end=end)


def config_to(config: UNetConfig, px: int | None) -> dict[str, Any]:
    """config.json for one of our architectures.

    Raises:
        WeightsError: diffusers cannot express it: group norms of different sizes, or a fixed number of heads
            over different widths.
    """
    widths = config.widths()
    down = [_down_type(config, level, level + 1 < len(widths)) for level in range(len(widths))]
    up = [
        _down_type(config, level, level > 0).replace("Downsample", "Upsample").replace("Down", "Up")
        for level in reversed(range(len(widths)))
    ]
    kind = "conv" if config.resampling == "conv" else "resnet"
    groups = _groups(config)
    return {
        "_class_name": MODEL,
        "sample_size": px,
        "in_channels": 3,
        "out_channels": 6 if config.learn_sigma else 3,
        "time_embedding_type": "positional",
        "time_embedding_dim": config.embedding,
        "freq_shift": config.frequency_shift,
        "flip_sin_to_cos": not config.sines_first,
        "block_out_channels": widths,
        "down_block_types": down,
        "up_block_types": up,
        "layers_per_block": config.blocks,
        "downsample_padding": config.padding,
        "downsample_type": kind,
        "upsample_type": kind,
        "dropout": config.dropout,
        "attention_head_dim": _head_width(config),
        "norm_num_groups": groups,
        "attn_norm_num_groups": groups,
        "norm_eps": config.eps,
        "resnet_time_scale_shift": "scale_shift" if config.time == "scale_shift" else "default",
    }


def _down_type(config: UNetConfig, level: int, resamples: bool) -> str:
    if 2**level in config.attention:
        return "AttnDownBlock2D"
    return "ResnetDownsampleBlock2D" if config.resampling == "block" and resamples else "DownBlock2D"


def _head_width(config: UNetConfig) -> int | None:
    attended = {w for i, w in enumerate(config.widths()) if 2**i in config.attention} | {config.widths()[-1]}
    found = {width // head_count(width, config.heads, config.head_channels) for width in attended}
    if config.head_channels <= 0 and config.heads == 1:
        return None
    if len(found) > 1:
        raise WeightsError(
            f"diffusers fixes the width of a head; {config.heads} heads over widths {sorted(attended)} differ"
        )
    return found.pop()


def _groups(config: UNetConfig) -> int:
    with torch.device("meta"):
        unet = UNet(config)
    found = {module.num_groups for module in unet.modules() if isinstance(module, torch.nn.GroupNorm)}
    if len(found) > 1:
        raise WeightsError(
            f"diffusers has one number of groups for all norms; this model has {sorted(found)}"
        )
    return found.pop()
