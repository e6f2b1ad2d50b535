"""Which part of a published set is asked for: by the names of its folders, shards and databases."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Literal

Split = Literal["train", "valid", "test", "all"]

ALIASES = {
    "train": ("train", "training"),
    "valid": ("val", "valid", "validation"),
    "test": ("test", "testing"),
}


def split_of(name: str) -> str | None:
    """The split that a name states with one of its words, as "val" in bedroom_val_lmdb, or None."""
    words = re.split(r"[^a-z]+", name.lower())
    return next((split for split, aliases in ALIASES.items() if any(a in words for a in aliases)), None)


def select(names: Iterable[str], split: Split) -> list[str]:
    """The names of ``split``, all of them if none states a split or ``split`` is "all"."""
    names = list(names)
    stated = {name: split_of(name) for name in names}
    if split == "all" or not any(stated.values()):
        return names
    return [name for name in names if stated[name] == split]
