"""The architecture of a network from its tensors, and from JSON."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

from torch import Tensor

from diffsiam.encoder import RESNETS, EncoderConfig, PDAEEncoder
from diffsiam.unet import UNetConfig
from diffsiam.weights.errors import WeightsError, first_line

State = Mapping[str, Tensor]


@dataclass(frozen=True)
class Assumed:
    """What the tensors of a U-Net cannot tell; None: what the file says, or else the default.

    Attributes:
        heads: attention heads (1).
        head_channels: width of a head, which overrules ``heads`` (guided diffusion's 256-px models: 64).
        new_attention_order: see :class:`~diffsiam.attention.AttentionBlock` (false).
        dropout: while the U-Net itself is trained (0).
    """

    heads: int | None = None
    head_channels: int | None = None
    new_attention_order: bool | None = None
    dropout: float | None = None

    def given(self) -> dict[str, Any]:
        """Those that are not None."""
        return {key: value for key, value in asdict(self).items() if value is not None}


NOTHING_ASSUMED = Assumed()


def infer_config(state: State, heads: int = 1, dropout: float = 0.0, **more: Any) -> UNetConfig:
    """The architecture of a U-Net with guided diffusion's keys.

    ``heads``, ``dropout``, ``head_channels`` and ``new_attention_order`` leave no trace and are arguments.
    Scale-shift or added time, and resampling by blocks or by convolutions, are found in the tensors.

    Raises:
        WeightsError: the keys are not those of such a U-Net, or it is conditioned on classes.
    """
    if "label_emb.weight" in state and "label_emb.bias" not in state:
        raise WeightsError("is conditioned on classes (label_emb); the frozen model must be unconditional")
    try:
        return _infer(state, heads, dropout, more)
    except (KeyError, StopIteration, ValueError, ZeroDivisionError) as error:
        raise WeightsError(f"not a guided-diffusion U-Net: {first_line(error)}") from error


def _infer(state: State, heads: int, dropout: float, more: dict[str, Any]) -> UNetConfig:
    embedding, base = state["time_embed.0.weight"].shape
    inputs, outputs = (_blocks(state, name) for name in ("input_blocks", "output_blocks"))
    if inputs != outputs:
        raise WeightsError(f"not a guided-diffusion U-Net: {inputs} input blocks, {outputs} output blocks")
    blocks = next(i for i in range(outputs) if _upsamples(state, i))
    levels = outputs // (blocks + 1)
    mult, attention = [], []
    for level in range(levels):
        first = 1 + level * (blocks + 1)
        width = state[f"input_blocks.{first}.0.out_layers.3.weight"].shape[0]
        if width % base:
            raise WeightsError(f"not a guided-diffusion U-Net: {width} channels are no multiple of {base}")
        mult.append(width // base)
        if f"input_blocks.{first}.1.qkv.weight" in state:
            attention.append(2**level)
    scales = state["input_blocks.1.0.emb_layers.1.weight"].shape[0] == 2 * base * mult[0]
    convolutions = any(f"input_blocks.{i}.0.op.weight" in state for i in range(inputs))
    return UNetConfig(
        base_channels=base,
        channel_mult=tuple(mult),
        blocks=blocks,
        attention=tuple(attention),
        heads=heads,
        dropout=dropout,
        learn_sigma=state["out.2.weight"].shape[0] == 6,
        embedding=None if embedding == 4 * base else embedding,
        time="scale_shift" if scales else "add",
        resampling="conv" if convolutions else "block",
        **more,
    )


def _blocks(state: State, name: str) -> int:
    """How many blocks there are; a number beyond the count of keys is nonsense and would take for ever."""
    count = 1 + max(int(m[1]) for key in state if (m := re.match(rf"{name}\.(\d{{1,6}})\.", key)))
    if count > len(state):
        raise ValueError(f"{name}.{count - 1} in a file of {len(state)} keys")
    return count


def _upsamples(state: State, block: int) -> bool:
    return any(
        f"output_blocks.{block}.{place}.{layer}.weight" in state
        for place in (1, 2)
        for layer in ("in_layers.0", "conv")
    )


def infer_encoder(state: State) -> EncoderConfig:
    """Which encoder a bare state dict is of: PDAE's at 64 or 128 px, or a ResNet with either stem.

    Raises:
        WeightsError: none of these.
    """
    if "conv1.weight" not in state:
        return _infer_pdae_encoder(state)
    width, _, kernel, _ = state["conv1.weight"].shape
    depths = tuple(
        len({key.split(".")[1] for key in state if key.startswith(f"layer{i}.")}) for i in range(1, 5)
    )
    kind = "bottleneck" if "layer1.0.conv3.weight" in state else "basic"
    arch = next((name for name, shape in RESNETS.items() if shape == (kind, depths)), None)
    if arch is None or kernel not in (3, 7):
        raise WeightsError(f"no encoder known here: {kind} blocks {depths}, a {kernel}x{kernel} stem")
    pooled = width * (32 if kind == "bottleneck" else 8)
    dim = state["fc.weight"].shape[0] if "fc.weight" in state else pooled
    stem, norm = "cifar" if kernel == 3 else "imagenet", _norm_after("norm", state)
    return EncoderConfig(arch, None, width, dim, stem, norm)


def _norm_after(name: str, state: State) -> str:
    """``encoder.norm`` of an encoder whose last module is called ``name``."""
    return "batch" if f"{name}.running_mean" in state else "none"


def _infer_pdae_encoder(state: State) -> EncoderConfig:
    for px, last in ((64, 14), (128, 17)):
        if (linear := state.get(f"{last}.weight")) is not None and linear.dim() == 2:
            width, norm = PDAEEncoder.WIDTHS[px][0], _norm_after(str(last + 1), state)
            return EncoderConfig("pdae", px, width, linear.shape[0], norm=norm)
    raise WeightsError(f"no encoder known here: its first key is {next(iter(state), None)}")


def demand_plausible(config: UNetConfig, tensors: int) -> None:
    """Refuse a stated architecture of more blocks than there are tensors before anything counts up to them.

    Raises:
        WeightsError: it is one.
    """
    if len(config.channel_mult) * config.blocks > tensors:
        raise WeightsError(f"has {tensors} tensors, fewer than its stated architecture has blocks")


def unet_to_dict(config: UNetConfig) -> dict[str, Any]:
    """A U-Net's architecture for JSON."""
    return asdict(config)


def unet_from_dict(values: Mapping[str, Any]) -> UNetConfig:
    """What :func:`unet_to_dict` gave, perhaps through JSON.

    Raises:
        WeightsError: it is something else.
    """
    known = {field.name for field in fields(UNetConfig)}
    if unknown := [key for key in values if key not in known]:
        raise WeightsError(f"an architecture has no {unknown[0]!r}: written by a newer version?")
    given: dict[str, Any] = {key: tuple(v) if isinstance(v, list) else v for key, v in values.items()}
    try:
        return UNetConfig(**given)
    except (TypeError, ValueError) as error:
        raise WeightsError(f"no architecture: {first_line(error)}") from error
