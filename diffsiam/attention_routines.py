"""The routines that compute attention, and the choice among them, which on CUDA is measured."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

Attend = Callable[[Tensor, Tensor, Tensor], Tensor]  # q, k, v (B, heads, tokens, channels) -> same
Shape = tuple[int, int, int]  # heads, tokens, channels of a head

BATCH = 16  # images that are measured with
ROUNDS = 7
CLEARLY = 0.9  # of the time of an earlier routine: measurements of two starts differ by less


def attend_sdpa(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """softmax(q k^T / sqrt(c)) v by torch's scaled_dot_product_attention, by whichever of its routines torch
    prefers.
    """
    return F.scaled_dot_product_attention(q, k, v)


def attend_xformers(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """The same by xformers' memory-efficient attention, whose layout is (B, tokens, heads, channels)."""
    from xformers.ops import memory_efficient_attention

    swapped = (x.transpose(1, 2).contiguous() for x in (q, k, v))
    return memory_efficient_attention(*swapped).transpose(1, 2)


def attend_products(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """The same as two matrix products with the (tokens, tokens) matrix in memory, which oneDNN computes in
    bfloat16 where torch's SDPA on a CPU does not: half the time at 256 tokens, and as long in float32.
    """
    weight = torch.matmul(q * q.shape[-1] ** -0.5, k.transpose(-1, -2)).softmax(-1)
    return torch.matmul(weight, v)


def attend_by(backend: SDPBackend) -> Attend:
    """torch's SDPA by this routine of its and no other.

    Raises (the function that is returned):
        RuntimeError: it does not take these tensors.
    """

    def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        with sdpa_kernel(backend):
            return F.scaled_dot_product_attention(q, k, v)

    return attend


# What a GPU chooses from: an earlier one unless a later one is clearly faster.
ROUTINES: Mapping[str, Attend] = {
    "xformers": attend_xformers,
    "flash": attend_by(SDPBackend.FLASH_ATTENTION),
    "cudnn": attend_by(SDPBackend.CUDNN_ATTENTION),
    "efficient": attend_by(SDPBackend.EFFICIENT_ATTENTION),
}


def choose_attention(
    device: torch.device,
    dtype: torch.dtype,
    shapes: Sequence[Shape] = ((1, 256, 512),),
    asked: str = "auto",
    agree: Callable[[int], int] = int,
) -> tuple[Attend, str]:
    """On CUDA whichever of :data:`ROUTINES` takes least time, forward and backward, for the attention of a
    model; on a CPU matrix products.

    Args:
        shapes: of every attention block of the model.
        asked: "auto"; a name of :data:`ROUTINES`; or "sdpa": torch's own choice.
        agree: gives rank 0's number on all ranks, so that all compute alike.

    Returns:
        the routine, and its name with the reason.

    Raises:
        ValueError: the one that was asked for does not run here.
    """
    if asked == "sdpa":
        return attend_sdpa, "torch SDPA: train.attention=sdpa"
    if device.type == "cpu" and asked == "auto":
        return attend_products, "matrix products (torch SDPA takes twice as long in bfloat16 on a CPU)"
    if device.type != "cuda":
        if asked != "auto":
            raise ValueError(f"train.attention={asked} is for CUDA, not {device.type}; use auto")
        return attend_sdpa, f"torch SDPA (xformers has no {device.type} operator)"
    routines = ROUTINES if asked == "auto" else {asked: ROUTINES[asked]}
    times, refusals = measure(routines, device, dtype, shapes)
    if asked != "auto":
        if refusals:
            raise ValueError(f"train.attention={asked} does not work here: {refusals[asked]}; use auto")
        return ROUTINES[asked], f"{asked}: train.attention={asked}"
    names = list(ROUTINES)
    chosen = agree(names.index(fastest(times)) if times else -1)
    if chosen < 0:
        refused = "; ".join(f"{name}: {why}" for name, why in refusals.items())
        return attend_sdpa, f"torch SDPA, as torch chooses ({refused})"
    return ROUTINES[names[chosen]], f"{names[chosen]} ({told(times, refusals)})"


def measure(
    routines: Mapping[str, Attend],
    device: torch.device,
    dtype: torch.dtype,
    shapes: Sequence[Shape],
    clock: Callable[[Attend, torch.device, torch.dtype, Shape], float] | None = None,
) -> tuple[dict[str, float], dict[str, str]]:
    """Microseconds of each routine over all ``shapes``, and why others do not take them."""
    times: dict[str, float] = {}
    refusals: dict[str, str] = {}
    for name, attend in routines.items():
        try:
            times[name] = sum((clock or microseconds)(attend, device, dtype, shape) for shape in shapes)
        except Exception as error:  # whatever an optional wheel raises is a reason to print, not to stop
            refusals[name] = (str(error).splitlines() or [type(error).__name__])[0][:80]
    return times, refusals


def microseconds(attend: Attend, device: torch.device, dtype: torch.dtype, shape: Shape) -> float:
    """Time of one call forward and backward on CUDA, median of several."""
    heads, tokens, channels = shape
    # Strides as a model has them: (B, tokens, 3, heads, channels) of one product.
    qkv = torch.randn(BATCH, tokens, 3, heads, channels, device=device, dtype=dtype, requires_grad=True)

    def call() -> None:
        out = attend(*(part.transpose(1, 2) for part in qkv.unbind(2)))
        out.backward(torch.ones_like(out))

    times = []
    for round_ in range(ROUNDS + 2):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        call()
        end.record()
        end.synchronize()
        if round_ >= 2:  # the first two choose algorithms and fill caches
            times.append(1e3 * start.elapsed_time(end))
    return statistics.median(times)


def fastest(times: Mapping[str, float]) -> str:
    """The first, unless a later one is clearly faster than it; then the fastest of those."""
    first, best = next(iter(times)), min(times, key=times.__getitem__)
    return best if times[best] < CLEARLY * times[first] else first


def told(times: Mapping[str, float], refusals: Mapping[str, str]) -> str:
    """What was measured, in words."""
    measured = [f"{name} {time:.0f}" for name, time in sorted(times.items(), key=lambda item: item[1])]
    return "measured, us: " + ", ".join(measured) + "".join(f"; {n}: {why}" for n, why in refusals.items())
