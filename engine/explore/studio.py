"""A trained model with the images that were given to it: what the page asks for, as Algorithms 2 and 3."""

from __future__ import annotations

import re
import shlex
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor

from diffsiam.counterfactual import counterfactual_jobs, counterfactuals
from diffsiam.manipulation import manipulate
from diffsiam.sampling import Recipe
from engine.data.rooms import FACTORS
from engine.data.sources import RoomsSource
from engine.edit.attributes import own_names, read_labels, read_table
from engine.edit.choices import demand_within, read_choices, read_scales, scale_names
from engine.edit.manipulation import features, learn, manipulation_sheet, title
from engine.edit.mixing import counterfactual_sheet
from engine.edit.opening import Opened, training_images
from engine.edit.pictures import labelled_images, pictures, pixels
from engine.edit.units import union_of, unit_name, units_of
from engine.errors import DataError, UsageError

SAMPLES = 5000  # labelled images to learn an attribute from, as the command line has it
BATCH, MOST_SCALES = 64, 21
Tell = Callable[[int], None]


class Asked(BaseModel):
    """What both edits are told."""

    model_config = ConfigDict(extra="forbid")
    guidance_scale: float = Field(1.0, ge=0, le=20)
    inversion_moves: int = Field(50, ge=1, le=1000)
    moves: int = Field(25, ge=1, le=1000)

    def recipe(self) -> Recipe:
        return Recipe(self.inversion_moves, self.moves, scale=self.guidance_scale)

    def options(self) -> list[str]:
        """As the command line has them."""
        return [
            *("--inversion-moves", str(self.inversion_moves), "--moves", str(self.moves)),
            *("--guidance-scale", f"{self.guidance_scale:g}"),
        ]


class Exchange(Asked):
    """Subsets of z from one image into the other, in both directions (Algorithm 2)."""

    a: int
    b: int
    units: list[int]
    moved: bool = False
    scales: str = Field("0,1/4,1/2,3/4,1", max_length=200)


class Push(Asked):
    """An attribute of one image, less and more (Algorithm 3)."""

    a: int
    attribute: str = Field(max_length=200)
    dims: str = Field("all", max_length=9)
    scales: str = Field("-1,-1/2,0,1/2,1", max_length=200)


@dataclass(frozen=True)
class Kept:
    """An image that edits may use.

    Attributes:
        name: what it is called in the page.
        asked: path, or number of the training set, as ``--image`` takes it.
        typed: the same for the command line that is shown: a file's name as the user knows it.
    """

    name: str
    asked: str
    typed: str
    pixels: Tensor  # (px, px, 3) uint8


@dataclass(frozen=True)
class Made:
    """Images of an edit: by direction and scale, (directions, scales, px, px, 3) uint8."""

    images: np.ndarray
    scales: list[str]
    told: list[str]  # of each direction, with "{}" for the scale
    sheet: Image.Image
    command: str


class Studio:
    """One model and the images of one session.

    Args:
        labels: CSV or CelebA's list of the training set's (or ``data``'s) images; None: what the set itself
            says (Rooms' factors, attributes, classes).
        data: folder that numbers count in.
        folder: where uploaded images are kept.
    """

    def __init__(self, opened: Opened, folder: Path, labels: Path | None = None, data: Path | None = None):
        self.opened, self.folder, self._labels, self.data = opened, folder, labels, data
        self.units = units_of(opened.model.subsets.n)
        self.kept: list[Kept] = []
        self._features: dict[bytes, Tensor] = {}
        if labels is not None:
            read_table(labels)  # a wrong file is told before the page opens

    @property
    def unit_names(self) -> list[str]:
        return [unit_name(unit) for unit in self.units]

    @cached_property
    def attributes(self) -> list[str]:
        """Names of what can be pushed; empty without labels."""
        if self._labels is not None:
            return read_table(self._labels)[0]
        if not self.has_numbers:
            return []
        try:
            source = training_images(self.opened, self.data)
        except (UsageError, DataError):  # they are not on this machine: nothing can be learnt from them
            return []
        is_rooms = isinstance(source, RoomsSource)
        return [factor.name for factor in FACTORS] if is_rooms else own_names(source)

    def upload(self, name: str, content: bytes) -> int:
        """Keep an image file; returns its number.

        Raises:
            UsageError: it is no image that can be read.
        """
        plain = re.sub(r"[^\w.-]+", "_", Path(name).name)[-60:].lstrip(".-") or "image"
        path = self.folder / f"{len(self.kept):03}_{plain}"
        path.write_bytes(content)
        try:
            return self._keep(str(path), name, Path(name).name)
        except Exception as error:
            path.unlink()
            why = str(error).rpartition("; ")[2].replace(str(path), name)
            raise UsageError(f"{name} cannot be read as an image: {why}") from error

    def number(self, number: int) -> int:
        """Keep an image of the training set; of rooms, those beyond it were never seen.

        Raises:
            UsageError: there is none of that number.
        """
        return self._keep(str(number), None, str(number))

    def _keep(self, asked: str, name: str | None, typed: str) -> int:
        found = pictures(self.opened, [asked], self.data, 0)
        self.kept.append(Kept(name or found.names[0], asked, typed, found.images[0]))
        return len(self.kept) - 1

    def image(self, number: int) -> Kept:
        """One that was kept.

        Raises:
            UsageError: there is none of that number.
        """
        if not 0 <= number < len(self.kept):
            raise UsageError("this image is not here any more: choose it again")
        return self.kept[number]

    def exchange(self, asked: Exchange) -> tuple[int, Callable[[Tell], Made]]:
        """Image moves that it takes, and the work.

        Raises:
            UsageError: something asked for does not exist.
        """
        a, b = self.image(asked.a), self.image(asked.b)
        scales = _scales(asked.scales)
        demand_within(scales, 0, 1, "scales")
        chosen = sorted(set(asked.units))
        if any(not 0 <= unit < len(self.units) for unit in chosen):
            raise UsageError(f"subsets: there are {len(self.units)} rows")
        named = union_of(self.units, chosen)
        choices = read_choices(named, self.opened.model.subsets, moves_x_T=asked.moved)
        images, pairs = torch.stack([a.pixels, b.pixels]), [(0, 1)]

        def work(tell: Tell) -> Made:
            sampler = self.opened.sampler(asked.recipe(), BATCH, tell)
            inverted = self.opened.invert(images, sampler, 0)
            edits = pixels(counterfactuals(sampler, inverted, pairs, choices, scales))
            sheet = counterfactual_sheet(
                images.numpy(), pairs, [edits], [self.opened.name], choices, scale_names(asked.scales)
            )
            start = "x_T moved along" if asked.moved else "its own x_T"
            taken = ", ".join(self.unit_names[unit] for unit in chosen) or "nothing of z"
            told = [f"{x.name} with {taken} of {y.name} at scale {{}}, {start}" for x, y in ((a, b), (b, a))]
            return Made(edits[0, :, 0], scale_names(asked.scales), told, sheet, command)

        command = self._command(
            "counterfactual",
            *("-i", a.typed, "-i", b.typed, "--subsets", named, f"--scales={asked.scales}"),
            *(() if asked.moved else ("--fixed-x-T",)),
            *asked.options(),
        )
        jobs = counterfactual_jobs(pairs, choices, scales).needed()[0]
        return self.opened.sampler(asked.recipe(), BATCH).cost(2, len(jobs)), work

    def push(self, asked: Push) -> tuple[int, Callable[[Tell], Made]]:
        """Image moves that it takes, and the work.

        Raises:
            UsageError: something asked for does not exist.
        """
        a, scales = self.image(asked.a), _scales(asked.scales)
        demand_within(scales, -20, 20, "scales")
        if asked.attribute not in self.attributes:
            known = ", ".join(self.attributes) or "none: start with --labels FILE"
            raise UsageError(f"attribute {asked.attribute}: there are {known}")

        def work(tell: Tell) -> Made:
            source = training_images(self.opened, self.data)
            labels = read_labels(source, labelled_images(source, SAMPLES), [asked.attribute], self._labels)
            key = labels.indices.tobytes()
            if key not in self._features:
                self._features[key] = features(self.opened, source, labels.indices)
            classifiers = learn(self.opened, self._features[key], labels, asked.dims)
            sampler = self.opened.sampler(asked.recipe(), BATCH, tell)
            inverted = self.opened.invert(a.pixels[None], sampler, 0)
            edits = pixels(manipulate(sampler, inverted, classifiers, scales, "code"))
            sheet = manipulation_sheet(
                a.pixels[None].numpy(),
                [edits],
                [title(self.opened, asked.dims)],
                labels.names,
                scales,
                scale_names(asked.scales),
                "code",
            )
            told = [f"{a.name} with {asked.attribute.replace('_', ' ')} pushed by {{}}"]
            return Made(edits[0, :1], scale_names(asked.scales), told, sheet, command)

        command = self._command(
            "manipulate",
            *("-i", a.typed, "-a", asked.attribute, "--dims", asked.dims, f"--scales={asked.scales}"),
            *(("--labels", str(self._labels)) if self._labels else ()),
            *asked.options(),
        )
        different = len(set(scales))
        return self.opened.sampler(asked.recipe(), BATCH).cost(1, different), work

    def _command(self, name: str, *options: str) -> str:
        data = ("--data", str(self.data)) if self.data else ()
        return shlex.join(["diffsiam", name, str(self.opened.path), *options, *data])

    @property
    def has_numbers(self) -> bool:
        """Whether images can be named by number."""
        return self.data is not None or self.opened.images is not None


def _scales(text: str) -> list[float]:
    scales = read_scales(text, "scales")
    if len(scales) > MOST_SCALES:
        raise UsageError(f"scales: {len(scales)} are more than {MOST_SCALES}")
    return scales
