"""Philox words on a CPU, in a loop that Numba compiles at its first use and then keeps on disk.

Bit for bit those of :mod:`kernels.philox`, which takes some two hundred passes over 64-bit integers for them.
"""

from __future__ import annotations

import torch
from numba import njit
from numpy import uint64
from torch import Tensor

from kernels.philox import M0, M1, MASK, ROUNDS, W0, W1

HALF = uint64(32)
LOW = uint64(MASK)

# An operation of its own, so that whoever counts operations or runs them without data sees it.
_library = torch.library.Library("diffsiam", "FRAGMENT")
_library.define("philox_words_cpu(Tensor positions, Tensor seed, int quads, int stream) -> Tensor")


def words(positions: Tensor, seed: Tensor, quads: int, stream: int) -> Tensor:
    """As :func:`kernels.philox.words`, for ``seed`` 0-d int64: (B, 4 quads) int64."""
    return torch.ops.diffsiam.philox_words_cpu(positions, seed, quads, stream)


def _words(positions: Tensor, seed: Tensor, quads: int, stream: int) -> Tensor:
    out, bits = _words_fake(positions, seed, quads, stream), int(seed)
    _fill(positions.contiguous().numpy(), bits & MASK, (bits >> 32) & MASK, stream, out.numpy())
    return out


def _words_fake(positions: Tensor, seed: Tensor, quads: int, stream: int) -> Tensor:
    return torch.empty(len(positions), 4 * quads, dtype=torch.int64, device=positions.device)


_library.impl("philox_words_cpu", _words, "CPU")
torch.library.register_fake("diffsiam::philox_words_cpu", _words_fake, lib=_library)


def _loop(positions, key_0, key_1, stream, out):
    for sample in range(len(positions)):
        position = uint64(positions[sample])
        for quad in range(out.shape[1] // 4):
            c0, c1, c2, c3 = uint64(quad), position & LOW, position >> HALF, uint64(stream)
            k0, k1 = uint64(key_0), uint64(key_1)
            for _ in range(ROUNDS):
                product_0, product_1 = c0 * uint64(M0), c2 * uint64(M1)  # of 32-bit words: below 2^64
                c0, c2 = (product_1 >> HALF) ^ c1 ^ k0, (product_0 >> HALF) ^ c3 ^ k1
                c1, c3 = product_1 & LOW, product_0 & LOW
                k0, k1 = (k0 + uint64(W0)) & LOW, (k1 + uint64(W1)) & LOW
            out[sample, 4 * quad] = c0
            out[sample, 4 * quad + 1] = c1
            out[sample, 4 * quad + 2] = c2
            out[sample, 4 * quad + 3] = c3


try:
    _fill = njit(cache=True, nogil=True)(_loop)
except RuntimeError:  # Numba finds no folder to write to
    _fill = njit(nogil=True)(_loop)
