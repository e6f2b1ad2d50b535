"""The oracle: a small network that reads every factor of a room, and so judges what an edit has changed.

    python -m engine.oracle --px 16 --steps 4000 --out engine/assets

trains one from fresh renders, measures it on held-out ones and writes the weights and their card; it exits
with 1 when it reads any factor correctly in less than 98 % of the rooms. Training images are noised, blurred
and jittered a little, since the oracle will be shown what a diffusion model has reconstructed.
"""

from __future__ import annotations

import hashlib
import json
import sys
import time
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
import torch.nn.functional as F
import typer
from safetensors.torch import load, save
from torch import Tensor, nn

from engine.data.rooms import FACTORS, VERSION, Rooms
from engine.errors import CheckpointError, UsageError

ASSETS = Path(__file__).parent / "assets"
LEVELS = tuple(len(factor.values) for factor in FACTORS)
REQUIRED_ACCURACY = 0.98
HELD_OUT, BATCH, LEARNING_RATE, WEIGHT_DECAY = 5_000, 128, 4e-3, 1e-2
LARGEST_SIGMA, LARGEST_BLUR, LARGEST_JITTER = 0.1, 0.4, 0.02


class Oracle(nn.Module):
    """Reads K factors of ``levels`` values each from images (B, 3, px, px) in [-1, 1].

    One trunk for all, one linear head a factor. Features are pooled to 4 x 4 cells, not to one, because
    several factors are places. From 24 px on the second convolution halves the image, below that the third.
    """

    def __init__(self, levels: tuple[int, ...] = LEVELS, px: int = 16) -> None:
        super().__init__()
        self.levels, self.px = levels, px
        early, late = (2, 1) if px >= 24 else (1, 2)
        self.trunk = nn.Sequential(
            _block(3, 48, size=5, stride=2),
            _block(48, 64, size=3, stride=early),
            _block(64, 64, size=3, stride=late),
            nn.AdaptiveAvgPool2d(4),
            nn.Flatten(),
            nn.Linear(64 * 4 * 4, 96),
            nn.ReLU(),
        )
        self.heads = nn.ModuleList(nn.Linear(96, count) for count in levels)

    def forward(self, images: Tensor) -> list[Tensor]:
        """The logits of every factor: K tensors (B, levels of the factor)."""
        features = self.trunk(images)
        return [head(features) for head in self.heads]

    @torch.no_grad()
    def read(self, images: Tensor) -> Tensor:
        """The most likely level of every factor, (B, K) int64."""
        return torch.stack([logits.argmax(dim=1) for logits in self(images)], dim=1)


def _block(inputs: int, outputs: int, size: int, stride: int) -> nn.Sequential:
    conv = nn.Conv2d(inputs, outputs, size, stride, padding=size // 2, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(outputs), nn.ReLU())


def load_oracle(px: int, folder: Path = ASSETS) -> Oracle:
    """The trained oracle for images of ``px`` pixels a side, in evaluation mode, float32.

    Raises UsageError where none was trained for this size, CheckpointError where the weights are not those of
    the card or were trained on other rooms.
    """
    weights, card_path = _paths(px, folder)
    if not (weights.is_file() and card_path.is_file()):
        stems = [path.stem.removeprefix("oracle_rooms") for path in folder.glob("oracle_rooms*.safetensors")]
        sizes = ", ".join(sorted(stems, key=int)) or "none"
        raise UsageError(
            f"no oracle reads rooms of {px} px; {folder}; use a size it has ({sizes}) or train one"
        )
    card, stored = json.loads(card_path.read_text()), weights.read_bytes()
    if hashlib.sha256(stored).hexdigest() != card["sha256"]:
        raise CheckpointError(
            f"{weights} is damaged: its sha256 is not the one of its card; install it again"
        )
    if card["rooms"] != VERSION or card["factors"] != _factor_table():
        raise CheckpointError(f"{weights} reads {card['rooms']}, this is {VERSION}; train it again")
    oracle = Oracle(px=px)
    oracle.load_state_dict({name: tensor.float() for name, tensor in load(stored).items()})
    return oracle.eval().requires_grad_(False)


def _paths(px: int, folder: Path) -> tuple[Path, Path]:
    return folder / f"oracle_rooms{px}.safetensors", folder / f"oracle_rooms{px}.json"


def _factor_table() -> dict[str, list[str]]:
    return {factor.name: list(factor.values) for factor in FACTORS}


def batch(rooms: Rooms, start: int, count: int) -> tuple[Tensor, Tensor]:
    """Images (B, 3, px, px) in [-1, 1] and levels (B, K) of the rooms from ``start`` on."""
    indices = np.arange(start, start + count)
    images = torch.from_numpy(rooms.images(indices)).permute(0, 3, 1, 2).float() / 127.5 - 1
    return images, torch.from_numpy(rooms.factors(indices))


def degrade(images: Tensor, generator: torch.Generator, strength: float | None = None) -> Tensor:
    """Noise, blur and jitter the brightness of images in [-1, 1], as a reconstruction might.

    Each image gets its own amounts, uniform below the largest, or ``strength`` times the largest. The jitter
    is far below the distance between two values of the light factors.
    """

    def amount(largest: float) -> Tensor:
        share = torch.rand(len(images), 1, 1, 1, generator=generator)
        return largest * (share if strength is None else torch.full_like(share, strength))

    blurred = F.avg_pool2d(F.pad(images, (1, 1, 1, 1), mode="replicate"), 3, stride=1)
    images = torch.lerp(images, blurred, amount(LARGEST_BLUR))
    sign = torch.randint(0, 2, (len(images), 1, 1, 1), generator=generator) * 2 - 1
    images = (images + 1) * (1 + sign * amount(LARGEST_JITTER)) - 1
    return images + amount(LARGEST_SIGMA) * torch.randn(images.shape, generator=generator)


def train(px: int, steps: int, seed: int) -> tuple[Oracle, Rooms]:
    """Train an oracle on ``steps`` batches of rooms, each seen once; returns it and the rooms it saw."""
    torch.manual_seed(seed)
    generator = torch.Generator().manual_seed(seed)
    rooms, oracle = Rooms(px, seed, count=steps * BATCH), Oracle(px=px)
    optimizer = torch.optim.AdamW(oracle.parameters(), weight_decay=WEIGHT_DECAY)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, LEARNING_RATE, steps, pct_start=0.15)
    begin = time.perf_counter()
    for step in range(steps):
        images, levels = batch(rooms, step * BATCH, BATCH)
        logits = oracle(degrade(images, generator))
        loss = torch.stack([F.cross_entropy(scores, levels[:, k]) for k, scores in enumerate(logits)]).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        if step % 100 == 99 or step == steps - 1:
            seconds = time.perf_counter() - begin
            left = seconds / (step + 1) * (steps - step - 1)
            progress = f"step {step + 1}/{steps}  loss {loss.item():.4f}"
            print(f"{progress}  {seconds:.0f} s, {left:.0f} s left", flush=True)
    return oracle, rooms


def accuracy(oracle: Oracle, rooms: Rooms, strength: float = 0.0) -> dict[str, float]:
    """Share of ``rooms`` read correctly, by factor, from images degraded by ``strength`` in [0, 1]."""
    oracle.eval()
    generator = torch.Generator().manual_seed(rooms.seed)
    correct = torch.zeros(len(FACTORS))
    for start in range(0, len(rooms), 500):
        images, levels = batch(rooms, start, min(500, len(rooms) - start))
        seen = degrade(images, generator, strength) if strength else images
        correct += (oracle.read(seen) == levels).sum(dim=0)
    return {factor.name: round(float(n) / len(rooms), 4) for factor, n in zip(FACTORS, correct, strict=True)}


def write(oracle: Oracle, folder: Path, recipe: dict[str, object]) -> None:
    """Write the weights in half precision and, beside them, a card of the recipe with their sha256."""
    weights, card = _paths(oracle.px, folder)
    folder.mkdir(parents=True, exist_ok=True)
    state = oracle.state_dict().items()
    stored = save({name: tensor.half() for name, tensor in state if tensor.is_floating_point()})
    weights.write_bytes(stored)
    digest = hashlib.sha256(stored).hexdigest()
    card.write_text(json.dumps(recipe | {"sha256": digest, "bytes": len(stored)}, indent=2) + "\n")


def main(
    px: Annotated[int, typer.Option(help="size of the rooms")],
    steps: Annotated[int, typer.Option(min=1, help="batches of 128 rooms")] = 4_000,
    seed: Annotated[int, typer.Option(help="of the rooms and of the weights")] = 0,
    out: Annotated[Path, typer.Option(help="folder for weights and card")] = ASSETS,
) -> None:
    """Train an oracle, measure it on held-out rooms, and write it if it reads every factor."""
    torch.set_num_threads(1)
    try:
        oracle, rooms = train(px, steps, seed)
    except UsageError as error:
        print(error, file=sys.stderr)
        raise typer.Exit(UsageError.exit_code) from None
    oracle = oracle.half().float()  # measured as it will be stored
    held_out = rooms.held_out(HELD_OUT)
    read, degraded = accuracy(oracle, held_out), accuracy(oracle, held_out, strength=0.5)
    recipe = {
        "command": f"python -m engine.oracle --px {px} --steps {steps} --seed {seed} --out {out}",
        "rooms": VERSION,
        "px": px,
        "seed": seed,
        "steps": steps,
        "batch": BATCH,
        "factors": _factor_table(),
        "held_out": HELD_OUT,
        "accuracy": read,
        "accuracy_degraded": degraded,
        "torch": torch.__version__,
    }
    for name, share in read.items():
        print(f"{name:12} {share:7.2%}   noised and blurred {degraded[name]:7.2%}")
    if min(read.values()) < REQUIRED_ACCURACY:
        weak = ", ".join(name for name, share in read.items() if share < REQUIRED_ACCURACY)
        print(f"read in less than {REQUIRED_ACCURACY:.0%}: {weak}; train for more steps", file=sys.stderr)
        raise typer.Exit(1)
    write(oracle, out, recipe)


if __name__ == "__main__":
    typer.run(main)
