"""Trained pairs of PDAE and DiTi: ``{"ema_encoder", "ema_decoder", "encoder", "decoder", "optimizer", ...}``.

The decoder's state dict holds the frozen model and the gradient estimator, the encoder's keys start with
``encoder.``. DiTi adds ``ssl_model`` (SimSiam's head). PDAE's latent models and classifiers carry a pair too:
what they add is left out.
"""

from __future__ import annotations

from dataclasses import replace

from torch import Tensor

from diffsiam.weights.architecture import Assumed, infer_encoder
from diffsiam.weights.contract import ImageContract
from diffsiam.weights.errors import WeightsError
from diffsiam.weights.files import Content
from diffsiam.weights.formats.guided_diffusion import of_pair
from diffsiam.weights.formats.simsiam import head_of_diti
from diffsiam.weights.keys import average_of, canonical, flat, without_prefix
from diffsiam.weights.parts import Parts
from diffsiam.weights.states import sound

NAME = "pdae pair"
NAME_WITH_HEAD = "diti"


def matches(content: Content) -> bool:
    """Both entries, averaged or not."""
    return all(f"ema_{name}" in content.tree or name in content.tree for name in ("encoder", "decoder"))


def parts(content: Content, assumed: Assumed) -> Parts:
    """All networks of the pair.

    Raises:
        WeightsError: the decoder lacks the gradient estimator, or the encoder is unknown.
    """
    decoder, encoder = average_of(content.tree, "decoder"), average_of(content.tree, "encoder")
    assert decoder is not None, "the format was recognised by this entry"
    assert encoder is not None, "the format was recognised by this entry"
    pair = of_pair(content, NAME, decoder[0], assumed, decoder[1])
    if pair.decoder is None:
        raise WeightsError("its decoder has no gradient estimator (label_emb, shift_*)")
    size = content.file.stat().st_size
    state = _without_outer(sound(canonical(encoder[0]), size))
    config = infer_encoder(state)
    head: dict[str, Tensor] | None = None
    if "ssl_model" in content.tree:
        head = head_of_diti(sound(canonical(flat(content.tree["ssl_model"], "ssl_model")), size))
    return replace(
        pair,
        format=NAME if head is None else NAME_WITH_HEAD,
        encoder=state,
        encoder_config=config,
        simsiam=head,
        contract=ImageContract(px=config.px),
    )


def _without_outer(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Without the ``encoder.`` that PDAE's class puts in front."""
    bare = without_prefix(state, "encoder.")
    if bare and len(bare) != len(state):
        odd = next(key for key in state if not key.startswith("encoder."))
        raise WeightsError(f"key {odd} is unexpected in an encoder")
    return bare or state
