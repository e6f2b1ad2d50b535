"""The command line: ``diffsiam <command>``.

Commands import what they need when they run, so that help and usage errors are answered at once.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperGroup

from engine.doctor.commands import register as register_doctor
from engine.edit.commands import register
from engine.errors import CheckpointError, DataError, NumericsError, UsageError
from engine.examples import epilog
from engine.history.commands import register as register_runs

if TYPE_CHECKING:
    import numpy as np
    from PIL import Image

ROWS_OF_ROOMS = 2  # on the sheet, above the rows of single factors


class Commands(TyperGroup):
    """Commands whose help ends with examples, and whose errors are one line on standard error and an exit
    code of their own.
    """

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        command = super().get_command(ctx, cmd_name)
        if command is not None and command.epilog is None:
            command.epilog = epilog(cmd_name if ctx.parent is None else f"{self.name} {cmd_name}")
        return command

    def format_commands(self, ctx: Any, formatter: Any) -> None:
        named = [(name, self.get_command(ctx, name)) for name in self.list_commands(ctx)]
        with formatter.section("Commands"):
            formatter.write_dl([(name, command.get_short_help_str(10_000)) for name, command in named])

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except (UsageError, CheckpointError, DataError, NumericsError) as error:
            print(f"error: {error}", file=sys.stderr)
            raise typer.Exit(error.exit_code) from None


# Plain text: it is the same in a terminal, a file and a log, and takes half the time.
app = typer.Typer(
    cls=Commands,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"max_content_width": 110},
)
config_app = typer.Typer(cls=Commands, no_args_is_help=True, help="Look at configs.", rich_markup_mode=None)
app.add_typer(config_app, name="config")
runs_app = typer.Typer(
    cls=Commands, no_args_is_help=True, help="List, compare, reproduce, prune runs.", rich_markup_mode=None
)
app.add_typer(runs_app, name="runs")


def complete_name(incomplete: str) -> list[str]:
    """Keys of the config that begin so, for the shell."""
    from engine.config_explain import leaves

    return [key for key in leaves() if key.startswith(incomplete)]


def complete_key(incomplete: str) -> list[str]:
    """The same, ready for a value."""
    return [f"{key}=" for key in complete_name(incomplete)]


Overrides = Annotated[
    list[str] | None,
    typer.Argument(metavar="key=value", help="Keys to override.", autocompletion=complete_key),
]


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
def rooms(
    px: Annotated[int, typer.Option(help="Side of an image in pixels, 16 to 128.")] = 64,
    out: Annotated[Path, typer.Option(help="Where to write the sheet.")] = Path("rooms.png"),
    seed: Annotated[int, typer.Option(help="Of the rooms drawn.")] = 0,
) -> None:
    """The factors of the procedural rooms with their measured granularity, and a sheet that shows them."""
    from engine import screen
    from engine.data.rooms import FACTORS, granularity
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


register(app)
register_runs(runs_app)
register_doctor(app)


@config_app.command()
def show(
    config: Annotated[Path, typer.Argument(help="JSON file.")],
    overrides: Overrides = None,
) -> None:
    """Print every effective value: defaults, method, file and overrides together. Needs no images or
    weights."""
    from engine.config_file import dump, load

    print(dump(load(config, overrides or [], inputs=False)), end="")


@config_app.command()
def explain(
    key: Annotated[
        str | None,
        typer.Argument(
            help="Such as subsets.choice, or a section; none: all sections.", autocompletion=complete_name
        ),
    ] = None,
) -> None:
    """Say what a key means, what it may be and what it is by default."""
    from engine import screen
    from engine.config_explain import explain as entries

    found = entries(key)
    if len(found) == 1:
        entry = found[0]
        rows = [("type", entry.type), ("default", entry.default), ("", entry.description)]
        screen.block(rows, entry.key)
        return
    section, title = (found[1:], f"{key}: {found[0].description}") if key else (found, "")
    if title:
        screen.line(title)
    screen.table(
        ["key", "type", "default", ""],
        [[entry.key, entry.type, entry.default, entry.description] for entry in section],
    )


def rooms_sheet(px: int, seed: int) -> Image.Image:
    """Rooms of ``seed``, then one row per factor: the first room with that factor at each of its values.

    The values which that room has itself are framed.

    Raises:
        UsageError: for a size that cannot be drawn.
    """
    import numpy as np

    from engine.data.rooms import FACTORS, LEVELS, Rooms
    from engine.sheet import sheet

    columns = int(LEVELS.max())
    drawn = Rooms(px, seed, count=ROWS_OF_ROOMS * columns)
    images = drawn.images(np.arange(len(drawn))).reshape(ROWS_OF_ROOMS, columns, px, px, 3)
    first = drawn.factors(np.array([0]))[0]
    factor_rows = [factor_row(first, index, px, columns) for index in range(len(FACTORS))]
    names = ["rooms", *[""] * (ROWS_OF_ROOMS - 1), *(factor.name for factor in FACTORS)]
    own = [(ROWS_OF_ROOMS + index, int(level)) for index, level in enumerate(first)]
    return sheet(np.concatenate((images, factor_rows)), names, framed=[(0, 0), *own])


def factor_row(room: np.ndarray, factor: int, px: int, columns: int) -> np.ndarray:
    """A room's levels (12,) -> it at every value of one factor, white beyond, uint8 (columns, px, px, 3)."""
    import numpy as np

    from engine.data.rooms import LEVELS, render

    levels = np.tile(room, (LEVELS[factor], 1))
    levels[:, factor] = np.arange(LEVELS[factor])
    row = np.full((columns, px, px, 3), 255, np.uint8)
    row[: len(levels)] = render(levels, px)
    return row


def main() -> None:
    """The ``diffsiam`` command."""
    app()


if __name__ == "__main__":
    main()
