"""guided-diffusion: a flat state dict, also as improved-diffusion, DiffAE and PDAE name their tensors.

The averages are files of their own (``ema_0.9999_NNNNNN.pt``). Of a model that learns its variance
(``learn_sigma``), the first three of six output channels are eps.
"""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from diffsiam.weights.architecture import Assumed, infer_config
from diffsiam.weights.errors import WeightsError
from diffsiam.weights.files import Content
from diffsiam.weights.keys import TRAINABLE, canonical, flat, is_flat, split_pair
from diffsiam.weights.parts import Parts
from diffsiam.weights.states import sound

NAME = "guided-diffusion"
SIGN = "time_embed.0.weight"


def matches(content: Content) -> bool:
    """The time embedding of such a U-Net, under whatever wrapper."""
    return is_flat(content.tree) and any(key.endswith(SIGN) for key in content.tree)


def parts(content: Content, assumed: Assumed) -> Parts:
    """The U-Net; a flat file of PDAE's pair gives its decoder too."""
    return of_pair(content, NAME, flat(content.tree, "the file"), assumed)


def of_pair(
    content: Content, name: str, state: Mapping[str, Tensor], assumed: Assumed, remark: str = ""
) -> Parts:
    """A U-Net, and the gradient estimator if its tensors are there too.

    Raises:
        WeightsError: another architecture, or an estimator that is there in part only.
    """
    frozen, estimator = split_pair(sound(canonical(state), content.file.stat().st_size))
    config = infer_config(state_for_inference(frozen, estimator), **assumed.given())
    return Parts(
        content.path,
        content.file,
        name,
        unet=frozen,
        config=config,
        decoder=estimator or None,
        remark=remark,
    )


def state_for_inference(frozen: dict[str, Tensor], estimator: dict[str, Tensor]) -> dict[str, Tensor]:
    """What the architecture is read from: the frozen tensors, and label_emb, where classes would show.

    Raises:
        WeightsError: of the estimator's four groups some are there and some are not.
    """
    labels = {key: value for key, value in estimator.items() if key.startswith("label_emb.")}
    missing = [group for group in TRAINABLE if not any(key.startswith(group) for key in estimator)]
    if set(estimator) != set(labels) and missing:
        raise WeightsError(f"has a gradient estimator without its {missing[0]}*")
    return frozen | (labels if missing else {})
