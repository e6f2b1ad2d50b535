"""State dicts: what may enter a network, the first difference in words, and networks made from them."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Hashable, Mapping
from functools import lru_cache
from typing import TypeVar

import torch
from torch import Tensor, nn

from diffsiam.weights.errors import WeightsError

State = Mapping[str, Tensor]
M = TypeVar("M", bound=nn.Module)

FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
COUNTER = "num_batches_tracked"  # batch norm's, the one integer of a network


def sound(state: State, most_bytes: int) -> dict[str, Tensor]:
    """The state dict in float32, on the CPU.

    Args:
        most_bytes: size of the file; a state dict that takes more repeats its storages.

    Raises:
        WeightsError: a tensor is of no floating dtype, or has values that are no numbers; or all together
            take more than the file.
    """
    if sum(value.numel() * value.element_size() for value in state.values()) > most_bytes:
        raise WeightsError("its tensors together are larger than the file")
    result = {}
    for key, value in state.items():
        is_counter = key.rpartition(".")[2] == COUNTER and value.dtype == torch.int64
        if value.dtype not in FLOATS and not is_counter:
            raise WeightsError(
                f"key {key} is of {str(value.dtype).removeprefix('torch.')}, not of a float type"
            )
        result[key] = value if is_counter else value.float()
        if not is_counter and not _is_finite(result[key]):
            raise WeightsError(f"key {key} holds values that are no numbers")
    return result


def _is_finite(value: Tensor) -> bool:
    """In one pass over the memory; both extremes are NaN where any value is."""
    return value.numel() == 0 or bool(torch.isfinite(torch.stack(torch.aminmax(value))).all())


def first_mismatch(expected: State, found: State) -> str | None:
    """The first difference between two state dicts in words, or None."""
    for key, value in expected.items():
        if key not in found:
            return f"key {key} {tuple(value.shape)} is missing"
        if found[key].shape != value.shape:
            return f"key {key} has shape {tuple(found[key].shape)}, expected {tuple(value.shape)}"
    extra = next((key for key in found if key not in expected), None)
    return f"key {extra} is unexpected" if extra else None


def demand(state: State, build: Callable[..., nn.Module], *arguments: Hashable) -> None:
    """Compare a state dict with the network ``build(*arguments)``, which is made without memory.

    Raises:
        WeightsError: naming the first key whose presence or shape differs.
    """
    if mismatch := first_mismatch(_expected(build, *arguments), state):
        raise WeightsError(mismatch)


@lru_cache(maxsize=8)
def _expected(build: Callable[..., nn.Module], *arguments: Hashable) -> State:
    with torch.device("meta"):
        return build(*arguments).state_dict()


def filled(build: Callable[[], M], state: State) -> M:
    """The network that ``build`` makes with the values of ``state``, float32, its own memory, on the default
    device; random initialisation is skipped.

    Raises:
        WeightsError: naming the first key whose presence or shape differs.
    """
    device = torch.empty(0).device
    with torch.device("meta"):
        module = build()
    if mismatch := first_mismatch(module.state_dict(), state):
        raise WeightsError(mismatch)
    module.to_empty(device=device)
    module.load_state_dict(state)
    return module


def to_cpu(state: State, dtype: torch.dtype = torch.float32) -> dict[str, Tensor]:
    """Detached, contiguous copies or the tensors themselves, floats in ``dtype``."""
    return {
        key: value.detach().to("cpu", dtype if value.is_floating_point() else value.dtype).contiguous()
        for key, value in state.items()
    }


def digest_of(state: State, description: str) -> str:
    """SHA-256 over names, dtypes, shapes and bytes, and over the text that goes with them."""
    digest = hashlib.sha256(description.encode())
    for key in sorted(state):
        value = state[key]
        digest.update(f"\0{key}\0{value.dtype}\0{tuple(value.shape)}\0".encode())
        digest.update(value.contiguous().flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()
