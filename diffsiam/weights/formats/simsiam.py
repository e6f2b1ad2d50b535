"""SimSiam encoders: the official checkpoints (arXiv 2011.10566), and any ResNet encoder under ``encoder.``.

Official files are ``{"arch", "epoch", "state_dict": {"module.encoder.*", "module.predictor.*"}, ...}`` with
torchvision's ResNet, ImageNet's stem and pixels, and the projector as ``encoder.fc``. Projector and predictor
are left out: the encoder's feature is what is used.
"""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from diffsiam.weights.architecture import Assumed, infer_encoder
from diffsiam.weights.contract import IMAGENET, ImageContract
from diffsiam.weights.errors import WeightsError
from diffsiam.weights.files import Content
from diffsiam.weights.keys import canonical, is_flat, without_prefix
from diffsiam.weights.parts import Parts
from diffsiam.weights.states import sound

NAME = "simsiam"
STEM = "encoder.conv1.weight"
HEADS = ("fc.", "projector.", "predictor.")

# DiTi's SimSiam names layers; ours numbers them.
_DITI_LAYERS = {
    "projector.layer1.0": "projector.0",
    "projector.layer1.1": "projector.1",
    "projector.layer2.0": "projector.3",
    "projector.layer2.1": "projector.4",
    "projector.layer3.0": "projector.6",
    "projector.layer3.1": "projector.7",
    "predictor.layer1.0": "predictor.0",
    "predictor.layer1.1": "predictor.1",
    "predictor.layer2": "predictor.3",
}


def _state(content: Content) -> Mapping[str, Tensor]:
    inner = content.tree.get("state_dict")
    return inner if is_flat(inner) else content.tree  # type: ignore[return-value]


def matches(content: Content) -> bool:
    """A ResNet's stem under ``encoder.``."""
    state = _state(content)
    return is_flat(state) and any(key.endswith(STEM) for key in state)


def parts(content: Content, assumed: Assumed) -> Parts:
    """The encoder; its pixels are ImageNet's where its stem is, else [-1, 1]."""
    state = sound(canonical(_state(content)), content.file.stat().st_size)
    if odd := next(
        (key for key in state if not key.startswith(("encoder.", "predictor.", "projector."))), None
    ):
        raise WeightsError(f"key {odd} is unexpected beside an encoder")
    encoder = {k: v for k, v in without_prefix(state, "encoder.").items() if not k.startswith(HEADS)}
    config = infer_encoder(encoder)
    pixels = IMAGENET if config.stem == "imagenet" else (ImageContract.mean, ImageContract.std)
    return Parts(
        content.path,
        content.file,
        NAME,
        encoder=encoder,
        encoder_config=config,
        contract=ImageContract(mean=pixels[0], std=pixels[1]),
        remark="projector and predictor left out",
    )


def head_of_diti(state: Mapping[str, Tensor]) -> dict[str, Tensor] | None:
    """DiTi's ``ssl_model`` under our names; None where it is another method's (SimCLR, masked images).

    Raises:
        WeightsError: only some of the keys are SimSiam's.
    """
    layers = {key: _DITI_LAYERS.get(key.rpartition(".")[0]) for key in state}
    if not any(layers.values()):
        return None
    if odd := next((key for key, layer in layers.items() if layer is None), None):
        raise WeightsError(f"key {odd} is unexpected in ssl_model")
    return {f"{layers[key]}.{key.rpartition('.')[2]}": value for key, value in state.items()}


def head_to_diti(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The inverse of :func:`head_of_diti`, wrapped as DiTi saves it (DDP)."""
    names = {ours: theirs for theirs, ours in _DITI_LAYERS.items()}
    return {f"module.{names[key.rpartition('.')[0]]}.{key.rpartition('.')[2]}": v for key, v in state.items()}
