"""A run on Rooms, reported: before training what the frozen model loses, after it what each subset holds."""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from diffsiam.encoder import encode_images
from diffsiam.evaluation.compensation import compensation_loss
from diffsiam.evaluation.probe import probe_accuracy
from diffsiam.evaluation.profile import accuracy, lost_at, relative_error, x_0_predictions
from diffsiam.evaluation.swap import (
    ALL,
    ALL_AND_NOISE,
    CONTROLS,
    INVERTED,
    NOISE,
    NONE,
    Live,
    SwapMap,
    live_subsets,
    swap_test,
)
from diffsiam.objective import DiffSiam
from diffsiam.sampling import to_uint8
from diffsiam.schedule import Schedule
from diffsiam.unet import UNet
from engine import screen
from engine.build import untrained_encoder
from engine.config import Config
from engine.config_file import config_hash
from engine.data.rooms import FACTORS, LEVELS, VERSION, Rooms
from engine.oracle import load_oracle
from engine.plain_json import write_json
from engine.report import verdict
from engine.report.verdict import Arm
from engine.sheet import save, sheet
from kernels.noise_jump.ref import to_unit_range

NAMES = [factor.name for factor in FACTORS]  # fine to coarse
SEED = 20_221_122  # of every noise here: runs are compared on the same rooms with the same noise
PROFILE_SEED_OF_ROOMS = 1 << 40  # no training set's seed: the profile needs no held-out part of one
PROFILE_ROOMS = 96
PROFILE_STEPS = (0, 25, 50, 75, 100, 150, 200, 250, 300, 400, 500, 600, 800)  # thousandths of T
SHEET_ROOMS = 6
PROBE_TRAIN, PROBE_TEST = 4000, 1000
LOSS_ROOMS = 512
SHEET_PAIRS = 8
MOST_ROWS = 16  # subsets listed on the screen


@dataclass(frozen=True)
class Profile:
    """What the frozen model loses of Rooms.

    Attributes:
        times: (M,) times.
        error: (M,) error of x_0_hat relative to the variance of x_0.
        accuracy: (M, K) share of rooms whose factor is still read from x_0_hat.
        clean: (K,) the same on the rooms themselves.
        lost: (K,) time at which half of what is above chance is lost.
    """

    times: list[int]
    error: np.ndarray
    accuracy: np.ndarray
    clean: np.ndarray
    lost: np.ndarray


def before(frozen: UNet, schedule: Schedule, px: int, run_dir: Path) -> Profile:
    """Measure and show what the frozen model loses with the noise, factor by factor.

    Prints a table and writes ``report/profile.json`` and ``report/profile.png``.

    Raises:
        UsageError: there is no oracle for this size.
    """
    device = next(frozen.parameters()).device
    oracle, batch = load_oracle(px).to(device), _batch(device)
    rooms, indices = Rooms(px, PROFILE_SEED_OF_ROOMS, PROFILE_ROOMS), np.arange(PROFILE_ROOMS)
    levels = torch.from_numpy(rooms.factors(indices)).to(device)
    images = to_unit_range(torch.from_numpy(rooms.images(indices)).to(device))
    times = [step * schedule.steps // 1000 for step in PROFILE_STEPS]

    error, found, shown = [], [], [to_uint8(images[:SHEET_ROOMS])]
    for x_0_hat in x_0_predictions(frozen, schedule, images, SEED, times, batch):
        error.append(relative_error(x_0_hat, images))
        found.append(accuracy(x_0_hat, levels, oracle.read, batch))
        shown.append(to_uint8(x_0_hat[:SHEET_ROOMS]))
    clean, kept = accuracy(images, levels, oracle.read, batch), np.stack(found)
    profile = Profile(times, np.array(error), kept, clean, lost_at(times, kept, clean, 1 / LEVELS))

    _show_profile(profile)
    report = _report_dir(run_dir)
    write_json(report / "profile.json", {"rooms": VERSION, "px": px, "factors": NAMES, **asdict(profile)})
    save(
        sheet(
            torch.stack(shown, dim=1).cpu().numpy(),
            column_titles=["x_0", *(f"t = {t}" for t in times)],
            title="What the frozen model makes of x_t",
            framed=[(row, 0) for row in range(SHEET_ROOMS)],
        ),
        report / "profile.png",
    )
    return profile


def _show_profile(profile: Profile) -> None:
    rows = [["clean", "", *map(_share, profile.clean)]]
    for t, error, found in zip(profile.times, profile.error, profile.accuracy, strict=True):
        rows.append([str(t), f"{error:.3f}", *map(_share, found)])
    rows.append(["half lost at", "", *(_time(t) for t in profile.lost)])
    rows.append(["chance", "", *map(_share, 1 / LEVELS)])
    title = "What the frozen model still shows at time t: factors read from its x_0_hat, fine to coarse"
    screen.table(["t", "error", *_headings()], rows, title)


def after(
    model: DiffSiam, run_dir: Path, config: Config, pairs: int = 128, moves: int = 12
) -> dict[str, Any]:
    """Measure and show what the run has learned, on rooms it has never seen.

    Prints the verdict, the comparison and the map of subsets and factors, and writes
    ``report/evaluation.json`` and ``report/counterfactuals.png``.

    Args:
        model: averaged weights in eval mode.
        pairs, moves: of the swap test, which takes twice the moves where it inverts x_T.

    Returns:
        What evaluation.json holds.
    """
    begun, device = time.monotonic(), next(model.parameters()).device
    rooms = _held_out(config, device)
    probe, untrained_probe = _probe(model.encoder, rooms), _probe(_untrained(config, device), rooms)
    scale = config.report.guidance_scale
    causal = _causal(model, rooms, pairs, moves, scale) if model.decoder is not None else None
    baseline, source = verdict.read_baseline(config.data.px, VERSION)
    run, untrained = _arm(probe, causal), _arm(untrained_probe)
    parts = verdict.bar(run, untrained)
    arms: dict[str, Arm | None] = {"this run": run, "random encoder": untrained, "full z (PDAE)": baseline}
    record = {
        "verdict": verdict.sentence(parts),
        "bar": [asdict(part) | {"passes": part.passes} for part in parts],
        "arms": {name: arm and asdict(arm) for name, arm in arms.items()},
        "full_z_source": source,
        **_origin(config),
        "probe": {"this run": probe, "random encoder": untrained_probe},
        "causal": causal and _causal_record(causal, moves, scale),
        "seconds": time.monotonic() - begun,
    }

    report = _report_dir(run_dir)
    write_json(report / "evaluation.json", record)
    screen.line(f"Rooms: {record['verdict']}")
    screen.table(*verdict.comparison(arms), "Measured on held-out rooms")
    screen.line(f"full z (PDAE): {source}")
    if causal is not None:
        _show_map(causal, probe, scale)
        save(_counterfactuals(causal, rooms.images[-pairs:].cpu().numpy()), report / "counterfactuals.png")
    screen.line(f"report: {report}")
    return record


class HeldOut(NamedTuple):
    """Rooms that follow those of the training set."""

    images: Tensor  # (N, px, px, 3) uint8
    levels: Tensor  # (N, K) int64


class Causal(NamedTuple):
    """What g does with z."""

    loss_with_g: float
    loss_frozen: float
    swaps: SwapMap
    live: list[Live]

    @property
    def reduction(self) -> float:
        return 1 - self.loss_with_g / self.loss_frozen


def _held_out(config: Config, device: torch.device) -> HeldOut:
    count = PROBE_TRAIN + PROBE_TEST
    rooms, indices = Rooms(config.data.px, config.seed, config.data.count).held_out(count), np.arange(count)
    images, levels = torch.from_numpy(rooms.images(indices)), torch.from_numpy(rooms.factors(indices))
    return HeldOut(images.to(device), levels.to(device))


def _untrained(config: Config, device: torch.device) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        return untrained_encoder(config).to(device)


def _probe(encoder: nn.Module, rooms: HeldOut) -> np.ndarray:
    """Accuracy of a linear probe on z for each factor, (K,)."""
    parts = rooms.images.split(_batch(rooms.images.device))
    z, y = torch.cat([encode_images(encoder, to_unit_range(part)) for part in parts]), rooms.levels
    return probe_accuracy(z[:PROBE_TRAIN], y[:PROBE_TRAIN], z[PROBE_TRAIN:], y[PROBE_TRAIN:], LEVELS.tolist())


def _causal(model: DiffSiam, rooms: HeldOut, pairs: int, moves: int, scale: float) -> Causal:
    device = rooms.images.device
    oracle, batch = load_oracle(rooms.images.shape[1]).to(device), _batch(device)
    with_g, frozen = compensation_loss(model, rooms.images[:LOSS_ROOMS], SEED, batch)
    images, levels = rooms.images[-pairs:], rooms.levels[-pairs:]
    swaps = swap_test(model, images, levels, oracle.read, moves, 2 * moves, batch, SEED, scale)
    return Causal(with_g, frozen, swaps, live_subsets(swaps))


def _arm(probe: np.ndarray, causal: Causal | None = None) -> Arm:
    mean = float(probe.mean())
    if causal is None:
        return Arm(None, mean, None, None)
    all_moves, single_moves = verdict.moved_by_all(causal.swaps), verdict.distinct_factors(causal.live)
    return Arm(causal.reduction, mean, all_moves, single_moves)


def _origin(config: Config) -> dict[str, Any]:
    return {
        "rooms": VERSION,
        "px": config.data.px,
        "factors": NAMES,
        "method": config.method,
        "seed": config.seed,
        "steps": config.train.steps,
        "config_hash": config_hash(config),
    }


def _causal_record(causal: Causal, moves: int, scale: float) -> dict[str, Any]:
    swaps = causal.swaps
    return {
        "loss_with_g": causal.loss_with_g,
        "loss_frozen": causal.loss_frozen,
        "pairs": swaps.images.shape[1],
        "moves": moves,
        "guidance_scale": scale,
        "pairs_that_differ": swaps.differing,
        "rows": swaps.rows,
        "success": swaps.success,
        "side_effect": swaps.side_effect,
        "live": [{**live._asdict(), "factor": NAMES[live.factor]} for live in causal.live],
    }


def _show_map(causal: Causal, probe: np.ndarray, scale: float) -> None:
    swaps, alive = causal.swaps, {live.subset for live in causal.live}
    listed = sorted(_strongest(swaps)[:MOST_ROWS])
    rows = []
    for i in listed:
        name = f"{i}" if i in alive else f"{i} (dead)"
        rows.append([name, *map(_share, swaps.success[i - 1]), f"{swaps.drift[i - 1]:+.2f}"])
    for control in CONTROLS:
        rows.append([control, *map(_share, swaps.success[swaps.rows.index(control)]), ""])
    rows.append(["(a probe)", *map(_share, probe), ""])
    title = (
        "Chance that a factor becomes the other room's when this subset is swapped, fine to coarse "
        f"(guidance scale {scale:g})"
    )
    screen.table(["subset", *_headings(), "side effect"], rows, title)
    if len(listed) < swaps.n:
        screen.line(f"{len(alive)} of {swaps.n} subsets are live; listed: the {len(listed)} strongest")


def _strongest(swaps: SwapMap) -> list[int]:
    """Subsets 1..n by their largest effect on any factor, descending."""
    return (1 + np.argsort(-np.nan_to_num(swaps.effect).max(axis=1), kind="stable")).tolist()


def _counterfactuals(causal: Causal, images: np.ndarray) -> Image.Image:
    """One row a pair: a and b (framed), a decoded again, a with live subsets of b, all of its z, its x_T."""
    swaps = causal.swaps
    subsets = [live.subset for live in causal.live] or _strongest(swaps)[:2]
    chosen = [NONE, *(f"subset {i}" for i in subsets[:MOST_ROWS]), ALL, INVERTED, NOISE, ALL_AND_NOISE]
    pairs = min(SHEET_PAIRS, len(images))
    originals = [images[:pairs], np.roll(images, -1, axis=0)[:pairs]]
    decoded = [swaps.images[swaps.rows.index(row)][:pairs] for row in chosen]
    alive = {f"subset {live.subset}": NAMES[live.factor].replace("_", " ") for live in causal.live}
    told = [f"{row} {alive.get(row, '(dead)')}" if row.startswith("subset") else row for row in chosen]
    return sheet(
        np.stack(originals + decoded, axis=1),
        column_titles=["a", "b", *told],
        title="Room a with parts of room b",
        framed=[(row, column) for row in range(pairs) for column in (0, 1)],
    )


def _batch(device: torch.device) -> int:
    return 64 if device.type == "cpu" else 512  # on a CPU a small batch stays in the cache


def _headings() -> list[str]:
    return [name.replace("_", " ") for name in NAMES]


def _share(value: float) -> str:
    return "-" if np.isnan(value) else f"{value:.2f}".removeprefix("0")


def _time(t: float) -> str:
    return f"{t:.0f}" if np.isfinite(t) else "never"


def _report_dir(run_dir: Path) -> Path:
    path = run_dir / "report"
    path.mkdir(parents=True, exist_ok=True)
    return path
