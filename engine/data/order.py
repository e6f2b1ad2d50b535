"""Data order without state: which item a position of the endless stream shows, from (seed, position) alone.

Each epoch visits all ``count`` items in an order of its own, a keyed permutation of range(count) that is
evaluated one element at a time: a balanced Feistel network on the next even number of bits (Luby & Rackoff,
1988), walked along its cycle until it lands inside range(count) (Black & Rogaway, CT-RSA 2002). Nothing is
shuffled, stored or restored, so a run resumes, and ranks split a batch, by arithmetic.
"""

from __future__ import annotations

import numpy as np

ROUNDS = 8
MASK_64 = (1 << 64) - 1
GOLDEN, MIX_1, MIX_2 = 0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB


def locate(position: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
    """(epoch, place in the epoch) of stream positions, int64 arrays (or ints) of the same shape."""
    return position // count, position % count


def order(seed: int, epoch: int | np.ndarray, places: np.ndarray, count: int) -> np.ndarray:
    """Dataset indices at ``places`` of ``epoch``.

    Args:
        seed: any integer; taken modulo 2^64.
        epoch: one epoch, or one per place.
        places: (B,) int64 in [0, count).
        count: number of items, at least 1.

    Returns:
        (B,) int64 in [0, count). Over all places of one epoch it is a permutation of range(count).

    Raises:
        ValueError: ``count`` is below 1 or a place lies outside [0, count).
    """
    places = np.asarray(places, dtype=np.int64)
    if count < 1:
        raise ValueError(f"an order needs at least one item, got {count}")
    if places.size and (places.min() < 0 or places.max() >= count):
        raise ValueError(f"places must lie in [0, {count}), got {places.min()} to {places.max()}")
    half = max(1, ((count - 1).bit_length() + 1) // 2)
    keys = _round_keys(seed, np.broadcast_to(np.asarray(epoch, dtype=np.int64), places.shape))
    out = _feistel(places.astype(np.uint64), keys, half)
    # The domain is below 4 * count, so a walk takes fewer than four steps on average.
    while (outside := out >= count).any():
        out[outside] = _feistel(out[outside], keys[:, outside], half)
    return out.astype(np.int64)


def _mix(word: np.ndarray) -> np.ndarray:
    """The finaliser of SplitMix64 (Steele, Lea & Flood, OOPSLA 2014) on uint64, modulo 2^64."""
    word = (word ^ (word >> np.uint64(30))) * np.uint64(MIX_1)
    word = (word ^ (word >> np.uint64(27))) * np.uint64(MIX_2)
    return word ^ (word >> np.uint64(31))


def _round_keys(seed: int, epoch: np.ndarray) -> np.ndarray:
    """(ROUNDS, B) uint64: one key per round and element, a SplitMix64 stream started by (seed, epoch)."""
    start = _mix(np.array([(seed + GOLDEN) & MASK_64], dtype=np.uint64)) ^ _mix(epoch.astype(np.uint64))
    steps = np.arange(1, ROUNDS + 1, dtype=np.uint64)[:, None] * np.uint64(GOLDEN)
    return _mix(start + steps)


def _feistel(x: np.ndarray, keys: np.ndarray, half: int) -> np.ndarray:
    """A permutation of the 2 * half bit words ``x`` (B,) uint64 under ``keys`` (ROUNDS, B)."""
    shift, mask = np.uint64(half), np.uint64((1 << half) - 1)
    left, right = x >> shift, x & mask
    for key in keys:
        left, right = right, left ^ (_mix(right + key) & mask)
    return (left << shift) | right
