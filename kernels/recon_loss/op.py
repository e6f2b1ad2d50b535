"""The reconstruction loss as an operation: chosen backend, checked arguments, gradient made forward."""

from __future__ import annotations

import torch
from torch import Tensor

from kernels import tensors
from kernels.backend import use_triton
from kernels.philox import STREAM_NOISE, Seed, seed_tensor
from kernels.recon_loss import ref
from kernels.recon_loss.ref import ReconLoss
from kernels.tensors import IMAGE_DTYPES, require, require_batch, require_dense, require_together

NAME = "recon_loss"
BLOCK = 1024  # 8 elements a thread: predictions come in one 128-bit load, and nothing spills
WARPS = 4
SUM_BLOCK = 32


def recon_loss(
    x_0: Tensor,
    eps_theta: Tensor,
    g: Tensor,
    level: Tensor,
    time: Tensor,
    alpha_bar: Tensor,
    shift: Tensor,
    weight: Tensor,
    seed: Seed,
    positions: Tensor,
    eps: Tensor | None = None,
) -> ReconLoss:
    """Eq. 3.11 per sample, with the frozen model's own loss and both x_0 errors. Equivalent PyTorch:
    :func:`kernels.recon_loss.ref.recon_loss`.

    The kernel draws the noise again from its counters and writes d loss / d g in the same pass, so that
    backward only scales it.

    Args:
        x_0: uint8 (B, H, W, C), contiguous; or float (B, C, H, W) in [-1, 1], contiguous or channels_last.
        eps_theta: frozen prediction (B, C, H, W) of any layout with evenly spaced pixels (so also the first
            channels of more).
        g: decoder's estimate (B, C, H, W), contiguous or channels_last; float64 computes in float64.
        level, time: (B,) int64 in 0..T-1, noise level of the image and time told to the networks.
        alpha_bar, shift, weight: (T,) float32 or float64 tables of abar, s_t and lambda_t.
        seed, positions: names of the noise that the image carries, see :mod:`kernels.philox`.
        eps: that noise, where it is in memory already; only the reference reads it.

    Raises:
        ValueError: shape, dtype, strides or device are none of these.
    """
    _check(x_0, eps_theta, g)
    require_batch(NAME, len(g), level=level, time=time, positions=positions)
    for name, table in (("alpha_bar", alpha_bar), ("shift", shift), ("weight", weight)):
        is_table = (
            table.dim() == 1 and table.is_contiguous() and table.dtype in (torch.float32, torch.float64)
        )
        require(
            is_table, NAME, f"{name} must be (T,) float32 or float64, got {tuple(table.shape)} {table.dtype}"
        )
    seed = seed_tensor(seed, g.device)
    require_together(
        NAME, g.device, x_0=x_0, eps_theta=eps_theta, level=level, time=time, positions=positions, seed=seed
    )
    require_together(NAME, g.device, alpha_bar=alpha_bar, shift=shift, weight=weight)
    if not use_triton(g):
        return ref.recon_loss(x_0, eps_theta, g, level, time, alpha_bar, shift, weight, seed, positions, eps)
    with_gradient = g.requires_grad and torch.is_grad_enabled()
    images = (x_0.detach(), eps_theta.detach(), g)
    out = _recon_loss(*images, level, time, alpha_bar, shift, weight, seed, positions, with_gradient)
    return ReconLoss(out[0], *(value.detach() for value in out[1:4]))


def _check(x_0: Tensor, eps_theta: Tensor, g: Tensor) -> None:
    require(g.dim() == 4, NAME, f"g must be (B, C, H, W), got {tuple(g.shape)}")
    batch, channels, height, width = g.shape
    require(eps_theta.shape == g.shape, NAME, f"eps_theta is {tuple(eps_theta.shape)}, g is {tuple(g.shape)}")
    bytes_shape = (batch, height, width, channels)
    expected = bytes_shape if x_0.dtype == torch.uint8 else tuple(g.shape)
    require(
        tuple(x_0.shape) == expected,
        NAME,
        f"x_0 must be {expected} for g {tuple(g.shape)}, got {tuple(x_0.shape)}",
    )
    for name, image in (("x_0", x_0), ("eps_theta", eps_theta), ("g", g)):
        known = image.dtype in IMAGE_DTYPES or (name == "x_0" and image.dtype == torch.uint8)
        require(known, NAME, f"{name} must be float32, bfloat16 or float64, got {image.dtype}")
    if x_0.dtype == torch.uint8:
        require(
            x_0.is_contiguous(),
            NAME,
            f"uint8 x_0 must be contiguous (B, H, W, C), got strides {x_0.stride()}",
        )
    else:
        require_dense(NAME, "x_0", x_0)
    require_dense(NAME, "g", g)
    even = height == 1 or width == 1 or eps_theta.stride(2) == width * eps_theta.stride(3)
    require(even, NAME, f"eps_theta must have evenly spaced pixels, got strides {eps_theta.stride()}")


@torch.library.custom_op("diffsiam::recon_loss", mutates_args=())
def _recon_loss(
    x_0: Tensor,
    eps_theta: Tensor,
    g: Tensor,
    level: Tensor,
    time: Tensor,
    alpha_bar: Tensor,
    shift: Tensor,
    weight: Tensor,
    seed: Tensor,
    positions: Tensor,
    with_gradient: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """The four values of :class:`ReconLoss`, and d loss / d g (empty without ``with_gradient``)."""
    import triton.language as tl

    from kernels.recon_loss.kernel import _recon_loss_kernel, _recon_loss_sum_kernel

    batch, channels, height, width = g.shape
    packed = tensors.is_channels_last(g)
    gradient = tensors.new(
        tuple(g.shape) if with_gradient else (0,), g.dtype, g.device, packed and with_gradient
    )
    accumulator = _accumulator(g)
    n = channels * height * width
    blocks = -(-n // BLOCK)
    partial = tensors.new((batch, blocks, 2), accumulator, g.device)
    loss, frozen, x_0_error, x_0_error_frozen = (
        tensors.new((batch,), accumulator, g.device) for _ in range(4)
    )
    acc = tl.float64 if accumulator == torch.float64 else tl.float32
    pixel_stride = eps_theta.stride(3) if width > 1 else eps_theta.stride(2)
    with tensors.launching_on(g):
        _recon_loss_kernel[(batch * blocks,)](
            x_0, eps_theta, g, gradient, partial, level, time, alpha_bar, shift, weight, seed, positions,
            n, height * width, blocks, eps_theta.stride(0), eps_theta.stride(1), pixel_stride,
            CHANNELS=channels, FROM_BYTES=x_0.dtype == torch.uint8,
            X_PACKED=x_0.dtype == torch.uint8 or tensors.is_channels_last(x_0),
            EPS_THETA_PACKED=tensors.is_channels_last(eps_theta), G_PACKED=packed,
            WITH_GRADIENT=with_gradient, STREAM=STREAM_NOISE,
            BLOCK=BLOCK, ACC=acc, num_warps=WARPS, enable_fp_fusion=False,  # as the noise jump: the same bits
        )  # fmt: skip
        _recon_loss_sum_kernel[(batch,)](
            partial, loss, frozen, x_0_error, x_0_error_frozen, time, alpha_bar, weight, n, blocks,
            STEPS=-(-blocks // SUM_BLOCK), BLOCK=SUM_BLOCK, ACC=acc, num_warps=1, enable_fp_fusion=True,
        )  # fmt: skip
    return loss, frozen, x_0_error, x_0_error_frozen, gradient


def _accumulator(g: Tensor) -> torch.dtype:
    return torch.float64 if g.dtype == torch.float64 else torch.float32


@_recon_loss.register_fake
def _(x_0, eps_theta, g, level, time, alpha_bar, shift, weight, seed, positions, with_gradient):
    values = (g.new_empty(len(g), dtype=_accumulator(g)) for _ in range(4))
    layout = torch.channels_last if tensors.is_channels_last(g) else torch.contiguous_format
    gradient = torch.empty_like(g, memory_format=layout) if with_gradient else g.new_empty(0)
    return *values, gradient


def _keep_for_backward(ctx, inputs, output):
    ctx.save_for_backward(output[4])


def _backward(ctx, upstream, *_):
    (gradient,) = ctx.saved_tensors
    scaled = (gradient * upstream[:, None, None, None]).to(gradient.dtype)
    return None, None, scaled, *(None for _ in range(8))


_recon_loss.register_autograd(_backward, setup_context=_keep_for_backward)
