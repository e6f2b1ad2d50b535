"""The C library's allocator, told to keep what a step frees: the next step asks for the same sizes again."""

from __future__ import annotations

import ctypes

# glibc's malloc.h
M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_MAX = -1, -2, -4
GROW_BY = 64 << 20  # bytes that the heap grows by at once


def keep_freed_memory() -> bool:
    """Let freed memory stay with the process, and return whether the C library has such a switch (glibc).

    By default a large block is mapped when asked for and unmapped when freed, and the system clears every
    page of it again at its first touch: a twelfth of a training step on a CPU. Memory that was in use once
    then stays resident, so the process is as large as its largest moment.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError, TypeError):  # another C library, or another system
        return False
    settings = ((M_TRIM_THRESHOLD, -1), (M_TOP_PAD, GROW_BY), (M_MMAP_MAX, 0))
    return all([mallopt(which, value) == 1 for which, value in settings])
