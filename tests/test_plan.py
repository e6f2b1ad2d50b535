"""What ``--dry-run`` says."""

import json
import time
from functools import cache
from pathlib import Path

import pytest
import torch
from torch import nn
from training import TINY

from diffsiam.attention import set_attention
from diffsiam.unet import UNet, UNetConfig
from diffsiam.weights import save_unet
from engine.build import build_frozen, build_model, build_schedule, build_subsets
from engine.config import Config
from engine.config_file import from_dict
from engine.cost import FROZEN, Cost, build_networks, measure
from engine.errors import UsageError
from engine.memory import memory
from engine.plan import show_plan
from engine.step import choose_policy
from engine.words import flops, size_of

torch.set_num_threads(1)
CPU = torch.device("cpu")
UNET = {name: value for name, value in TINY["frozen"].items() if name != "weights"}


def tiny(**sections: object) -> Config:
    values = TINY | {
        "data": {"source": "rooms", "px": 16, "count": 1000},
        "train": {"steps": 50, "batch_size": 8, "precision": "fp32"},
        "run": {"dir": "runs/tiny"},
    }
    for name, section in sections.items():
        both = isinstance(section, dict) and isinstance(values.get(name), dict)
        values[name] = {**values[name], **section} if both else section
    return from_dict(values)


def cost(config: Config, micro: int, planned: str | None = None) -> Cost:
    return measure(build_networks(config), config, choose_policy(config, CPU), micro, planned)


@cache
def tiny_cost(micro: int, precision: str = "fp32") -> Cost:
    return cost(tiny(train={"precision": precision}), micro)


def real_model(config: Config) -> nn.Module:
    schedule, frozen = build_schedule(config), build_frozen(config)
    model = build_model(config, frozen, schedule, build_subsets(config))
    for part in filter(None, (model, frozen)):
        set_attention(part, choose_policy(config, CPU).attend)
    return model


def real_kept_bytes(config: Config, micro: int) -> int:
    """What a real forward pass leaves for the backward pass, by the addresses of real memory."""
    model, policy = real_model(config), choose_policy(config, CPU)
    weights = {p.data_ptr() for part in (model, model.frozen) for p in part.parameters()}
    kept: dict[int, torch.UntypedStorage] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            kept[storage.data_ptr()] = storage
        return tensor

    images = torch.randint(0, 256, (3, micro, 16, 16, 3), dtype=torch.uint8)
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x), policy.autocasting():
        out = model(images[0], torch.arange(micro), 0, images[1], images[2])
    assert out.total.requires_grad
    return sum(storage.nbytes() for storage in kept.values())


def test_activations_are_those_of_a_real_pass():
    assert tiny_cost(8).kept == real_kept_bytes(tiny(), 8)


def test_activations_under_autocast_are_those_of_a_real_pass_but_for_group_statistics():
    """Whose dtype fake group norms get wrong on a CPU: some bytes in a thousand."""
    kept = real_kept_bytes(tiny(train={"precision": "bf16"}), 8)
    assert tiny_cost(8, "bf16").kept == pytest.approx(kept, rel=2e-3)
    assert kept < 0.75 * tiny_cost(8).kept


def test_networks_take_no_memory_and_have_the_parameters_of_the_real_ones():
    config = tiny()
    networks, model = build_networks(config), real_model(config)
    assert all(p.is_meta for part in networks.all() for p in part.parameters())
    assert {n: p.shape for n, p in networks.module.named_parameters()} == {
        n: p.shape for n, p in model.named_parameters()
    }
    assert list(networks.parts()) == [FROZEN, "encoder f", "decoder g", "SimSiam head"]


def test_flops_of_the_128_px_model_agree_with_an_independent_count_and_take_seconds():
    """PDAE's at 128 px: 147.7 GFLOP for the frozen pass, 479.8 with the decoder's forward and backward."""
    began = time.process_time()
    unet = {"base_channels": 128, "channel_mult": [1, 1, 2, 3, 4], "blocks": 2, "attention": [8]}
    config = tiny(
        method="pdae",
        data={"px": 128},
        frozen={"weights": "random", **unet},
        encoder={"arch": "resnet10", "width": 64, "dim": 512},
        subsets={"n": 64, "choice": "full", "detach": False},
        simsiam={"weight": 0.0},
    )
    whole = cost(config, 4, planned="cuda")  # a CPU would upsample with fewer
    assert whole.forward[FROZEN] / 4 == pytest.approx(147.7e9, rel=1e-3)
    encoder = whole.forward["encoder f"]
    assert encoder / 4 == pytest.approx(8.1e9, rel=0.01)
    stem = 2 * 128 * 128 * 64 * 27 * 4  # the backward pass stops at the first convolution's weights
    assert (whole.total - 3 * encoder + stem) / 4 == pytest.approx(479.8e9, rel=1e-3)
    assert time.process_time() - began < 20


def test_flops_are_proportional_to_the_batch():
    one, two = tiny_cost(4), tiny_cost(8)
    assert two.total == 2 * one.total
    assert two.forward == {name: 2 * count for name, count in one.forward.items()}


def test_without_diffusion_loss_there_is_an_encoder_and_a_head():
    config = tiny(method="simsiam", loss={"weight": 0.0}, subsets={"choice": "full", "detach": False})
    assert list(cost(config, 4).forward) == ["encoder f", "SimSiam head"]


def test_pretraining_has_one_network():
    config = tiny(task="diffusion", frozen={"weights": None, **UNET})
    price = cost(config, 4)
    assert list(price.forward) == ["U-Net"]
    assert 2.8 < price.total / price.forward["U-Net"] <= 3.0


@pytest.mark.parametrize(
    ("zero", "weights", "gradients", "state"),
    [(0, 1, 1, 2), (1, 1, 1, 3 / 4), (2, 1, 1 / 4, 3 / 4), (3, 1 / 4, 1 / 4, 3 / 4)],
)
def test_zero_shards_what_its_stage_says(zero, weights, gradients, state):
    networks = build_networks(tiny())
    size = 4 * sum(p.numel() for p in networks.module.parameters())
    buffers = sum(b.nbytes for b in networks.module.buffers())
    held = memory(networks, "adam", zero, 4, torch.float32)
    assert held["weights, trained"] - buffers == pytest.approx(weights * size, abs=1)
    assert held["moving average"] == held["weights, trained"]
    assert held["gradients"] == pytest.approx(gradients * size, abs=1)
    assert held["optimizer state"] == pytest.approx(state * size, abs=1)
    assert bool(held["reduction buckets"]) == (zero > 0)


def test_frozen_weights_count_in_their_own_dtype():
    networks = build_networks(tiny())
    half, full = (
        memory(networks, "sgd", 0, 1, d)["weights, frozen"] for d in (torch.bfloat16, torch.float32)
    )
    assert full == 2 * half > 0


def test_the_plan_of_four_ranks_shows_the_effective_config_and_each_ranks_share(capsys, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "4")
    config = tiny()
    show_plan(config)
    printed = capsys.readouterr().out
    values, _ = json.JSONDecoder().raw_decode(printed)
    assert values == config.to_dict()
    assert "50 of 8 images: 400 images seen, 0.4 epochs of 1,000" in printed
    assert "2 images x 4 ranks" in printed
    assert "4 ranks, ZeRO 1" in printed


def test_only_rank_0_speaks(capsys, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "1")
    show_plan(tiny())
    assert capsys.readouterr().out == ""


def test_ranks_that_do_not_divide_the_batch_are_a_usage_error(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "3")
    with pytest.raises(UsageError, match="train.batch_size"):
        show_plan(tiny())


def weights_file(folder: Path) -> Path:
    path = folder / "unet.safetensors"
    save_unet(UNet(UNetConfig(base_channels=8, channel_mult=(1, 2), blocks=1, attention=(2,))), path)
    return path


def test_the_architecture_comes_from_the_weights_file(tmp_path):
    unstated = dict.fromkeys(UNET)
    networks = build_networks(tiny(frozen={"weights": str(weights_file(tmp_path)), **unstated}))
    assert networks.frozen is not None
    assert networks.frozen.config.base_channels == 8
    assert all(p.is_meta for p in networks.frozen.parameters())


def test_weights_of_another_architecture_than_stated_are_a_usage_error(tmp_path):
    with pytest.raises(UsageError, match="base_channels"):
        build_networks(tiny(frozen={"weights": str(weights_file(tmp_path))}))


def test_large_numbers_are_said_in_words():
    assert flops(999) == "999 FLOP"
    assert flops(479.8e9) == "479.8 GFLOP"
    assert flops(38.2e18) == "38.2 EFLOP"
    assert size_of(1536) == "1.5 KiB"
    assert size_of(5 << 40) == "5.0 TiB"
