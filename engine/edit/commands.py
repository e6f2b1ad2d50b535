"""The commands that edit images, for engine/cli.py. Their bodies are imported when they run."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

import typer

Runs = Annotated[
    list[Path],
    typer.Argument(
        metavar="RUN...",
        help="Directory of a run, folder of an export, or a published pair; several are compared.",
    ),
]
Image = Annotated[
    list[str] | None,
    typer.Option(
        "--image", "-i", help="Path of an image, or its number in the training set; repeat for more."
    ),
]
Data = Annotated[Path | None, typer.Option(help="Folder that numbers count in (default: the training set).")]
Out = Annotated[Path | None, typer.Option(help="Folder to write (default: edits/COMMAND in the run).")]
Seed = Annotated[int, typer.Option(help="Of random x_T, noise and random controls.")]
Batch = Annotated[int, typer.Option(help="Images at once: memory, not results.", min=1)]
Precision = Annotated[
    Literal["auto", "bf16", "fp32"], typer.Option(help="auto: bf16 on CUDA, fp32 elsewhere.")
]
Up = Annotated[int, typer.Option(help="DDIM moves of the inversion.", min=1)]
Down = Annotated[int, typer.Option(help="DDIM moves of sampling.", min=1)]
Spacing = Annotated[
    Literal["ends", "strided"],
    typer.Option(help="ends: from the first to the last time (PDAE); strided: 0, s, 2 s, ... (DiTi)."),
]
Coefficient = Annotated[
    Literal["ddim", "train"],
    typer.Option("--guidance", help="ddim: score form of published samplers; train: w_t of the loss."),
]
Scale = Annotated[float, typer.Option(help="Factor of G; more makes z prevail over what x_t shows.", min=0.0)]
NoClamp = Annotated[bool, typer.Option("--no-clamp", help="Do not clip x_0_hat, as in the algorithms.")]
Mask = Annotated[
    Literal["auto", "bins", "none"],
    typer.Option(help="Subsets seen at time t: as trained, those of its bin, or all (the algorithms)."),
]
Unguided = Annotated[bool, typer.Option("--unguided-inversion", help="Invert by the diffusion model alone.")]
RandomStart = Annotated[bool, typer.Option("--random-x-T", help="Draw x_T instead of inverting.")]
FixedStart = Annotated[bool, typer.Option("--fixed-x-T", help="Keep each image's own x_T (control).")]
Pairs = Annotated[int, typer.Option(help="Pairs of images where none is named.", min=1)]


def register(app: typer.Typer) -> None:
    """Add the commands to ``app``."""
    for command in (counterfactual, interpolate, manipulate, lost_attributes, inspect_model, measure_edits):
        app.command()(command)


def counterfactual(
    runs: Runs,
    image: Image = None,
    data: Data = None,
    pairs: Pairs = 2,
    subsets: Annotated[
        str | None,
        typer.Option(help="Ranges such as 0-2,0-4 (half-open, from 0), all, none (default: by n)."),
    ] = None,
    scales: Annotated[str, typer.Option(help="Numbers or fractions in [0, 1].")] = "1/4,2/4,3/4,1",
    controls: Annotated[
        bool, typer.Option("--controls", help="Also none, all, random dimensions, and x_T fixed.")
    ] = False,
    fixed_x_t: FixedStart = False,
    inversion_moves: Up = 100,
    moves: Down = 100,
    spacing: Spacing = "ends",
    guidance: Coefficient = "ddim",
    guidance_scale: Scale = 1.0,
    no_clamp: NoClamp = False,
    mask: Mask = "auto",
    unguided_inversion: Unguided = False,
    random_x_t: RandomStart = False,
    precision: Precision = "auto",
    batch: Batch = 64,
    seed: Seed = 0,
    out: Out = None,
) -> None:
    """Counterfactuals: subsets of one image's z in another (thesis Algorithm 2, Fig. 4.1 and 4.2)."""
    from engine.edit import mixing

    recipe = _recipe(
        inversion_moves,
        moves,
        spacing,
        guidance,
        guidance_scale,
        no_clamp,
        mask,
        unguided_inversion,
        random_x_t,
    )
    asked = mixing.Asked(
        runs, image or [], data, pairs, scales, fixed_x_t, recipe, precision, batch, seed, out
    )
    mixing.counterfactual(asked, subsets, controls)


def interpolate(
    runs: Runs,
    image: Image = None,
    data: Data = None,
    pairs: Pairs = 2,
    scales: Annotated[str, typer.Option(help="Numbers or fractions in [0, 1].")] = "0,1/6,2/6,3/6,4/6,5/6,1",
    trajectory: Annotated[
        bool, typer.Option("--trajectory", help="Blend the guidance of both z at every step (PDAE).")
    ] = False,
    fixed_x_t: FixedStart = False,
    inversion_moves: Up = 100,
    moves: Down = 100,
    spacing: Spacing = "ends",
    guidance: Coefficient = "ddim",
    guidance_scale: Scale = 1.0,
    no_clamp: NoClamp = False,
    mask: Mask = "auto",
    unguided_inversion: Unguided = False,
    random_x_t: RandomStart = False,
    precision: Precision = "auto",
    batch: Batch = 64,
    seed: Seed = 0,
    out: Out = None,
) -> None:
    """Interpolation of all of z between two images (thesis Fig. 4.3 and 4.4)."""
    from engine.edit import mixing

    recipe = _recipe(
        inversion_moves,
        moves,
        spacing,
        guidance,
        guidance_scale,
        no_clamp,
        mask,
        unguided_inversion,
        random_x_t,
    )
    asked = mixing.Asked(
        runs, image or [], data, pairs, scales, fixed_x_t, recipe, precision, batch, seed, out
    )
    mixing.interpolation(asked, trajectory)


def manipulate(
    runs: Runs,
    image: Image = None,
    attribute: Annotated[
        list[str] | None,
        typer.Option(
            "--attribute",
            "-a",
            help="Of Rooms: FACTOR (its upper half) or FACTOR=VALUE; of a file: a column.",
        ),
    ] = None,
    labels: Annotated[
        Path | None, typer.Option(help="CSV of image and attributes, or CelebA's list_attr_celeba.txt.")
    ] = None,
    data: Data = None,
    dims: Annotated[str, typer.Option(help='d\', the dimensions that ProbMask keeps, or "all".')] = "all",
    published: Annotated[
        bool, typer.Option("--published", help="ProbMask as published: a drawn mask and no refit.")
    ] = False,
    scales: Annotated[str, typer.Option(help="Numbers or fractions, below 0 for less.")] = "-1,-1/2,1/2,1",
    unit: Annotated[
        Literal["thesis", "code"],
        typer.Option(help="thesis: lambda sigma w/|w|; code: times the square root of d."),
    ] = "code",
    samples: Annotated[int, typer.Option(help="Labelled images to learn from; 0: all.", min=0)] = 5000,
    count: Annotated[int, typer.Option(help="Images where none is named.", min=1)] = 3,
    inversion_moves: Up = 100,
    moves: Down = 100,
    spacing: Spacing = "ends",
    guidance: Coefficient = "ddim",
    guidance_scale: Scale = 1.0,
    no_clamp: NoClamp = False,
    mask: Mask = "auto",
    unguided_inversion: Unguided = False,
    random_x_t: RandomStart = False,
    precision: Precision = "auto",
    batch: Batch = 64,
    seed: Seed = 0,
    out: Out = None,
) -> None:
    """Attributes of images, less and more (thesis Algorithm 3, Fig. 4.5 to 4.7)."""
    from engine.edit import manipulation

    recipe = _recipe(
        inversion_moves,
        moves,
        spacing,
        guidance,
        guidance_scale,
        no_clamp,
        mask,
        unguided_inversion,
        random_x_t,
    )
    manipulation.manipulation(
        manipulation.Asked(
            runs,
            image or [],
            data,
            labels,
            attribute or [],
            dims,
            published,
            scales,
            unit,
            samples,
            count,
            recipe,
            precision,
            batch,
            seed,
            out,
        )
    )


Model = Annotated[
    str, typer.Argument(metavar="MODEL", help="Run, published file, or builtin:rooms16: its diffusion model.")
]
Px = Annotated[int | None, typer.Option(help="Side of an image, where the file does not say.")]


def lost_attributes(
    model: Model,
    image: Image = None,
    data: Data = None,
    count: Annotated[int, typer.Option(help="Images where none is named.", min=1)] = 3,
    times: Annotated[
        str | None, typer.Option(help="Times, separated by commas (default: 5 to 80 % of T).")
    ] = None,
    px: Px = None,
    seed: Seed = 0,
    out: Out = None,
) -> None:
    """What noise takes from images: x_t, and what the frozen model makes of it (thesis Fig. 1.1)."""
    from engine.edit import lost

    lost.lost_attributes(model, image or [], data, count, times, px, seed, out)


def inspect_model(
    model: Model,
    data: Data = None,
    count: Annotated[int, typer.Option(help="Images measured.", min=1)] = 64,
    px: Px = None,
    seed: Seed = 0,
    out: Out = None,
) -> None:
    """The reconstruction error of any diffusion model by time, and which factors of Rooms go when."""
    from engine.edit import lost

    lost.inspect_model(model, data, count, px, seed, out)


def measure_edits(
    runs: Runs,
    subsets: Annotated[str | None, typer.Option(help="Ranges that do not overlap (default: by n).")] = None,
    pairs: Annotated[int, typer.Option(help="Pairs of held-out rooms.", min=1)] = 16,
    pushed: Annotated[int, typer.Option(help="Rooms whose attributes are pushed.", min=1)] = 8,
    data: Annotated[
        Path | None, typer.Option(help="Folder of images to reconstruct, for models of other images.")
    ] = None,
    alexnet: Annotated[
        Path | None, typer.Option(help="torchvision's alexnet-owt-7be5be79.pth, for LPIPS.")
    ] = None,
    lpips: Annotated[Path | None, typer.Option(help="LPIPS' weights/v0.1/alex.pth.")] = None,
    inception: Annotated[
        Path | None, typer.Option(help="StyleGAN2-ADA's inception-2015-12-05.pt, for FID.")
    ] = None,
    inversion_moves: Up = 50,
    moves: Down = 25,
    spacing: Spacing = "ends",
    guidance: Coefficient = "ddim",
    guidance_scale: Scale = 1.0,
    no_clamp: NoClamp = False,
    mask: Mask = "auto",
    unguided_inversion: Unguided = False,
    random_x_t: RandomStart = False,
    precision: Precision = "auto",
    batch: Batch = 64,
    seed: Seed = 0,
    out: Out = None,
) -> None:
    """Numbers of edits of Rooms: selectivity, exchange, side effects, artefacts, drift, reconstruction."""
    from engine.edit import numbers
    from engine.edit.perceptual import WeightFiles

    recipe = _recipe(
        inversion_moves,
        moves,
        spacing,
        guidance,
        guidance_scale,
        no_clamp,
        mask,
        unguided_inversion,
        random_x_t,
    )
    numbers.measure_edits(
        numbers.Asked(
            runs,
            subsets,
            pairs,
            pushed,
            data,
            WeightFiles(alexnet, lpips, inception),
            recipe,
            precision,
            batch,
            seed,
            out,
        )
    )


def _recipe(
    inversion_moves: int,
    moves: int,
    spacing: Any,
    coefficient: Any,
    scale: float,
    no_clamp: bool,
    mask: Any,
    unguided_inversion: bool,
    random_x_T: bool,
) -> Any:
    from diffsiam.sampling import Recipe

    return Recipe(
        inversion_moves,
        moves,
        spacing,
        coefficient,
        not no_clamp,
        mask,
        not unguided_inversion,
        "random" if random_x_T else "inverted",
        scale,
    )
