"""Batch norm over two ranks is batch norm over one whole batch: forward, gradients and running statistics."""

from collections.abc import Callable

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as multiprocessing
from torch import nn

from engine.sync_norm import SyncBatchNorm, synchronise_batch_norm

RANKS, BATCH = 2, 6  # images per rank
OFFSET = 300.0  # a mean this large would drown the variance in E[x^2] - E[x]^2


def network() -> nn.Module:
    """Batch norms of maps and of vectors with parameters that are not the defaults, and one without affine
    parameters and momentum (whose statistics are plain averages).
    """
    torch.manual_seed(3)
    module = nn.Sequential(
        nn.BatchNorm2d(3, momentum=0.2),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(12, 5),
        nn.BatchNorm1d(5, eps=1e-2),
        nn.Linear(5, 5),
        nn.BatchNorm1d(5, momentum=None, affine=False),
    )
    for norm in (module[0], module[4]):
        nn.init.normal_(norm.weight)
        nn.init.normal_(norm.bias)
    return module


def untracked() -> nn.Module:
    """Batch norm without running statistics, which normalises by the batch at hand in evaluation too."""
    return nn.Sequential(nn.Flatten(), nn.Unflatten(1, (6, 2)), nn.BatchNorm1d(6, track_running_stats=False))


def batch() -> tuple[torch.Tensor, torch.Tensor]:
    """Images and the gradients that arrive at the outputs, of all ranks together."""
    generator = torch.Generator().manual_seed(4)
    x = torch.randn(RANKS * BATCH, 3, 2, 2, generator=generator)
    x += torch.arange(RANKS * BATCH)[:, None, None, None] / 4  # ranks with different means
    x[:, 1] += OFFSET
    return x, torch.randn(RANKS * BATCH, 5, generator=generator)


def train_both(
    converted: Callable[[nn.Module], nn.Module], x: torch.Tensor, upstream: torch.Tensor
) -> dict[str, torch.Tensor]:
    """What :func:`train_once` finds of both networks."""
    found = train_once(converted(untracked()), x, upstream.repeat_interleave(3, dim=1)[:, :12].view(-1, 6, 2))
    return {f"free of statistics: {name}": value for name, value in found.items()} | train_once(
        converted(network()), x, upstream
    )


def train_once(module: nn.Module, x: torch.Tensor, upstream: torch.Tensor) -> dict[str, torch.Tensor]:
    """One forward and backward pass in training mode and one forward pass in evaluation."""
    x = x.clone().requires_grad_()
    y = module.train()(x)
    y.backward(upstream)
    found = {"y": y.detach(), "x.grad": x.grad, "evaluated": module.eval()(x).detach()}
    found |= {f"{name}.grad": parameter.grad for name, parameter in module.named_parameters()}
    return found | dict(module.named_buffers())


def work(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=RANKS)
    x, upstream = (whole.chunk(RANKS)[rank] for whole in batch())
    torch.save(train_both(synchronise_batch_norm, x, upstream), f"{folder}/{rank}.pt")
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def ranks(tmp_path_factory) -> list[dict[str, torch.Tensor]]:
    """What each rank found."""
    try:
        dist.ProcessGroupGloo.create_default_device()
    except RuntimeError as error:  # a sandbox whose loopback interface is down
        pytest.skip(f"gloo finds no network interface: {error}")
    folder = tmp_path_factory.mktemp("ranks")
    multiprocessing.spawn(work, (str(folder),), nprocs=RANKS)
    return [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in range(RANKS)]


@pytest.fixture(scope="module")
def whole() -> dict[str, torch.Tensor]:
    """What torch's batch norm finds on the whole batch, in double precision."""
    return train_both(nn.Module.double, *(values.double() for values in batch()))


def agree(found: torch.Tensor, expected: torch.Tensor) -> bool:
    return (found - expected).abs().max() <= 2e-5 * expected.abs().max().clamp_min(1)


@pytest.mark.parametrize(
    "name", ["y", "evaluated", "x.grad", "free of statistics: y", "free of statistics: x.grad"]
)
def test_each_rank_has_its_part_of_the_whole_batch_s_values(ranks, whole, name):
    assert agree(torch.cat([found[name] for found in ranks]), whole[name])


def test_the_ranks_parameter_gradients_add_up_to_the_whole_batch_s(ranks, whole):
    names = [name for name in whole if name.endswith(("weight.grad", "bias.grad"))]
    assert len(names) == 10
    for name in names:
        assert agree(sum(found[name] for found in ranks), whole[name]), name


def test_every_rank_tracks_the_whole_batch_s_statistics(ranks, whole):
    names = [name for name in whole if "running" in name or "tracked" in name]
    assert len(names) == 9
    for name in names:
        assert torch.equal(ranks[0][name], ranks[1][name])
        assert agree(ranks[0][name].double(), whole[name].double()), name


def test_conversion_keeps_parameters_buffers_names_and_modes():
    module = network()
    module[0].eval()
    parameters, buffers = dict(module.named_parameters()), dict(module.named_buffers())
    converted = synchronise_batch_norm(module)
    assert [type(converted[i]) for i in (0, 4)] == [SyncBatchNorm, SyncBatchNorm]
    assert all(parameter is parameters[name] for name, parameter in converted.named_parameters())
    assert all(buffer is buffers[name] for name, buffer in converted.named_buffers())
    assert list(converted.state_dict()) == list(network().state_dict())
    assert (converted[0].momentum, converted[4].eps) == (0.2, 1e-2)
    assert (converted[0].training, converted[4].training) == (False, True)


def test_a_batch_norm_by_itself_is_converted_and_other_layers_are_left_alone():
    assert isinstance(synchronise_batch_norm(nn.BatchNorm1d(3)), SyncBatchNorm)
    linear = nn.Linear(2, 2)
    assert synchronise_batch_norm(linear) is linear


def test_without_running_statistics_evaluation_normalises_by_the_batch_at_hand(ranks):
    for rank, x in enumerate(batch()[0].chunk(RANKS)):
        assert torch.equal(ranks[rank]["free of statistics: evaluated"], untracked().eval()(x))


def test_in_evaluation_it_needs_no_other_rank():
    plain = nn.BatchNorm2d(3).eval()
    x = torch.randn(2, 3, 4, 4)
    expected = plain(x)
    assert torch.equal(synchronise_batch_norm(plain)(x), expected)


def test_a_vector_without_channels_is_refused():
    with pytest.raises(ValueError, match=r"expected \(B, C, ...\), got 1 dimensions"):
        SyncBatchNorm(3).eval()(torch.randn(3))
