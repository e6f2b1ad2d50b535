"""PDAE's diffusion models: ``{"ema_denoise_fn"}``, self-trained ones with optimizer and step beside it."""

from __future__ import annotations

from diffsiam.weights.architecture import Assumed
from diffsiam.weights.files import Content
from diffsiam.weights.formats.guided_diffusion import of_pair
from diffsiam.weights.keys import average_of
from diffsiam.weights.parts import Parts

NAME = "pdae diffusion model"
ENTRY = "denoise_fn"


def matches(content: Content) -> bool:
    """The entry's name."""
    return f"ema_{ENTRY}" in content.tree or ENTRY in content.tree


def parts(content: Content, assumed: Assumed) -> Parts:
    """The average, which published results use, or the live weights of a file without one."""
    found = average_of(content.tree, ENTRY)
    assert found is not None, "the format was recognised by this entry"
    return of_pair(content, NAME, found[0], assumed, found[1])
