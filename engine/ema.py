"""Exponential moving average of a model's weights, kept in float32 whatever the weights are kept in.

A bfloat16 average is dead: with decay 0.9999 an update moves a weight by a ten-thousandth of its distance,
far below the 8 bits of a bfloat16 mantissa, and rounds away.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor

from engine.errors import CheckpointError

Named = Mapping[str, Tensor] | Iterable[tuple[str, Tensor]]


class Ema:
    """shadow <- shadow + (1 - decay) (parameter - shadow), all parameters at once; buffers are copied.

    Equivalent PyTorch: ``torch.optim.swa_utils.AveragedModel`` with ``get_ema_multi_avg_fn(decay)``, in
    float32 and without a second module.

    Args:
        named_params: name -> tensor to follow, of any floating dtype, updated in place by its owner. Under
            ZeRO-3 these are the local partitions, and the shadow is partitioned likewise.
        named_buffers: name -> tensor to mirror (BatchNorm statistics), in its own dtype.
        decay: in [0, 1).
        warmup: use min(decay, (1 + step) / (10 + step)), so that the random start is forgotten within tens of
            steps.
    """

    def __init__(
        self, named_params: Named, named_buffers: Named = (), decay: float = 0.9999, warmup: bool = False
    ):
        self.decay, self.warmup = decay, warmup
        # The parameters and not their detached values: DeepSpeed gives them other storage (p.data = ...).
        self._params, self._buffers = dict(named_params), dict(named_buffers)
        self._shadow = {name: p.detach().to(torch.float32, copy=True) for name, p in self._params.items()}
        self._mirror = {name: b.detach().clone() for name, b in self._buffers.items()}

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Follow the parameters once; ``step`` counts updates from 0 and only matters during warm-up."""
        decay = min(self.decay, (1 + step) / (10 + step)) if self.warmup else self.decay
        if self._shadow:
            current = [p.float() for p in self._params.values()]  # no copy where they are float32 already
            torch._foreach_lerp_(list(self._shadow.values()), current, 1 - decay)
        if self._mirror:
            torch._foreach_copy_(list(self._mirror.values()), list(self._buffers.values()))

    def state_dict(self) -> dict[str, Tensor]:
        """Names as given -> averaged tensors (not copies)."""
        return {**self._shadow, **self._mirror}

    @torch.no_grad()
    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Restore what :meth:`state_dict` gave.

        Raises:
            CheckpointError: a name or a shape is not that of this model.
        """
        own = self.state_dict()
        _demand_same_names("the saved average", own, state)
        for name, tensor in own.items():
            if tensor.shape != state[name].shape:
                shapes = f"{tuple(state[name].shape)} in the checkpoint, {tuple(tensor.shape)} in the model"
                raise CheckpointError(f"the average of {name} has another shape: {shapes}")
            tensor.copy_(state[name])


def _demand_same_names(what: str, expected: Iterable[str], found: Iterable[str]) -> None:
    missing, unknown = sorted(set(expected) - set(found)), sorted(set(found) - set(expected))
    if missing or unknown:
        differs = f"lacks {missing[:3] or 'nothing'}, has unknown {unknown[:3] or 'nothing'}"
        raise CheckpointError(f"{what} is not of this model: {differs}")
