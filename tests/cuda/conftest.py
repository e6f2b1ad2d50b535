"""The kernels as a GPU runs them: at the sizes of the presets, in captured graphs, without waiting.

The files of ``tests/kernels`` run there too, at odd sizes and between guards; these add what no interpreter
can show. Without a CUDA device every test here is skipped.
"""

from importlib.util import find_spec

import pytest
import torch

from kernels import backend


def _obstacle() -> str | None:
    if backend.INTERPRETED:
        return "TRITON_INTERPRET=1: these tests are for compiled kernels"
    if not torch.cuda.is_available():
        return "needs a CUDA device"
    return None if find_spec("triton") else "needs Triton"


@pytest.fixture(autouse=True)
def compiled_kernels_and_full_float32():
    """Triton or an error, and no TF32: it has ten bits of mantissa."""
    if obstacle := _obstacle():
        pytest.skip(obstacle)
    matmul, cudnn = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    backend.set_backend("triton")
    yield
    backend.set_backend("auto")
    torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = matmul, cudnn


@pytest.fixture
def no_waiting():
    """Within the block every call that makes the host wait for the GPU is an error."""

    class NoWaiting:
        def __enter__(self):
            torch.cuda.synchronize()
            torch.cuda.set_sync_debug_mode("error")

        def __exit__(self, *_):
            torch.cuda.set_sync_debug_mode("default")

    return NoWaiting()
