"""One module a format, each with three names, and the registry that asks them in turn.

NAME        of the format
matches     whether a file's contents are of this format, by what they hold
parts       the networks in it, under our key names
"""

from __future__ import annotations

from typing import Protocol

from diffsiam.weights.architecture import Assumed
from diffsiam.weights.errors import WeightsError
from diffsiam.weights.files import Content
from diffsiam.weights.formats import (
    diffusers_unet,
    exported_model,
    guided_diffusion,
    lightning,
    native,
    pdae_model,
    pdae_pair,
    simsiam,
)
from diffsiam.weights.parts import Parts


class Format(Protocol):
    """What a module of this package is."""

    NAME: str

    def matches(self, content: Content) -> bool: ...
    def parts(self, content: Content, assumed: Assumed) -> Parts: ...


# In the order of asking: the most particular first.
FORMATS: tuple[Format, ...] = (
    native,
    exported_model,
    diffusers_unet,
    pdae_pair,
    pdae_model,
    simsiam,
    lightning,
    guided_diffusion,
)


def recognise(content: Content) -> Format:
    """The format of a file's contents.

    Raises:
        WeightsError: none that is known; what is there is said.
    """
    for form in FORMATS:
        if form.matches(content):
            return form
    held = ", ".join(map(str, list(content.tree)[:4])) or "nothing"
    raise WeightsError(
        f"holds no flat state dict of a U-Net, nor anything else known here (it holds: {held})"
    )
