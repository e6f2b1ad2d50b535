"""A pair of PDAE's 128-px size, 177 million parameters, loads, trains, is exported and reloaded.

It is trained on images of 16 px, which costs a sixtieth: no tensor depends on the resolution but the last
layer of PDAE's own encoder, in whose place the pair has the thesis' ResNet-10.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from published import Networks, prefixed
from training import tensors, write_config

import diffsiam
from diffsiam.decoder import Decoder
from diffsiam.encoder import EncoderConfig
from diffsiam.simsiam import SimSiam
from diffsiam.unet import UNet, UNetConfig
from engine.config_file import load
from engine.export import export_run
from engine.run import run
from engine.tasks import Representation

FFHQ_128 = UNetConfig(128, (1, 1, 2, 3, 4), blocks=2, attention=(8,))
PARAMETERS = 177_140_870  # frozen model and gradient estimator

CONFIG = {
    "method": "pdae",
    "data": {"source": "rooms", "px": 16, "count": 8, "threads": 1},
    "encoder": {"arch": "resnet10", "init": "weights"},
    "decoder": {"init": "weights"},
    "subsets": {"n": 64},
    "train": {"steps": 2, "batch_size": 1, "precision": "fp32"},
    "log": {
        "every": 1,
        "grid_every": 0,
        "grid_images": 1,
        "save_every": 2,
        "gradnorm_every": 0,
        "tensorboard": False,
    },
}


def pair(path: Path) -> Path:
    """ema_encoder and ema_decoder, with values that are cheap to draw."""
    with torch.device("meta"):
        n = Networks(UNet(FFHQ_128), Decoder(FFHQ_128, 512), EncoderConfig("resnet10").build(), SimSiam())
    drawn = torch.empty(99_991).uniform_(-1, 1)
    for module in (n.unet, n.decoder, n.encoder):
        module.to_empty(device="cpu")
        for name, value in module.state_dict().items():
            if value.dim() < 2:
                value.fill_(float(name.endswith(("weight", "var"))))
            else:
                value.view(-1).copy_(drawn.repeat(-(-value.numel() // len(drawn)))[: value.numel()])
                value.mul_(value[0].numel() ** -0.5)
    s = n.states()
    assert sum(v.numel() for v in (s["unet"] | s["decoder"]).values()) == PARAMETERS
    torch.save(
        {"ema_decoder": s["unet"] | s["decoder"], "ema_encoder": prefixed(s["encoder"], "encoder.")}, path
    )
    return path


@pytest.mark.slow
def test_it_loads_trains_two_steps_exports_and_reloads_bit_by_bit(tmp_path, one_rank, monkeypatch):
    monkeypatch.setattr(
        Representation, "draw", lambda *_: {}
    )  # sheets of samples cost more than all the rest
    source = pair(tmp_path / "checkpoint.pt")
    config = write_config(tmp_path / "ffhq128.json", CONFIG)
    run(load(config, [f"run.dir={tmp_path / 'run'}", f"frozen.weights={source}"]))
    state = json.loads((tmp_path / "run" / "checkpoints" / "step_00000002" / "state.json").read_text())
    assert state["weights"]["format"] == "pdae pair"
    assert state["weights"]["architecture"]["channel_mult"] == [1, 1, 2, 3, 4]

    export_run(tmp_path / "run", tmp_path / "exported")
    model, saved = diffsiam.load(tmp_path / "exported"), tensors(tmp_path / "run", 2)
    began = torch.load(source, weights_only=True, mmap=True)
    for name, prefix in (("encoder", "encoder."), ("decoder", "")):
        state, before = getattr(model, name).state_dict(), began[f"ema_{name}"]
        assert all(torch.equal(value, saved[f"ema:{name}.{key}"]) for key, value in state.items())
        assert any(not torch.equal(value, before[prefix + key]) for key, value in state.items()), name
    assert all(
        torch.equal(value, began["ema_decoder"][key]) for key, value in model.frozen.state_dict().items()
    )
    assert model.encode(torch.zeros(1, 16, 16, 3, dtype=torch.uint8)).shape == (1, 512)
