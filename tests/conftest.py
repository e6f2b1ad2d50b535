"""What every test runs under: one thread, one seed, and networks whose zero-initialised layers came alive."""

import pytest
import torch
from torch import nn


@pytest.fixture(autouse=True)
def one_thread_and_one_seed():
    torch.set_num_threads(1)
    torch.manual_seed(0)


@pytest.fixture(scope="session")
def awaken():
    """Give every parameter a random value: zero output layers of a fresh network hide what is behind them."""

    def awaken(module: nn.Module, seed: int = 0) -> nn.Module:
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for name, parameter in module.named_parameters():
                noise = torch.randn(parameter.shape, generator=generator)
                if parameter.dim() > 1:
                    parameter.copy_(noise / parameter[0].numel() ** 0.5)
                else:
                    parameter.copy_(0.3 * noise + name.endswith("weight"))  # weights of norms lie around 1
        return module

    return awaken
