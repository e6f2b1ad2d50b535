"""What every format is read into."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor

from diffsiam.decoder import Decoder
from diffsiam.encoder import EncoderConfig
from diffsiam.simsiam import SimSiam
from diffsiam.unet import UNet, UNetConfig
from diffsiam.weights.architecture import demand_plausible
from diffsiam.weights.contract import ImageContract
from diffsiam.weights.errors import WeightsError
from diffsiam.weights.states import demand

State = Mapping[str, Tensor]


@dataclass(frozen=True)
class Parts:
    """The networks that a file holds, under our key names, in float32.

    Attributes:
        path: as given.
        file: that holds the tensors.
        format: its name, such as "pdae".
        unet, config: the diffusion model and its architecture.
        decoder: the gradient estimator on top of it.
        encoder, encoder_config: f.
        simsiam: the head of SimSiam, as :class:`~diffsiam.simsiam.SimSiam` names it.
        contract: what they expect of images.
        remark: what was chosen or left out, for people.
        extras: further JSON that the format carries (exported models: subsets and schedule).
    """

    path: Path
    file: Path
    format: str
    unet: State | None = None
    config: UNetConfig | None = None
    decoder: State | None = None
    encoder: State | None = None
    encoder_config: EncoderConfig | None = None
    simsiam: State | None = None
    contract: ImageContract = ImageContract()
    remark: str = ""
    extras: Mapping[str, Any] = field(default_factory=dict)

    @property
    def dim(self) -> int | None:
        """d, the length of z, where there is something to tell it."""
        if self.encoder_config is not None:
            return self.encoder_config.dim
        return None if self.decoder is None else self.decoder["label_emb.weight"].shape[1]

    def check(self) -> Parts:
        """Itself, every tensor of every part compared with the network it is of.

        Raises:
            WeightsError: naming the first key whose presence or shape differs; or z has another length in the
                encoder than in the decoder.
        """
        if self.unet is not None:
            demand_plausible(self.architecture, len(self.unet))
            demand(self.unet, UNet, self.architecture)
        if self.decoder is not None:
            label = self.decoder.get("label_emb.weight")
            if label is None or label.dim() != 2:
                raise WeightsError("key label_emb.weight is missing")
            demand(self.decoder, Decoder, self.architecture, label.shape[1])
        if self.encoder is not None and self.encoder_config is not None:
            demand(self.encoder, EncoderConfig.build, self.encoder_config)
            if (
                self.decoder is not None
                and self.encoder_config.dim != self.decoder["label_emb.weight"].shape[1]
            ):
                raise WeightsError("encoder and decoder have z of different lengths")
        if self.simsiam is not None:
            first, bottleneck = (self.simsiam.get(f"{name}.0.weight") for name in ("projector", "predictor"))
            if first is None or bottleneck is None or first.dim() != 2 or bottleneck.dim() != 2:
                raise WeightsError("its SimSiam head lacks projector.0.weight or predictor.0.weight")
            width, dim = first.shape
            hidden = bottleneck.shape[0]
            demand(self.simsiam, SimSiam, dim, "mlp3", width, hidden)
        return self

    @property
    def architecture(self) -> UNetConfig:
        """Of the diffusion model.

        Raises:
            WeightsError: there is none in the file.
        """
        if self.config is None:
            raise WeightsError(f"{self.path}: holds no diffusion model ({self.format})")
        return self.config

    def describe(self) -> str:
        """One line for people: format and parts."""
        names = {
            "unet": "diffusion model",
            "decoder": "decoder",
            "encoder": "encoder",
            "simsiam": "SimSiam head",
        }
        held = ", ".join(word for name, word in names.items() if getattr(self, name) is not None)
        return f"{self.format}: {held}{f' ({self.remark})' if self.remark else ''}"
