"""How one step is computed: precision, attention, compilation and memory layout. The only place that decides
it.
"""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from diffsiam.attention import set_attention
from diffsiam.attention_routines import Attend, choose_attention
from diffsiam.convolution import pack
from diffsiam.unet import UNet
from engine.build import unet_config
from engine.config import Config
from engine.errors import UsageError
from kernels.backend import chosen, set_backend


@dataclass(frozen=True)
class Policy:
    """The choices of one run, each with its reason.

    Attributes:
        autocast: compute dtype of the trainable part, None for float32.
        frozen_dtype: dtype that the frozen U-Net's weights are kept in.
        compile: whether the networks are compiled.
        reasons: (what, "choice: reason") for the screen.
    """

    device: torch.device
    autocast: torch.dtype | None
    frozen_dtype: torch.dtype
    attend: Attend
    compile: bool
    reasons: tuple[tuple[str, str], ...]

    @property
    def packs(self) -> bool:
        """Whether large frozen weights are packed, where the processor has a use for that."""
        return self.device.type == "cpu" and self.autocast == torch.bfloat16

    def autocasting(self) -> torch.autocast:
        """The context in which the trainable part runs outside DeepSpeed's engine."""
        return torch.autocast(
            self.device.type, dtype=self.autocast or torch.bfloat16, enabled=self.autocast is not None
        )


def choose_policy(
    config: Config, device: torch.device, broadcast: Callable[[Tensor], Tensor] | None = None
) -> Policy:
    """Decide for this device.

    Args:
        broadcast: rank 0's tensor on every rank, where there are several: they must choose alike.

    Raises:
        UsageError: bf16 was asked for on a GPU that has none, or Triton or a routine of attention where it
            cannot run.
    """
    autocast, precision = _precision(config, device)
    dtype = autocast if autocast is not None and device.type == "cuda" else torch.float32
    attend, attention = _attention(config, device, autocast or torch.float32, broadcast)
    compiles = config.train.compile == "auto" and device.type == "cuda"
    if compiles:
        networks = "torch.compile"
    elif config.train.compile == "off":
        networks = "eager: train.compile=off"
    else:
        networks = "eager: on a CPU compiling costs a minute and gains nothing"
    rows = (
        ("precision", precision),
        ("attention", attention),
        ("kernels", _kernels(config, device)),
        ("networks", networks),
    )
    return Policy(device, autocast, dtype, attend, compiles, rows)


def is_of_compiling(error: BaseException) -> bool:
    """Whether an error is of torch's compiler, or of the processes in which it compiles."""
    modules = {kind.__module__ for kind in type(error).__mro__}
    return any(
        m.startswith(("torch._dynamo", "torch._inductor", "concurrent.futures.process")) for m in modules
    )


def _kernels(config: Config, device: torch.device) -> str:
    """Set the backend of all operations of this process and say which it is."""
    set_backend(config.kernels.backend)
    try:
        name, reason = chosen(device)
    except ValueError as error:
        raise UsageError(str(error)) from error
    return f"{name}: {reason}"


def _attention(
    config: Config,
    device: torch.device,
    dtype: torch.dtype,
    broadcast: Callable[[Tensor], Tensor] | None,
) -> tuple[Attend, str]:
    """The routine for the sizes of the model that the config states."""

    def agree(here: int) -> int:
        return here if broadcast is None else int(broadcast(torch.tensor(here, device=device)))

    try:
        shapes = sorted(set(unet_config(config).attentions(config.data.px)))
        return choose_attention(device, dtype, shapes, config.train.attention, agree)
    except ValueError as error:
        raise UsageError(str(error)) from error


def _precision(config: Config, device: torch.device) -> tuple[torch.dtype | None, str]:
    asked = config.train.precision
    if device.type == "cuda":
        if asked == "fp32":
            return None, "float32: train.precision=fp32"
        if not torch.cuda.is_bf16_supported(including_emulation=False):
            if asked == "bf16":
                raise UsageError("train.precision=bf16: this GPU has no bfloat16; use train.precision=fp32")
            return None, "float32: this GPU has no bfloat16"
        return torch.bfloat16, "bfloat16 autocast, float32 parameters and optimizer state"
    if asked == "bf16":
        return torch.bfloat16, "bfloat16 autocast, float32 parameters: train.precision=bf16"
    if asked == "auto" and _cpu_has_bf16():
        return torch.bfloat16, "bfloat16 autocast, float32 parameters: this CPU computes in bfloat16"
    return None, "float32: " + (
        "train.precision=fp32" if asked == "fp32" else "this CPU has no native bfloat16"
    )


def _cpu_has_bf16() -> bool:
    return bool(torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())


def prepare_frozen(unet: UNet, policy: Policy) -> UNet:
    """A copy of the frozen U-Net as it runs fastest: on the device, in its dtype, channels_last, compiled
    halves on CUDA. The original keeps its float32 weights, from which a decoder may start.
    """
    unet = deepcopy(unet).to(policy.device, policy.frozen_dtype).to(memory_format=torch.channels_last)
    set_attention(unet, policy.attend)
    if policy.packs:
        pack(unet)
    if policy.compile:
        unet.encode = torch.compile(unet.encode, dynamic=False)  # type: ignore[method-assign]
        unet.decode = torch.compile(unet.decode, dynamic=False)  # type: ignore[method-assign]
    return unet


def prepare_trainable(module: nn.Module, policy: Policy) -> nn.Module:
    """Attention and compilation of what is trained. Its weights keep their layout, which DeepSpeed's
    flattening needs.
    """
    # For fixed sizes: the encoder sees batches of x_0 and, twice as large, of both views. At the second size
    # torch would compile for any, and Inductor then leaves convolutions in the layout it finds.
    set_attention(module, policy.attend)
    if policy.compile:
        for part in (getattr(module, name, None) for name in ("encoder", "decoder", "unet")):
            if part is not None:
                part.compile(dynamic=False)
    return module
