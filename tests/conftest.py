"""What every test runs under: one thread, one seed, and networks whose zero-initialised layers came alive."""

import os
from unittest import mock

import pytest
import torch
from fault_suite import belongs
from torch import nn

# Kernels are tested on a GPU, or in Triton's interpreter by a process of their own
# (test_kernels_interpreted.py).
collect_ignore = [] if torch.cuda.is_available() or os.environ.get("TRITON_INTERPRET") == "1" else ["kernels"]


def pytest_terminal_summary(terminalreporter):
    """Show what passing tests recorded as ``shown``: summaries of other processes, the list of mutants."""
    passed = (dict(report.user_properties).get("shown") for report in terminalreporter.getreports("passed"))
    lines = [text for text in passed if text]
    if lines:
        terminalreporter.section("kernels")
        terminalreporter.write_line("\n".join(lines))


def pytest_collection_modifyitems(items):
    """Mark the tests elsewhere that belong to the suite of faults."""
    for item in items:
        if belongs(item.path.name, item.name):
            item.add_marker(pytest.mark.faults)
        if item.get_closest_marker("thorough") and not item.get_closest_marker("faults"):
            raise pytest.UsageError(f"{item.nodeid} is thorough and of no suite: nothing would run it")


@pytest.fixture(autouse=True)
def one_thread_and_one_seed():
    torch.set_num_threads(1)
    torch.manual_seed(0)


@pytest.fixture(scope="session")
def launcher(tmp_path_factory):
    """Starts ranks of the toy task within a moment, and ends what a test leaves behind."""
    from launching import launching

    with launching(tmp_path_factory.mktemp("launcher")) as launcher:
        yield launcher


@pytest.fixture(scope="session")
def straight(launcher, tmp_path_factory):
    """The hash of the toy task's end, without a stop."""
    from engine.verify import state, state_hash

    run = tmp_path_factory.mktemp("straight")
    launcher.run(run)
    return state_hash(state(run))


@pytest.fixture(scope="session")
def process_group():
    """A group of one rank, for the whole session: DeepSpeed does not survive a second one in its process."""
    from engine.parallel import start_ranks, stop_ranks

    with mock.patch.dict(os.environ):  # processes that other tests start are no ranks of it
        ranks, environment = start_ranks(), dict(os.environ)
    yield ranks, environment
    stop_ranks()


@pytest.fixture
def one_rank(process_group):
    """The only rank of this process."""
    ranks, environment = process_group
    with mock.patch.dict(os.environ, environment):
        yield ranks


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
