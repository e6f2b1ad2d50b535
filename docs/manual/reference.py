"""Pages that are read off the code: config keys, commands, kernels, benchmarks."""

from __future__ import annotations

import ast
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent.parent
KERNELS = {
    "noise_jump": "noising every image to its own level, with noise that is a function of (seed, position)",
    "subset_mask": "the subsets of z that a step may see",
    "recon_loss": "the compensation loss, forward and backward",
    "adagn_silu": "group norm, modulations and SiLU, the operation between any two convolutions",
}
WHEN = """Which implementation runs is decided by `kernels.backend` (`auto`, `triton`, `reference`) and the
device; the first lines of a run and `diffsiam doctor` say which, and why."""


def config_page() -> str:
    """Every key of the config with type, default and meaning."""
    from engine.config_explain import explain
    from engine.config_file import METHODS, flat

    parts = [
        "# Config\n",
        "A config is a JSON file; any key can be overridden on the command line as `key=value`. "
        "`diffsiam config explain KEY` says the same as this page, `diffsiam config show FILE` prints all "
        "effective values. Defaults are the thesis' literal reading.\n",
    ]
    top = explain()
    parts += [_keys([entry for entry in top if entry.type != "section"])]
    for entry in top:
        if entry.type == "section":
            parts.append(f"## {entry.key}\n\n{entry.description}\n")
            parts.append(_keys(explain(entry.key)[1:]))
    parts.append("## Methods\n\n`method` is a preset of these keys; keys written beside it win.\n")
    methods = {name: flat(values) for name, values in METHODS.items()}
    keys = list(dict.fromkeys(key for values in methods.values() for key in values))
    parts.append(_table(["key", *methods]))
    parts.append(
        "\n".join(
            _row([f"`{key}`", *(f"`{json.dumps(v.get(key))}`" for v in methods.values())]) for key in keys
        )
    )
    return "\n".join(parts) + "\n"


def _keys(entries: list[Any]) -> str:
    rows = [
        _row([f"`{e.key}`", f"`{e.type}`", f"`{e.default}`", e.description.replace("\n", " ")])
        for e in entries
    ]
    return "\n".join([_table(["key", "type", "default", ""]), *rows, ""])


def _table(columns: list[str]) -> str:
    return f"| {' | '.join(columns)} |\n|{'---|' * len(columns)}"


def _row(cells: list[str]) -> str:
    # A pipe inside code separates no cells.
    return "| " + " | ".join(c if c.startswith("`") else c.replace("|", "\\|") for c in cells) + " |"


def commands_page() -> str:
    """The help of every command."""
    parts = [
        "# Commands\n",
        "`diffsiam COMMAND --help` says the same. `diffsiam --install-completion` teaches your shell the "
        "commands and the keys of the config. Output is plain text where it is not a terminal, or where "
        "`NO_COLOR` is set; ranks above 0 are silent.\n",
    ]
    for names, command in commands():
        context = command.make_context(f"diffsiam {' '.join(names)}", [], resilient_parsing=True)
        parts.append(f"## {' '.join(names)}\n\n```text\n{command.get_help(context)}\n```\n")
    return "\n".join(parts)


def commands(group: Any = None, names: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    """Every command of ``diffsiam`` by its name in parts, groups left out."""
    from typer.main import get_command

    from engine.cli import app
    from engine.examples import epilog

    group = get_command(app) if group is None else group
    for name, command in sorted(group.commands.items()):
        if hasattr(command, "commands"):
            yield from commands(command, (*names, name))
        else:
            command.epilog = epilog(" ".join((*names, name)))
            yield (*names, name), command


def kernel_page(name: str) -> str:
    """One operation: its formula, its reference, what it asks of its arguments, what the compiler made."""
    folder = ROOT / "kernels" / name
    reference, op = (folder / "ref.py").read_text(), (folder / "op.py").read_text()
    parts = [f"# {name}\n", f"{KERNELS[name][0].upper()}{KERNELS[name][1:]}.\n", WHEN, ""]
    kernel = ast.get_docstring(ast.parse((folder / "kernel.py").read_text()))
    parts += [
        f"```text\n{ast.get_docstring(ast.parse(reference))}\n```\n",
        "## The operation\n",
        f'``` python title="kernels/{name}/op.py"\n{_public(op, name)}\n```\n',
        "## Its reference\n",
        f'``` python title="kernels/{name}/ref.py"\n{_source(reference, name)}\n```\n',
        f"## Its kernel\n\n```text\n{kernel}\n```\n",
    ]
    parts.append(_compiled(name))
    return "\n".join(parts)


def _public(source: str, name: str) -> str:
    """Signature and docstring of a function."""
    node = _function(source, name)
    body = node.body[0]
    return "\n".join(source.splitlines()[node.lineno - 1 : body.end_lineno])


def _source(source: str, name: str) -> str:
    node = _function(source, name)
    return "\n".join(source.splitlines()[node.lineno - 1 : node.end_lineno])


def _function(source: str, name: str) -> ast.FunctionDef:
    return next(n for n in ast.parse(source).body if isinstance(n, ast.FunctionDef) and n.name == name)


def _compiled(name: str) -> str:
    """What the compiler makes of an operation's kernels, as the tests hold it."""
    table = json.loads((ROOT / "kernels" / "aot_expected.json").read_text())
    columns = [
        "kernel",
        "dtype",
        "arch",
        "registers",
        "spill_bytes",
        "shared_bytes",
        "load_bits",
        "store_bits",
    ]
    rows = [_row([str(row[column]) for column in columns]) for row in table if row["kernel"].startswith(name)]
    head = (
        "## What the compiler makes of it\n\n`python -m kernels.aot` compiles every kernel for sm_80 and "
        "sm_90 without a GPU; a test holds later versions to these registers and to no spills. Times: "
        "[benchmarks](../benchmarks/index.md).\n"
    )
    return "\n".join([head, _table(columns), *rows, ""])


def benchmarks_page() -> str:
    """BENCHMARKS.md, with what was measured on each device below."""
    return (ROOT / "BENCHMARKS.md").read_text()


def device_pages() -> dict[str, str]:
    """Reports of devices that were measured, by the name of their folder."""
    return {
        path.parent.name: path.read_text()
        for path in sorted((ROOT / "bench" / "results").glob("*/report.md"))
    }
