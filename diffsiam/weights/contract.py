"""What a model expects of its images and of the noise: written down once, compared wherever it is used."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from diffsiam.weights.errors import WeightsError

DIFFUSION = ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))  # pixels in [-1, 1]
IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
Triple = tuple[float, float, float]


@dataclass(frozen=True)
class ImageContract:
    """How an image enters a model, and the noise schedule it was trained with. None: the file does not say.

    Attributes:
        px: side of the square image.
        mean, std: a pixel v in [0, 1] enters as (v - mean) / std, by channel; 0.5 and 0.5: the range [-1, 1].
        channels: their order.
        crop: what was cut out of larger images, in words.
        steps, beta_start, beta_end: of the linear schedule.
    """

    px: int | None = None
    mean: Triple = DIFFUSION[0]
    std: Triple = DIFFUSION[1]
    channels: str = "RGB"
    crop: str | None = None
    steps: int | None = None
    beta_start: float | None = None
    beta_end: float | None = None

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> ImageContract:
        """What :meth:`to_dict` gave, perhaps through JSON.

        Raises:
            WeightsError: it is something else.
        """
        unknown = [key for key in values if key not in cls.__dataclass_fields__]
        if unknown:
            raise WeightsError(f"an image contract has no {unknown[0]!r}")
        given: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in values.items()}
        return cls(**given)

    @property
    def is_of_diffusion(self) -> bool:
        """Whether pixels enter in [-1, 1], RGB, as everything here that is trained takes them."""
        return (self.mean, self.std) == DIFFUSION and self.channels == "RGB"

    def disagreements(self, **uses: Any) -> list[str]:
        """Where a use differs from what this says, as "px is 32, not 64"; what is not said never differs."""
        said = {key: value for key, value in asdict(self).items() if value is not None}
        return [
            f"{key} is {said[key]}, not {value}"
            for key, value in uses.items()
            if key in said and said[key] != value
        ]

    def describe(self) -> str:
        """One line for people."""
        size = f"{self.px} px, " if self.px else ""
        pixels = "[-1, 1]" if (self.mean, self.std) == DIFFUSION else f"mean {self.mean}, std {self.std}"
        noise = f", T {self.steps}, beta {self.beta_start:g} to {self.beta_end:g}" if self.steps else ""
        return f"{size}{self.channels} in {pixels}{noise}{f', {self.crop}' if self.crop else ''}"
