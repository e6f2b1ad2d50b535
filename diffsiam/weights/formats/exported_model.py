"""Folders of ``diffsiam export`` and of ``diffsiam convert``; see :mod:`diffsiam.weights.exported`."""

from __future__ import annotations

from diffsiam.weights.architecture import Assumed
from diffsiam.weights.errors import WeightsError
from diffsiam.weights.exported import DESCRIPTION, parts_of
from diffsiam.weights.files import Content
from diffsiam.weights.parts import Parts

NAME = "exported model"


def matches(content: Content) -> bool:
    """A model.json."""
    return DESCRIPTION in content.metadata


def parts(content: Content, assumed: Assumed) -> Parts:
    """The networks; everything about them is recorded, so nothing can be assumed.

    Raises:
        WeightsError: something is assumed that the record denies.
    """
    found = parts_of(content, NAME)
    for name, value in assumed.given().items():
        if name != "dropout" and found.config is not None and getattr(found.config, name) != value:
            raise WeightsError(f"records {name} = {getattr(found.config, name)}, {value} is asked for")
    return found
