"""The one place that knows what wrappers put in front of a key, and where averages lie.

DDP               module.conv1.weight
torch.compile     _orig_mod.conv1.weight, also inside: encoder._orig_mod.conv1.weight
FSDP, activation checkpointing   _fsdp_wrapped_module., _checkpoint_wrapped_module.
AveragedModel     module.conv1.weight and a counter n_averaged
Lightning         model.conv1.weight, with the average as ema_model.conv1.weight
PDAE, DiTi        {"decoder": ..., "ema_decoder": ...}
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from diffsiam.weights.errors import WeightsError

State = Mapping[str, Tensor]

WRAPPERS = frozenset({"module", "_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"})
COUNTERS = frozenset({"n_averaged"})  # of torch.optim.swa_utils.AveragedModel
AVERAGES = ("ema_model.", "model_ema.", "ema.")  # in the order of preference
LIVE = ("model.",)

# What PDAE's pair has beside the frozen model (arXiv 2212.12990): the gradient estimator.
TRAINABLE = ("label_emb.", "shift_middle_block.", "shift_output_blocks.", "shift_out.")


def canonical(state: State) -> dict[str, Tensor]:
    """The state dict as the bare module would have written it: no wrappers, the average where there is one.

    Raises:
        WeightsError: two keys become one, or keys remain that belong to neither the model nor its average.
    """
    bare: dict[str, Tensor] = {}
    for key, value in state.items():
        name = ".".join(part for part in key.split(".") if part not in WRAPPERS)
        if name in COUNTERS:
            continue
        if name in bare:
            raise WeightsError(f"key {name} is there twice, once wrapped as {key}")
        bare[name] = value
    for prefix in (*AVERAGES, *LIVE):
        if chosen := without_prefix(bare, prefix):
            return chosen
    return bare


def without_prefix(state: State, prefix: str) -> dict[str, Tensor]:
    """The entries under ``prefix``, which is taken off."""
    return {key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)}


def average_of(content: Mapping[str, Any], name: str) -> tuple[State, str] | None:
    """``ema_NAME`` of a checkpoint, or NAME where it holds no average, and a word on which it is."""
    for key, remark in ((f"ema_{name}", "its moving average"), (name, "without a moving average")):
        if key in content:
            return flat(content[key], key), remark
    return None


def flat(value: object, where: str) -> State:
    """``value`` if it is a flat, non-empty dictionary of tensors.

    Raises:
        WeightsError: it is something else.
    """
    if is_flat(value):
        return value  # type: ignore[return-value]
    raise WeightsError(f"{where} holds no flat state dict")


def is_flat(value: object) -> bool:
    """Whether ``value`` is a non-empty dictionary of tensors by name."""
    return (
        isinstance(value, Mapping)
        and len(value) > 0
        and all(isinstance(k, str) and isinstance(v, Tensor) for k, v in value.items())
    )


def split_pair(state: State) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """A state dict of PDAE's pair -> (frozen model, gradient estimator); the second is empty for a diffusion
    model alone.
    """
    estimator = {key: value for key, value in state.items() if key.startswith(TRAINABLE)}
    return {key: value for key, value in state.items() if key not in estimator}, estimator
