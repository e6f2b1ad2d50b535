"""Files as the published projects write them, made of small random networks, for the tests of weights."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from diffsiam.decoder import Decoder
from diffsiam.encoder import EncoderConfig, ResNet
from diffsiam.simsiam import SimSiam
from diffsiam.unet import UNet, UNetConfig
from diffsiam.weights import ImageContract, Parts, save_unet
from diffsiam.weights.exported import write_export

State = dict[str, Tensor]

UNET = UNetConfig(8, (1, 2, 3), blocks=1, attention=(2,))
DDPM = UNetConfig(
    8,
    (1, 2, 2),
    blocks=1,
    attention=(2,),
    time="add",
    resampling="conv",
    padding=0,
    groups=4,
    eps=1e-6,
    frequency_shift=1,
    sines_first=True,
)
ENCODER = EncoderConfig("resnet10", None, 4, 32)
DIM = 32


def awake(module: nn.Module, seed: int = 0) -> nn.Module:
    """Random values in every parameter and statistic: zero layers hide what is behind them."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, value in module.state_dict().items():
            if not value.is_floating_point():
                continue
            noise = torch.randn(value.shape, generator=generator)
            if value.dim() > 1:
                value.copy_(noise / value[0].numel() ** 0.5)
            else:
                value.copy_((0.2 * noise + name.endswith(("weight", "var"))).abs())
    return module.eval()


@dataclass(frozen=True)
class Networks:
    """What a file is made of."""

    unet: UNet
    decoder: Decoder
    encoder: nn.Module
    head: SimSiam

    def states(self) -> dict[str, State]:
        return {
            name: dict(getattr(self, name).state_dict()) for name in ("unet", "decoder", "encoder", "head")
        }


def networks(config: UNetConfig = UNET, encoder: EncoderConfig = ENCODER, seed: int = 0) -> Networks:
    return Networks(
        awake(UNet(config), seed),
        awake(Decoder(config, encoder.dim), seed + 1),
        awake(encoder.build(), seed + 2),
        awake(SimSiam(encoder.dim, "mlp3", encoder.dim, 8), seed + 3),
    )


def prefixed(state: State, prefix: str) -> State:
    return {f"{prefix}{key}": value for key, value in state.items()}


def adam_of(state: State) -> dict[str, Any]:
    """An optimizer's state as training writes it beside the weights."""
    moments = {
        i: {"step": torch.tensor(7.0), "exp_avg": v * 0, "exp_avg_sq": v * 0}
        for i, v in enumerate(state.values())
    }
    return {"state": moments, "param_groups": [{"lr": 1e-4, "betas": (0.9, 0.999), "params": list(moments)}]}


def pdae_model(path: Path, n: Networks, other: Networks) -> Path:
    content = {
        "ema_denoise_fn": n.unet.state_dict(),
        "denoise_fn": other.unet.state_dict(),
        "step": 9,
        "scaler": {},
    }
    torch.save(content | {"optimizer": adam_of(n.states()["unet"])}, path)
    return path


def pair_content(n: Networks, other: Networks) -> dict[str, Any]:
    def entries(s: dict[str, State]) -> tuple[State, State]:
        return prefixed(s["encoder"], "encoder."), s["unet"] | s["decoder"]

    (ema_encoder, ema_decoder), (encoder, decoder) = entries(n.states()), entries(other.states())
    return {
        "step": 9,
        "encoder": encoder,
        "ema_encoder": ema_encoder,
        "decoder": decoder,
        "ema_decoder": ema_decoder,
        "optimizer": adam_of(n.states()["decoder"]),
        "scaler": {},
    }


def pdae_pair(path: Path, n: Networks, other: Networks) -> Path:
    torch.save(pair_content(n, other), path)
    return path


DITI_NAMES = {
    "projector": {0: "layer1.0", 1: "layer1.1", 3: "layer2.0", 4: "layer2.1", 6: "layer3.0", 7: "layer3.1"},
    "predictor": {0: "layer1.0", 1: "layer1.1", 3: "layer2"},
}


def diti(path: Path, n: Networks, other: Networks) -> Path:
    """As PDAE, compiled, with SimSiam's head saved from its DDP wrapper."""
    content = pair_content(n, other)
    for name in ("encoder", "ema_encoder", "decoder", "ema_decoder"):
        content[name] = prefixed(content[name], "_orig_mod.")
    head = {}
    for key, value in n.head.state_dict().items():
        part, index, leaf = key.split(".")
        head[f"module.{part}.{DITI_NAMES[part][int(index)]}.{leaf}"] = value
    torch.save(content | {"ssl_model": head, "sgd_scheduler_lr": {"last_epoch": 3, "base_lrs": [1e-4]}}, path)
    return path


def diffae_content(n: Networks, other: Networks) -> dict[str, Any]:
    state = prefixed(dict(other.unet.state_dict()), "model.") | prefixed(
        dict(n.unet.state_dict()), "ema_model."
    )
    return {
        "epoch": 0,
        "global_step": 9,
        "pytorch-lightning_version": "1.4.5",
        "state_dict": state | {"x_T": torch.randn(8, 3, 8, 8)},
        "optimizer_states": [adam_of({})],
        "lr_schedulers": [],
    }


def diffae(path: Path, n: Networks, other: Networks) -> Path:
    torch.save(diffae_content(n, other) | {"hyper_parameters": {"lr": 1e-4, "name": "ffhq128_ddpm"}}, path)
    return path


def guided_diffusion(path: Path, n: Networks, other: Networks) -> Path:
    torch.save(n.unet.state_dict(), path)
    return path


def legacy(path: Path, n: Networks, other: Networks) -> Path:
    """A flat file as torch before 1.6 wrote it: no zip archive."""
    torch.save(n.unet.state_dict(), path, _use_new_zipfile_serialization=False)
    return path


def flat_safetensors(path: Path, n: Networks, other: Networks) -> Path:
    save_file(dict(n.unet.state_dict()), path)
    return path


def native(path: Path, n: Networks, other: Networks) -> Path:
    save_unet(n.unet, path, contract=ImageContract(px=16, steps=1000, beta_start=1e-4, beta_end=0.02))
    return path


def simsiam(path: Path, n: Networks, other: Networks) -> Path:
    """The official checkpoint: ImageNet's stem, the projector as ``encoder.fc``, all under DDP."""
    encoder = awake(ResNet("resnet10", 4, 32, "imagenet"))
    projector = nn.Sequential(nn.Linear(32, 32, bias=False), nn.BatchNorm1d(32), nn.ReLU(), nn.Linear(32, 8))
    predictor = nn.Sequential(nn.Linear(8, 4, bias=False), nn.BatchNorm1d(4), nn.ReLU(), nn.Linear(4, 8))
    state = (
        prefixed(dict(encoder.state_dict()), "module.encoder.")
        | prefixed(dict(projector.state_dict()), "module.encoder.fc.")
        | prefixed(dict(predictor.state_dict()), "module.predictor.")
    )
    torch.save({"epoch": 100, "arch": "resnet50", "state_dict": state, "optimizer": adam_of({})}, path)
    return path


def diffusers_config(config: UNetConfig, px: int = 16) -> dict[str, Any]:
    """config.json of a model of DDPM's design, as google/ddpm-cifar10-32 has it, written out by hand."""
    attended = [2**i in config.attention for i in range(len(config.channel_mult))]
    return {
        "_class_name": "UNet2DModel",
        "_diffusers_version": "0.0.4",
        "act_fn": "silu",
        "attention_head_dim": None,
        "block_out_channels": config.widths(),
        "center_input_sample": False,
        "down_block_types": ["AttnDownBlock2D" if a else "DownBlock2D" for a in attended],
        "downsample_padding": config.padding,
        "flip_sin_to_cos": False,
        "freq_shift": 1,
        "in_channels": 3,
        "layers_per_block": config.blocks,
        "mid_block_scale_factor": 1,
        "norm_eps": config.eps,
        "norm_num_groups": config.groups,
        "out_channels": 3,
        "sample_size": px,
        "time_embedding_type": "positional",
        "up_block_types": ["AttnUpBlock2D" if a else "UpBlock2D" for a in reversed(attended)],
    }


SCHEDULER = {
    "_class_name": "DDPMScheduler",
    "beta_end": 0.02,
    "beta_schedule": "linear",
    "beta_start": 0.0001,
    "num_train_timesteps": 1000,
}


def diffusers(path: Path, n: Networks, other: Networks, scheduler: dict | None = SCHEDULER) -> Path:
    """A folder of google/ddpm-cifar10-32's kind, its tensors written by diffusers itself."""
    from diffusers import UNet2DModel

    stated = diffusers_config(DDPM)
    model = awake(UNet2DModel(**{key: value for key, value in stated.items() if not key.startswith("_")}))
    path.mkdir()
    (path / "config.json").write_text(json.dumps(stated))
    if scheduler is not None:
        (path / "scheduler_config.json").write_text(json.dumps(scheduler))
    save_file(dict(model.state_dict()), path / "diffusion_pytorch_model.safetensors")
    return path


def exported(path: Path, n: Networks, other: Networks) -> Path:
    s = n.states()
    parts = Parts(
        path,
        path,
        "",
        unet=s["unet"],
        config=n.unet.config,
        decoder=s["decoder"],
        encoder=s["encoder"],
        encoder_config=replace(ENCODER, px=16),
        contract=ImageContract(px=16),
    )
    write_export(path, parts, {"made": "by a test"})
    return path


Write = Callable[[Path, Networks, Networks], Path]
WRITERS: dict[str, Write] = {
    "pdae_model": pdae_model,
    "pdae_pair": pdae_pair,
    "diti": diti,
    "diffae": diffae,
    "guided_diffusion": guided_diffusion,
    "legacy": legacy,
    "flat_safetensors": flat_safetensors,
    "native": native,
    "simsiam": simsiam,
    "diffusers": diffusers,
    "exported": exported,
}
