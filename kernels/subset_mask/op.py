"""The subset mask as an operation: chosen backend, checked arguments, its own backward."""

from __future__ import annotations

import torch
from torch import Tensor

from kernels import tensors
from kernels.backend import use_triton
from kernels.subset_mask import ref
from kernels.tensors import require, require_batch, require_together

NAME = "subset_mask"
MODES = ("hierarchical", "sequential")
LARGEST_BLOCK = 1024


def subset_mask(
    z: Tensor, k: Tensor, subset_of: Tensor, mode: str = "hierarchical", detach: bool = False
) -> Tensor:
    """Keep the subsets of z that step k may see. Equivalent PyTorch:
    ``torch.where(subset_of <= k[:, None], z, 0)``.

    Args:
        z: (B, d) feature of any float dtype, contiguous.
        k: (B,) int64 in 1..n, subset in training.
        subset_of: (d,) int64 in 1..n, the subset of every dimension.
        mode: "hierarchical" keeps subsets 1..k; "sequential" keeps subset k alone.
        detach: gradient flows into subset k only (thesis section 4.3.2).

    Returns:
        z_bar (B, d), dtype of z; masked entries are exactly 0 whatever z holds there, and so are their
        gradients.

    Raises:
        ValueError: shape, dtype, strides or device are none of these.
    """
    require(mode in MODES, NAME, f"mode must be 'hierarchical' or 'sequential', got {mode!r}")
    is_feature = z.dim() == 2 and z.is_floating_point() and z.is_contiguous()
    require(
        is_feature,
        NAME,
        f"z must be (B, d), float and contiguous, got {tuple(z.shape)} {z.dtype} {z.stride()}",
    )
    require_batch(NAME, z.shape[0], k=k)
    require_batch(NAME, z.shape[1], subset_of=subset_of)
    require_together(NAME, z.device, k=k, subset_of=subset_of)
    if not use_triton(z):
        return ref.subset_mask(z, k, subset_of, mode, detach)
    return _subset_mask(z, k, subset_of, mode, detach)


def launch_shape(dim: int) -> tuple[int, int]:
    """Block and warps for rows of ``dim`` elements: 8 elements a thread."""
    block = min(LARGEST_BLOCK, tensors.power_of_two(dim))
    return block, max(1, block // 256)


@torch.library.custom_op("diffsiam::subset_mask", mutates_args=())
def _subset_mask(z: Tensor, k: Tensor, subset_of: Tensor, mode: str, detach: bool) -> Tensor:
    from kernels.subset_mask.kernel import _subset_mask_kernel

    batch, dim = z.shape
    out = tensors.new((batch, dim), z.dtype, z.device)
    block, warps = launch_shape(dim)
    blocks = -(-dim // block)
    own = mode == "sequential"
    with tensors.launching_on(z):
        _subset_mask_kernel[(batch * blocks,)](
            z, k, subset_of, out, dim, blocks, OWN=own, BLOCK=block, num_warps=warps
        )
    return out


@_subset_mask.register_fake
def _(z, k, subset_of, mode, detach):
    return torch.empty_like(z)


def _keep_for_backward(ctx, inputs, output):
    _, k, subset_of, mode, detach = inputs
    ctx.save_for_backward(k, subset_of)
    ctx.mode, ctx.detach = "sequential" if detach else mode, detach


def _backward(ctx, gradient):
    """The gradient is the upstream one under the same mask, or under subset k's alone where the others are
    detached."""
    k, subset_of = ctx.saved_tensors
    masked = _subset_mask(gradient.contiguous(), k, subset_of, ctx.mode, ctx.detach)
    return masked, None, None, None, None


_subset_mask.register_autograd(_backward, setup_context=_keep_for_backward)
