"""Lightning checkpoints of DiffAE's diffusion models: ``{"state_dict": {"ema_model.*", "model.*", ...}}``.

DiffAE's autoencoders are refused: their U-Net is conditioned on z. Files of old versions pickle their
hyper-parameters as objects; those need the isolated conversion.
"""

from __future__ import annotations

from diffsiam.weights.architecture import Assumed
from diffsiam.weights.errors import WeightsError
from diffsiam.weights.files import Content
from diffsiam.weights.formats.guided_diffusion import SIGN, of_pair
from diffsiam.weights.keys import AVERAGES, LIVE, flat, is_flat
from diffsiam.weights.parts import Parts

NAME = "diffae"
BESIDE = frozenset({"x_T", "conds_mean", "conds_std"})  # noise and latents that DiffAE keeps beside its model
CONDITIONED = "cond_emb_layers"


def matches(content: Content) -> bool:
    """A state_dict entry with a U-Net's time embedding."""
    state = content.tree.get("state_dict")
    return is_flat(state) and any(key.endswith(SIGN) for key in state)  # type: ignore[union-attr]


def parts(content: Content, assumed: Assumed) -> Parts:
    """The average of the model.

    Raises:
        WeightsError: an autoencoder of DiffAE, or keys of neither the model nor its average.
    """
    state = {key: v for key, v in flat(content.tree["state_dict"], "state_dict").items() if key not in BESIDE}
    if any(CONDITIONED in key for key in state):
        raise WeightsError(
            "is an autoencoder of DiffAE, conditioned on z; the frozen model is one of its *_ddpm files"
        )
    prefixes = (*AVERAGES, *LIVE)
    averaged = any(key.startswith(AVERAGES) for key in state)
    if averaged and (odd := next((key for key in state if not key.startswith(prefixes)), None)):
        raise WeightsError(f"key {odd} is unexpected")
    remark = "its moving average" if averaged else "without a moving average"
    return of_pair(content, NAME, state, assumed, remark)
