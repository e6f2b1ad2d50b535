"""Philox-4x32-10 (Salmon et al., SC 2011): every random number of the engine as a pure function of its name.

A number is named by (seed, position, stream, element): the 64-bit seed is the key, and the 128-bit counter
holds

    c0 = element // 4   c1, c2 = position of the sample in the global stream (low, high 32 bits)   c3 = stream

so neither rank, batch split, worker count, block size nor wall clock can enter. Torch and NumPy give the same
bits; 32-bit words live in int64, whose products wrap modulo 2^64 and so keep the low 32 bits exact.

Uniforms and normals follow the conventions of Triton's ``tl.rand`` and ``tl.randn4x`` (Box-Muller on words 0,
1 and 2, 3, first uniform clamped at 1e-7, hence |normal| <= 5.68), so that a kernel drawing in registers can
be held against this file.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

from kernels.backend import use_cpu_path

STREAM_NOISE, STREAM_T, STREAM_K, STREAM_FLIP, STREAM_VIEW_1, STREAM_VIEW_2, STREAM_ORDER, STREAM_EVAL = (
    range(8)
)

ROUNDS = 10
M0, M1 = 0xD2511F53, 0xCD9E8D57
W0, W1 = 0x9E3779B9, 0xBB67AE85
MASK = 0xFFFFFFFF
UNIFORM_SCALE = 4.6566127342e-10  # just under 2^-31: the largest word maps to a float below 1
SMALLEST_UNIFORM = 1.0e-7


def _rounds(c0, c1, c2, c3, k0, k1):
    """The ten rounds, on int64 tensors or uint64 arrays that hold 32-bit words."""
    for _ in range(ROUNDS):
        low0, high0 = _multiply(c0, M0)
        low1, high1 = _multiply(c2, M1)
        c0, c1, c2, c3 = high1 ^ c1 ^ k0, low1, high0 ^ c3 ^ k1, low0
        k0, k1 = (k0 + W0) & MASK, (k1 + W1) & MASK
    return c0, c1, c2, c3


def _multiply(a, b: int):
    """(low, high) 32-bit halves of a 32 x 32 bit product, without leaving the positive half of int64."""
    low_part = a * (b & 0xFFFF)  # < 2^48
    high_part = a * (b >> 16) + (low_part >> 16)  # < 2^49
    return ((high_part & 0xFFFF) << 16) | (low_part & 0xFFFF), high_part >> 16


def philox4x32(counter: Tensor, key: tuple[int, int]) -> Tensor:
    """Philox-4x32-10 of ``counter`` (..., 4) int64 holding 32-bit words; returns the same shape and range."""
    c0, c1, c2, c3 = counter.unbind(-1)
    return torch.stack(_rounds(c0, c1, c2, c3, *key), dim=-1)


# In [0, 2^64), or its 64 bits as a 0-d int64 tensor: numbers in a captured graph would be frozen.
Seed = int | Tensor


def seed_key(seed: Seed) -> tuple[Seed, Seed]:
    """The key (low, high 32 bits) of a seed."""
    return seed & MASK, (seed >> 32) & MASK


def seed_tensor(seed: Seed, device: torch.device) -> Tensor:
    """The 64-bit seed as 0-d int64 on ``device``, where a kernel or a captured graph reads it; seeds beyond
    2^63 wrap."""
    if isinstance(seed, Tensor):
        if seed.dtype != torch.int64 or seed.dim() != 0:
            raise ValueError(
                f"seed must be an int or a 0-d int64 tensor, got {tuple(seed.shape)} {seed.dtype}"
            )
        return seed
    low, high = seed & MASK, (seed >> 32) & MASK
    signed = low | (high << 32) if high < 1 << 31 else (low | (high << 32)) - (1 << 64)
    return torch.full((), signed, dtype=torch.int64, device=device)


def words(seed: Seed, positions: Tensor, count: int, stream: int) -> Tensor:
    """``count`` 32-bit words of each position (B,) int64: (B, 4 * ceil(count / 4)) int64."""
    quads = (count + 3) // 4
    if use_cpu_path(positions, positions.dtype == torch.int64):
        from kernels import philox_cpu  # brings Numba along

        return philox_cpu.words(positions, seed_tensor(seed, positions.device), quads, stream)
    c0 = torch.arange(quads, dtype=torch.int64, device=positions.device).expand(len(positions), quads)
    c1 = (positions & MASK)[:, None].expand_as(c0)
    c2 = (positions >> 32 & MASK)[:, None].expand_as(c0)
    out = _rounds(c0, c1, c2, torch.full_like(c0, stream), *seed_key(seed))
    return torch.stack(out, dim=-1).flatten(1)


def _to_uniform(word: Tensor) -> Tensor:
    signed = torch.where(word > 0x7FFFFFFF, word - (1 << 32), word)
    return torch.where(signed < 0, -signed - 1, signed).to(torch.float32) * UNIFORM_SCALE


def uniform(seed: Seed, positions: Tensor, count: int, stream: int) -> Tensor:
    """Uniform float32 in [0, 1), (B, count), for positions (B,) int64."""
    return _to_uniform(words(seed, positions, count, stream))[:, :count]


def normal(seed: Seed, positions: Tensor, count: int, stream: int) -> Tensor:
    """Standard normal float32, (B, count), for positions (B,) int64: Box-Muller, cosine then sine."""
    u = _to_uniform(words(seed, positions, count, stream))
    u_1, u_2 = u[:, 0::2].clamp_min(SMALLEST_UNIFORM), u[:, 1::2]
    radius, angle = torch.sqrt(-2.0 * torch.log(u_1)), (2.0 * math.pi) * u_2
    return torch.stack((radius * torch.cos(angle), radius * torch.sin(angle)), dim=-1).flatten(1)[:, :count]


def randint(seed: Seed, positions: Tensor, high: int, stream: int) -> Tensor:
    """Uniform int64 in [0, high), (B,): the high half of word x high, whose bias is below high / 2^32."""
    return words(seed, positions, 1, stream)[:, 0] * high >> 32


def uniform_np(seed: int, positions: np.ndarray, count: int, stream: int) -> np.ndarray:
    """NumPy twin of :func:`uniform`, bit for bit: (B, count) float32 for positions (B,) int64."""
    quads = (count + 3) // 4
    p = positions.astype(np.int64)[:, None]
    c0 = np.broadcast_to(np.arange(quads, dtype=np.int64), (len(p), quads))
    c1, c2 = np.broadcast_to(p & MASK, c0.shape), np.broadcast_to(p >> 32 & MASK, c0.shape)
    out = _rounds(c0, c1, c2, np.full_like(c0, stream), *seed_key(seed))
    word = np.stack(out, axis=-1).reshape(len(p), 4 * quads)[:, :count]
    signed = np.where(word > 0x7FFFFFFF, word - (1 << 32), word)
    return np.where(signed < 0, -signed - 1, signed).astype(np.float32) * np.float32(UNIFORM_SCALE)
