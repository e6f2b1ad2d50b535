"""The commands that edit images, for engine/cli.py. Their bodies are imported when they run."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from engine.edit.recipe_options import with_recipe

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
FixedStart = Annotated[bool, typer.Option("--fixed-x-T", help="Keep each image's own x_T (control).")]
Pairs = Annotated[int, typer.Option(help="Pairs of images where none is named.", min=1)]


def register(app: typer.Typer) -> None:
    """Add the commands to ``app``."""
    for command in (counterfactual, interpolate, manipulate, lost_attributes, inspect_model, measure_edits):
        app.command()(command)


@with_recipe()
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
    recipe: Any = None,
    precision: Precision = "auto",
    batch: Batch = 64,
    seed: Seed = 0,
    out: Out = None,
) -> None:
    """Counterfactuals: subsets of one image's z in another (thesis Algorithm 2, Fig. 4.1 and 4.2)."""
    from engine.edit import mixing

    asked = mixing.Asked(
        runs, image or [], data, pairs, scales, fixed_x_t, recipe, precision, batch, seed, out
    )
    mixing.counterfactual(asked, subsets, controls)


@with_recipe()
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
    recipe: Any = None,
    precision: Precision = "auto",
    batch: Batch = 64,
    seed: Seed = 0,
    out: Out = None,
) -> None:
    """Interpolation of all of z between two images (thesis Fig. 4.3 and 4.4)."""
    from engine.edit import mixing

    asked = mixing.Asked(
        runs, image or [], data, pairs, scales, fixed_x_t, recipe, precision, batch, seed, out
    )
    mixing.interpolation(asked, trajectory)


@with_recipe()
def manipulate(
    runs: Runs,
    image: Image = None,
    attribute: Annotated[
        list[str] | None,
        typer.Option(
            "--attribute",
            "-a",
            help="Of Rooms: FACTOR (its upper half) or FACTOR=VALUE; else an attribute, a class, a column.",
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
    recipe: Any = None,
    precision: Precision = "auto",
    batch: Batch = 64,
    seed: Seed = 0,
    out: Out = None,
) -> None:
    """Attributes of images, less and more (thesis Algorithm 3, Fig. 4.5 to 4.7)."""
    from engine.edit import manipulation

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


@with_recipe(inversion_moves=50, moves=25)
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
    recipe: Any = None,
    precision: Precision = "auto",
    batch: Batch = 64,
    seed: Seed = 0,
    out: Out = None,
) -> None:
    """Numbers of edits of Rooms: selectivity, exchange, side effects, artefacts, drift, reconstruction."""
    from engine.edit import numbers
    from engine.edit.perceptual import WeightFiles

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
