"""Combinations of config values that cannot run, and what to change.

Each rule reads the whole config and raises :class:`Conflict`, naming the key to change. Values that are wrong
by themselves are the schema's business (engine/config.py); files that must exist are checked when a config is
loaded (engine/config_file.py).
"""

from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING

from engine.errors import UsageError

if TYPE_CHECKING:
    from engine.config import Config

ROOMS_PX = (16, 128)
PDAE_ENCODER_PX = (64, 128)
# Below, oneDNN writes past its buffers in the backward pass of a 1x1 stride-2 convolution on channels_last.
SMALLEST_WIDTH = 8
ARCHITECTURE = (
    "base_channels",
    "channel_mult",
    "blocks",
    "attention",
)  # what a model built from nothing needs


class Conflict(ValueError):
    """Values that contradict each other; ``key`` is the dotted key to change."""

    def __init__(self, key: str, message: str):
        super().__init__(message)
        self.key = key


def check(config: Config) -> None:
    """Raise :class:`Conflict` for the first rule that ``config`` breaks."""
    rules = [_schedule, _batch, _data, _architecture, _unet_fits_image]
    if config.task == "diffsiam":
        rules += [_something_to_learn, _encoder, _subset_sizes, _stages, _subset_choice, _boundaries]
    for rule in rules:
        rule(config)


def micro_batch(config: Config, world: int) -> int:
    """Images per rank and accumulation step when ``world`` ranks share the global batch.

    Raises:
        UsageError: the global batch does not divide evenly, or leaves batch norm a single image.
    """
    batch, accumulation = config.train.batch_size, config.train.accumulation
    parts = world * accumulation
    if batch % parts:
        below, above = batch - batch % parts, batch + parts - batch % parts
        choices = " or ".join(f"train.batch_size={size}" for size in (below, above) if size)
        raise UsageError(
            f"train.batch_size = {batch} (global) cannot be shared by {world} ranks x train.accumulation = "
            f"{accumulation}; use {choices}, or another number of ranks"
        )
    norms = config.simsiam.weight > 0 or config.encoder.norm == "batch"
    if batch == accumulation and config.task == "diffsiam" and norms:
        raise UsageError(
            "train.batch_size = train.accumulation leaves one image per pass, and batch norm (of SimSiam, of "
            "encoder.norm) needs two; use a larger train.batch_size, or simsiam.weight=0 encoder.norm=none"
        )
    return batch // parts


def _schedule(config: Config) -> None:
    schedule = config.schedule
    if schedule.beta_start > schedule.beta_end:
        raise Conflict(
            "schedule.beta_start",
            f"schedule.beta_start = {schedule.beta_start} exceeds schedule.beta_end = {schedule.beta_end}",
        )


def _batch(config: Config) -> None:
    train = config.train
    if train.batch_size % train.accumulation:
        raise Conflict(
            "train.accumulation",
            f"train.accumulation = {train.accumulation} must divide train.batch_size = {train.batch_size}",
        )


def _data(config: Config) -> None:
    data, (smallest, largest) = config.data, ROOMS_PX
    if data.source == "rooms" and data.path is not None:
        raise Conflict(
            "data.path",
            f'data.path = "{data.path}" is not read by data.source = "rooms"; to train on it set '
            "data.source=auto",
        )
    if data.source == "rooms" and not smallest <= data.px <= largest:
        raise Conflict(
            "data.px", f'data.px = {data.px}: data.source = "rooms" draws {smallest} to {largest} px'
        )
    if config.report.factors and data.source != "rooms":
        raise Conflict(
            "report.factors",
            f'report.factors needs the known factors of data.source = "rooms", not "{data.source}"; '
            "set report.factors=false",
        )


def _architecture(config: Config) -> None:
    frozen = config.frozen
    if config.task == "diffusion":
        if frozen.weights is not None:
            raise Conflict(
                "frozen.weights",
                f'frozen.weights = "{frozen.weights}" is read by task = "diffsiam"; task = "diffusion" makes '
                "such weights: leave it null",
            )
        if frozen.learn_sigma:
            raise Conflict(
                "frozen.learn_sigma", "frozen.learn_sigma = true is not trained by Eq. 3.4; set it to false"
            )
    if config.task == "diffusion" or (config.needs_frozen and frozen.weights == "random"):
        missing = [f"frozen.{name}" for name in ARCHITECTURE if getattr(frozen, name) is None]
        if missing:
            what = 'task = "diffusion"' if config.task == "diffusion" else 'frozen.weights = "random"'
            raise Conflict(missing[0], f"{what} builds a model and needs its shape: set {', '.join(missing)}")


def _unet_fits_image(config: Config) -> None:
    frozen, px = config.frozen, config.data.px
    if frozen.channel_mult is None:
        return
    levels = len(frozen.channel_mult)
    factors = [2**level for level in range(levels)]
    if px % factors[-1]:
        raise Conflict(
            "data.px",
            f"data.px = {px} is halved {levels - 1} times by frozen.channel_mult ({levels} levels): "
            f"use a multiple of {factors[-1]}",
        )
    attention = frozen.attention or ()
    if unreached := [factor for factor in attention if factor not in factors]:
        raise Conflict(
            "frozen.attention",
            f"frozen.attention = {list(attention)}: the model never downsamples by {unreached[0]}, only by "
            f"{factors} (factors, not pixel sizes)",
        )
    if frozen.base_channels is None or frozen.heads is None:
        return
    attended = {frozen.channel_mult[factors.index(factor)] for factor in attention} | {
        frozen.channel_mult[-1]
    }
    for mult in sorted(attended):
        if frozen.base_channels * mult % frozen.heads:
            raise Conflict(
                "frozen.heads",
                f"frozen.heads = {frozen.heads} does not divide the {frozen.base_channels * mult} channels "
                "it attends over",
            )


def _something_to_learn(config: Config) -> None:
    if config.loss.weight == 0 and config.simsiam.weight == 0:
        raise Conflict("loss.weight", "loss.weight and simsiam.weight are both 0: there is nothing to train")


def _encoder(config: Config) -> None:
    if config.encoder.arch == "pdae" and config.data.px not in PDAE_ENCODER_PX:
        raise Conflict(
            "encoder.arch",
            f'encoder.arch = "pdae" exists for data.px = 64 and 128, not {config.data.px}; '
            "use resnet10, resnet18 or resnet50",
        )
    if config.encoder.arch != "pdae" and config.encoder.width < SMALLEST_WIDTH:
        raise Conflict(
            "encoder.width",
            f"encoder.width = {config.encoder.width}: on a CPU the backward pass of so narrow a shortcut "
            f"crashes inside torch; use {SMALLEST_WIDTH} or more",
        )


def _subset_sizes(config: Config) -> None:
    n, dim, steps = config.subsets.n, config.encoder.dim, config.schedule.steps
    if n >= steps:
        raise Conflict(
            "subsets.n",
            f"subsets.n = {n} must be below schedule.steps = {steps}: t + k stays inside the schedule",
        )
    if config.subsets.choice in ("time_tied", "profile") and n > _drawn_times(config):
        raise Conflict(
            "subsets.n",
            f"subsets.n = {n} exceeds the {_drawn_times(config)} times t that training draws of "
            f"schedule.steps = {steps}: each subset needs one",
        )
    if config.subsets.split == "balanced" and dim % n:
        raise Conflict("subsets.n", f"subsets.n = {n} must divide encoder.dim = {dim} into equal subsets")


def _stages(config: Config) -> None:
    subsets, steps = config.subsets, config.schedule.steps
    if subsets.split != "staged":
        return
    if subsets.stages is None or subsets.dims_per_stage is None:
        raise Conflict(
            "subsets.split", 'subsets.split = "staged" needs subsets.stages and subsets.dims_per_stage'
        )
    if len(subsets.stages) != len(subsets.dims_per_stage):
        raise Conflict(
            "subsets.dims_per_stage",
            f"subsets.dims_per_stage has {len(subsets.dims_per_stage)} entries for {len(subsets.stages)} "
            "subsets.stages",
        )
    if not _ascending(subsets.stages) or subsets.stages[-1] != steps:
        raise Conflict(
            "subsets.stages",
            f"subsets.stages = {list(subsets.stages)} must ascend and end at schedule.steps = {steps}",
        )
    if sum(subsets.dims_per_stage) != config.encoder.dim:
        raise Conflict(
            "subsets.dims_per_stage",
            f"subsets.dims_per_stage adds up to {sum(subsets.dims_per_stage)}, not to encoder.dim = "
            f"{config.encoder.dim}",
        )
    first_times = [
        -(-subset * steps // subsets.n) for subset in range(subsets.n)
    ]  # of each subset's window of t
    for start, end, dims in zip((0, *subsets.stages), subsets.stages, subsets.dims_per_stage, strict=False):
        held = sum(start <= t < end for t in first_times)
        if not 0 < held <= dims:
            raise Conflict(
                "subsets.dims_per_stage",
                f"the stage that ends at t = {end} has {dims} entries of z for {held} subsets; "
                "each subset needs an entry, each stage a subset",
            )


def _subset_choice(config: Config) -> None:
    subsets = config.subsets
    if subsets.choice == "full" and (subsets.detach or subsets.mask == "sequential"):
        key = "subsets.detach" if subsets.detach else "subsets.mask"
        raise Conflict(
            key,
            'subsets.choice = "full" uses all n subsets at once; with subsets.detach or subsets.mask = '
            '"sequential" only the last would be trained: set subsets.detach=false subsets.mask=hierarchical',
        )
    if subsets.mask == "sequential" and subsets.detach:
        raise Conflict(
            "subsets.detach",
            'subsets.mask = "sequential" shows the decoder z_k alone, so there is nothing before it to '
            "detach; set subsets.detach=false",
        )


def _boundaries(config: Config) -> None:
    subsets, drawn = config.subsets, _drawn_times(config)
    if subsets.choice != "profile":
        return
    if subsets.boundaries is None:
        if not config.needs_frozen:
            raise Conflict(
                "subsets.choice",
                'subsets.choice = "profile" measures its boundaries on the diffusion model, and '
                "loss.weight = 0 runs without one; set subsets.choice=full",
            )
        return
    if len(subsets.boundaries) != subsets.n - 1:
        raise Conflict(
            "subsets.boundaries",
            f"subsets.boundaries has {len(subsets.boundaries)} entries; subsets.n = {subsets.n} needs "
            f"{subsets.n - 1}, the first t of every subset after the first",
        )
    if not _ascending((0, *subsets.boundaries, drawn)):
        raise Conflict(
            "subsets.boundaries",
            f"subsets.boundaries = {list(subsets.boundaries)} must ascend strictly between 0 and {drawn}, "
            "the number of times t that training draws",
        )


def _drawn_times(config: Config) -> int:
    """Times t that training draws: all T, or those from which the longest jump stays inside the schedule."""
    return config.schedule.steps - (config.subsets.n if config.jump.steps == "k" else 0)


def _ascending(values: tuple[int, ...]) -> bool:
    return all(a < b for a, b in pairwise(values))
