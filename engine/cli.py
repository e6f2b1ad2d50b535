"""The command line: ``diffsiam <command>``.

Commands import what they need when they run, so that help and usage errors are answered at once.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from engine.command_line import Overrides, group
from engine.config_commands import register as register_config
from engine.doctor.commands import register as register_doctor
from engine.edit.commands import register as register_edits
from engine.errors import UsageError
from engine.history.commands import register as register_runs
from engine.report.commands import register as register_reports

app = group()
config_app, runs_app = group("Look at configs."), group("List, compare, reproduce, prune runs.")
app.add_typer(config_app, name="config")
app.add_typer(runs_app, name="runs")


@app.callback()
def about() -> None:
    """DiffSiam: image representations, fine to coarse, from what a frozen diffusion model loses."""


@app.command()
def train(
    config: Annotated[Path, typer.Option(help="JSON file, such as configs/quickstart.json.")],
    overrides: Overrides = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print what would run and what it costs, and stop.")
    ] = False,
) -> None:
    """Train on one rank; the same as engine/train.py, which the deepspeed launcher starts on several."""
    from engine.train import main as run

    arguments = ["--config", str(config), *(overrides or []), *(["--dry-run"] if dry_run else [])]
    raise typer.Exit(run(arguments))


@app.command()
def plan(
    config: Annotated[Path, typer.Option(help="JSON file, such as configs/bedroom.json.")],
    overrides: Overrides = None,
    gpus: Annotated[int, typer.Option(help="How many.")] = 1,
    gpu: Annotated[str, typer.Option(help="a100-40, a100-80, h100, h200, ... (a wrong name lists all).")] = (
        "a100-80"
    ),
    assume: Annotated[
        list[str] | None, typer.Option(help="name=number in place of a printed assumption; repeatable.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Forecast time, memory and communication on GPUs, up to 1,024; needs neither them nor images."""
    from engine.scaling import assume as assumptions
    from engine.scaling import gpu_named

    chosen, assumed = gpu_named(gpu), assumptions(assume or [])
    if gpus < 1:
        raise UsageError(f"--gpus {gpus}: use 1 or more")
    from engine.config_file import load
    from engine.forecast import plan as run
    from engine.forecast import show

    report = run(load(config, overrides or [], inputs=False), gpus, chosen, assumed)
    if as_json:
        import json

        print(json.dumps(report, indent=2))
    else:
        show(report)


@app.command()
def rooms(
    px: Annotated[int, typer.Option(help="Side of an image in pixels, 16 to 128.")] = 64,
    out: Annotated[Path, typer.Option(help="Where to write the sheet.")] = Path("rooms.png"),
    seed: Annotated[int, typer.Option(help="Of the rooms drawn.")] = 0,
) -> None:
    """The factors of the procedural rooms with their measured granularity, and a sheet that shows them."""
    from engine import screen
    from engine.data.rooms import FACTORS, granularity
    from engine.rooms_sheet import rooms_sheet
    from engine.sheet import save

    change = granularity(px, seed=seed)
    rows = [[f.name, f.granularity, f"{change[f.name]:.2e}", ", ".join(f.values)] for f in FACTORS]
    columns = ["factor", "designed as", "mean squared change of a pixel", "values"]
    screen.table(columns, rows, f"rooms of {px} px, pixels in [0, 1]")
    screen.line(f"written: {save(rooms_sheet(px, seed), out)}")


Split = Annotated[str, typer.Option(help="Part of a published set: train, valid, test or all.")]
Kind = Annotated[str, typer.Option(help="What it is, where the content does not tell (data.source).")]


@app.command()
def inspect(
    path: Annotated[Path, typer.Argument(help="Folder, LMDB, tar, CIFAR batches, prepared set.")],
    split: Split = "train",
    source: Kind = "auto",
    px: Annotated[int, typer.Option(help="Side of the images on the sheet in pixels.")] = 128,
    sheet: Annotated[Path, typer.Option(help="Where to write the contact sheet.")] = Path("images.png"),
    everything: Annotated[bool, typer.Option("--all", help="Decode every image, not 1,000.")] = False,
    threads: Annotated[int, typer.Option(help="That decode.")] = 2,
) -> None:
    """What a set of images is: kind, number, sizes, modes, classes, broken ones, and a contact sheet."""
    from engine.data.looking import inspect as look

    look(_source(source, path, px, split), everything, px, sheet, threads)


@app.command()
def prepare(
    path: Annotated[Path, typer.Argument(metavar="SOURCE", help="Whatever `diffsiam inspect` knows.")],
    out: Annotated[Path, typer.Argument(metavar="DEST", help="Folder to make, or to go on with.")],
    px: Annotated[int, typer.Option(help="Side of the images in pixels.")] = 128,
    kind: Annotated[
        str, typer.Option("--format", help="jpeg (4:4:4), raw (pixels) or auto: raw up to 64 px.")
    ] = "auto",
    quality: Annotated[int, typer.Option(min=1, max=100, help="Of JPEGs.")] = 95,
    split: Split = "train",
    source: Kind = "auto",
    workers: Annotated[int, typer.Option(min=1, help="Processes.")] = 2,
    broken: Annotated[
        int | None, typer.Option(help="Images that may be broken (default 0.1 %, at most 1000).")
    ] = None,
) -> None:
    """Make a set that loads fast: decoded and resized once, verified, with a contact sheet.

    The same command goes on where it was stopped.
    """
    from engine import screen
    from engine.data.prepare import SHEET
    from engine.data.prepare import prepare as run

    if kind not in ("auto", "jpeg", "raw"):
        raise UsageError(f"--format {kind}: use jpeg, raw or auto")
    made = run(_source(source, path, px, split), out, px, kind, quality, workers, broken)
    size = sum(shard["bytes"] for shard in made["shards"])
    broke = f", {len(made['broken'])} broken ones left out" if made["broken"] else ""
    screen.line(
        f"written: {out}: {made['count']:,} images of {px} px, {made['format']}, {size:,} bytes{broke}"
    )
    screen.line(f"look at {out / SHEET}; train with data.path={out} data.px={px}")


def _source(kind: str, path: Path, px: int, split: str) -> Any:
    from engine.data.sources import open_source

    if split not in ("train", "valid", "test", "all"):
        raise UsageError(f"--split {split}: use train, valid, test or all")
    return open_source(kind, path, px, 0, 1, split)  # type: ignore[arg-type]


@app.command()
def convert(
    source: Annotated[Path, typer.Argument(metavar="IN", help="File, or folder of diffusers or of export.")],
    out: Annotated[Path, typer.Argument(metavar="OUT", help="What to write; must not exist.")],
    to: Annotated[str, typer.Option(help="pdae, diffusers or native (safetensors).")] = "native",
    heads: Annotated[
        int | None, typer.Option(help="Attention heads, where the file does not say (default 1).")
    ] = None,
    head_channels: Annotated[
        int | None, typer.Option(help="Width of a head instead (guided diffusion's 256-px models: 64).")
    ] = None,
    new_attention_order: Annotated[
        bool, typer.Option("--new-attention-order", help="Of guided diffusion, if it was trained with it.")
    ] = False,
    subsets: Annotated[
        int | None, typer.Option(help="Equal, time-tied subsets of z, for a pair of DiTi (64).")
    ] = None,
    isolated: Annotated[
        bool,
        typer.Option(
            "--isolated", help="Take the tensors of a file that needs foreign classes; run none of it."
        ),
    ] = False,
) -> None:
    """Published weights from one format into another; the format is recognised by content."""
    from diffsiam.weights import Assumed, WeightsError
    from diffsiam.weights.converting import convert as run
    from engine import screen

    assumed = Assumed(heads, head_channels, new_attention_order or None)
    try:
        parts, written = run(source, out, to, assumed, isolated, subsets)
    except (WeightsError, OSError) as error:
        raise UsageError(f"convert: {error}") from error
    screen.line(f"read: {source}: {parts.describe()}")
    screen.line(f"written: {out}: {to}, {written}")


@app.command()
def export(
    run_dir: Annotated[Path, typer.Argument(metavar="RUN", help="Directory of a training.")],
    out: Annotated[Path, typer.Argument(metavar="OUT", help="Folder to write; must not exist.")],
    without_frozen: Annotated[
        bool, typer.Option("--without-frozen", help="Leave the diffusion model out: slim, encodes only.")
    ] = False,
    onnx: Annotated[
        bool, typer.Option("--onnx", help="Also the encoder as encoder.onnx (extra onnx).")
    ] = False,
) -> None:
    """The averaged networks of a run as a folder for diffsiam.load, with a model card."""
    from engine import screen
    from engine.export import add_onnx, export_run

    described = export_run(run_dir, out, not without_frozen)
    screen.line(f"written: {out}: {', '.join(described['files'])}, model.json, README.md")
    if onnx:
        screen.line(f"written: {out / 'encoder.onnx'}: differs from torch by {add_onnx(out):.1e} at most")


@app.command()
def evaluate(
    run_dir: Annotated[Path, typer.Argument(metavar="RUN", help="Directory of a training.")],
    suite: Annotated[str, typer.Option(help="Names, separated by commas; all that apply by default.")] = "",
    data: Annotated[
        list[str] | None,
        typer.Option(help="PATH of an image folder, or NAME=PATH (CIFAR10, ..., CelebA, LFW); repeatable."),
    ] = None,
    recipe: Annotated[str, typer.Option(help="Of the linear suite: A, B, C, D or lbfgs.")] = "A",
    views: Annotated[int, typer.Option(min=0, help="Crops of an image that it trains on; 0: none.")] = 0,
    episodes: Annotated[int, typer.Option(min=1, help="Of the few-shot suite.")] = 2000,
    dci_model: Annotated[str, typer.Option(help="extra_trees, l1 or gbt.")] = "extra_trees",
    limit: Annotated[int | None, typer.Option(min=10, help="Images of each part; all by default.")] = None,
    out: Annotated[Path | None, typer.Option(help="RUN/evaluation by default.")] = None,
) -> None:
    """Linear, kNN, many-shot, few-shot, attributes, disentanglement, reconstruction: numbers and tables."""
    try:
        from engine.suites.evaluate import Options, Request, parse_names
        from engine.suites.evaluate import evaluate as run
    except ModuleNotFoundError as error:
        raise UsageError(f"{error.name} is not installed; pip install 'diffsiam[evaluation]'") from error
    options = Options(recipe, views, episodes, dci_model)
    run(run_dir, Request(parse_names(suite), tuple(data or ()), limit, options), out)


@app.command()
def replay(
    run_dir: Annotated[Path, typer.Argument(metavar="RUN", help="Directory of a training that left a dump.")],
) -> None:
    """Compute again what was not finite: are the images, the weights or the hardware to blame?"""
    from engine.replay import replay as run

    run(run_dir)


@app.command("verify-resume")
def verify_resume(
    config: Annotated[Path, typer.Option(help="JSON file, such as configs/quickstart.json.")],
    overrides: Overrides = None,
    steps: Annotated[int, typer.Option(min=2, help="To train.")] = 10,
    stop: Annotated[int | None, typer.Option(help="Before the stop; half of them by default.")] = None,
    ranks: Annotated[int, typer.Option(min=1, help="On this machine.")] = 1,
    folder: Annotated[
        Path | None, typer.Option(help="For the runs, which are removed; the temporary folder by default.")
    ] = None,
) -> None:
    """Prove that this config resumes exactly on this machine: straight and resumed, compared to the bit."""
    from engine.verify import verify_resume as run

    run(config, overrides or [], steps, steps // 2 if stop is None else stop, ranks, folder)


register_edits(app)
register_reports(app)
register_runs(runs_app)
register_doctor(app)
register_config(config_app)


def main() -> None:
    """The ``diffsiam`` command."""
    try:
        app()
    except SystemExit as leaving:
        if "engine.loop" in sys.modules and isinstance(leaving.code, int):  # threads of a training may hang
            from engine.train import leave

            leave(leaving.code)
        raise


if __name__ == "__main__":
    main()
