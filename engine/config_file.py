"""Reading a config: JSON file, method preset and ``key=value`` overrides, with errors that point at the key.

    config = load("configs/bedroom.json", ["data.path=/data/bedroom", "train.batch_size=64"])

Later layers win: schema defaults, the method preset named in the file, the file's own keys, the method preset
named on the command line, the other overrides. What comes out holds explicit effective values, so a recorded
config means the same later even if a preset changes.
"""

from __future__ import annotations

import difflib
import hashlib
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from fnmatch import fnmatch
from functools import reduce
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from engine.config import Config
from engine.config_errors import Origins, explain, key_lines
from engine.errors import UsageError

ROOT = Path(__file__).resolve().parent.parent
ASSETS = Path(__file__).resolve().parent / "assets"
BUILTIN = "builtin:"


def _switches(
    choice: str = "random",
    detach: bool = False,
    jump: str = "k",
    diffusion: float = 1.0,
    simsiam: float = 1.0,
) -> dict[str, Any]:
    """Every key a method decides, so that naming one overrules all of another's."""
    return {
        "subsets": {"choice": choice, "mask": "hierarchical", "detach": detach},
        "jump": {"steps": jump, "time": "t"},
        "loss": {"weight": diffusion},
        "simsiam": {"weight": simsiam},
    }


METHODS = {
    # The thesis as printed: k independent of t, every visible subset trained, losses added up.
    "literal": _switches(),
    # Tied to t and detached, subsets separate attributes; otherwise the first subset takes everything.
    "diffsiam": _switches(choice="time_tied", detach=True),
    # PDAE (arXiv 2212.12990): the whole of z.
    "pdae": _switches(choice="full", jump="none", simsiam=0.0),
    # DiTi, the published sibling: as diffsiam, without the jump and without SimSiam.
    "diti": _switches(choice="time_tied", detach=True, jump="none", simsiam=0.0),
    # SimSiam (arXiv 2011.10566): no diffusion model at all.
    "simsiam": _switches(choice="full", jump="none", diffusion=0.0),
}

# Released diffusion models that fit a preset, by the preset's name.
_RELEASED = {
    "celeba64": "PDAE's celeba64 checkpoint.pt",
    "ffhq128": "PDAE's ffhq128 checkpoint.pt",
    "bedroom": "PDAE's bedroom128 checkpoint.pt",
}


def load(path: str | Path, overrides: Sequence[str] = (), inputs: bool = True) -> Config:
    """Read ``path``, apply ``overrides`` and check that what the run reads exists.

    Args:
        path: JSON file.
        overrides: ``key=value`` strings; the key is dotted, the value JSON or else a plain string.
        inputs: whether images and weights must be named and exist; False to look at a config only.

    Raises:
        UsageError: one line that says where, which key, what is wrong and what to write instead.
    """
    path = Path(path)
    text = _read(path)
    try:
        file = json.loads(text, object_pairs_hook=_no_duplicates)
    except json.JSONDecodeError as error:
        raise UsageError(f"{path}:{error.lineno}:{error.colno}: invalid JSON: {error.msg}") from None
    except (ValueError, RecursionError) as error:
        raise UsageError(f"{path}: {error}") from None
    if not isinstance(file, dict):
        raise UsageError(f"{path}: a config is a JSON object {{...}}, this is {type(file).__name__}")
    command_line = _parse(overrides)
    layers = (_preset(file), file, _preset(command_line), command_line)
    values = _with_places(reduce(_merge, layers), path.stem)
    written = {item.partition("=")[0].strip(): item for item in overrides}
    origins = Origins(str(path), key_lines(text), written)
    config = _validated(values, origins)
    if inputs:
        _require_inputs(config, path, origins)
    return config


def from_dict(values: dict[str, Any]) -> Config:
    """The config of a finished run from its recorded values; its data and weights need not be here any more.

    Raises:
        UsageError: the values are not a config of this version.
    """
    return _validated(values, Origins("recorded config", {}, {}))


def dump(config: Config) -> str:
    """``config`` as JSON text that :func:`load` reads back unchanged."""
    return json.dumps(config.to_dict(), indent=2) + "\n"


# What a run may differ in and still compute the same thing.
_NOT_HASHED = (
    "notes",
    "method",
    "run.*",
    "log.*",
    "report.*",
    "data.threads",
    "data.workers",
    "data.prefetch",
)
# What may change on resuming: length, step size, hardware and places, nothing that shapes tensors or draws.
_MAY_CHANGE = (
    *_NOT_HASHED,
    "train.steps",
    "train.accumulation",
    "train.precision",
    "train.compile",
    "train.ema_decay",
    "optimizer.lr",
    "optimizer.schedule",
    "optimizer.warmup_steps",
    "optimizer.weight_decay",
    "optimizer.grad_clip",
    "data.path",
    "data.resident",
    "data.broken",
    "frozen.weights",
    "parallel.*",
    "kernels.*",
)


def config_hash(config: Config) -> str:
    """SHA-256 (hex) over every value that changes the result: not run.dir, logging, reports, notes."""
    values = {key: value for key, value in flat(config.to_dict()).items() if not _matches(key, _NOT_HASHED)}
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()


@dataclass(frozen=True)
class Differences:
    """Changed keys as ``"key: old -> new"``: those a resumed run may change, and those it may not."""

    allowed: tuple[str, ...]
    refused: tuple[str, ...]


def compatible(old: dict[str, Any], new: Config) -> Differences:
    """What changed from the recorded config ``old`` to ``new``; keys that ``old`` lacks had the default."""
    before = flat(_merge(Config().to_dict(), old))
    after = flat(new.to_dict())
    allowed: list[str] = []
    refused: list[str] = []
    for key in before | after:
        a, b = (json.dumps(values[key]) if key in values else "absent" for values in (before, after))
        if a != b:
            (allowed if _matches(key, _MAY_CHANGE) else refused).append(f"{key}: {a} -> {b}")
    return Differences(tuple(allowed), tuple(refused))


def cautions(config: Config) -> list[str]:
    """Lines to print when the run starts: choices that are valid but that nobody should overlook."""
    lines = []
    if config.needs_frozen and config.frozen.weights == "random":
        lines.append(
            "frozen.weights=random: the diffusion model is UNTRAINED: for trials only, results mean nothing"
        )
    if config.simsiam.weight > 0 and config.data.augment == "none" and config.task == "diffsiam":
        lines.append(
            "data.augment=none: both SimSiam views are the same image, so its loss teaches no invariance"
        )
    if config.parallel.zero == 3 and config.log.gradnorm_every and config.task == "diffsiam":
        lines.append(
            "parallel.zero=3: gradient norms of the two losses are not measured (log.gradnorm_every)"
        )
    return lines


def _read(path: Path) -> str:
    if not path.is_file():
        folder = path.parent if any(path.parent.glob("*.json")) else ROOT / "configs"
        existing = sorted(str(file) for file in folder.glob("*.json"))
        raise UsageError(
            f"{path}: no such config file; there are {', '.join(existing) or f'none in {folder}'}"
        )
    try:
        return path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"{path}: cannot be read: {error}") from None


def _no_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A dict from JSON pairs; json would silently keep the last of two equal keys."""
    result: dict[str, Any] = {}
    for key, value in pairs:
        if key in result:
            raise ValueError(f'key "{key}" appears twice in one section')
        result[key] = value
    return result


def _parse(overrides: Iterable[str]) -> dict[str, Any]:
    """``["train.steps=5", ...]`` as nested dicts; a later override wins."""
    result: dict[str, Any] = {}
    for item in overrides:
        key, equals, text = item.partition("=")
        names = key.strip().split(".")
        if not equals or not all(name.isidentifier() for name in names):
            raise UsageError(f"override {item!r} is not key=value, such as train.batch_size=64")
        try:
            value = json.loads(text)
        except ValueError:
            value = text
        for name in reversed(names):
            value = {name: value}
        result = _merge(result, value)
    return result


def _preset(layer: dict[str, Any]) -> dict[str, Any]:
    method = layer.get("method")
    return METHODS.get(method, {}) if isinstance(method, str) else {}


def _with_places(values: dict[str, Any], name: str) -> dict[str, Any]:
    """``~`` expanded (a shell leaves it alone after ``=``), and the run directory named after the config."""
    for section, key in (("data", "path"), ("frozen", "weights"), ("run", "dir")):
        place = values[section].get(key) if isinstance(values.get(section), dict) else None
        if isinstance(place, str) and place.startswith("~"):
            values = _merge(values, {section: {key: str(Path(place).expanduser())}})
    run = values.get("run", {})
    if isinstance(run, dict) and run.get("dir") is None:
        values = _merge(values, {"run": {"dir": f"runs/{name}"}})
    return values


def _validated(values: dict[str, Any], origins: Origins) -> Config:
    try:
        # Through JSON, where a list is the natural form of a tuple even under strict validation.
        return Config.model_validate_json(json.dumps(values))
    except ValidationError as error:
        raise UsageError(explain(error, origins)) from None


def _require_inputs(config: Config, path: Path, origins: Origins) -> None:
    """Images and weights are named and exist; everything that is not named is reported at once."""
    data, weights = config.data.path, config.frozen.weights
    missing = []
    if config.data.source != "rooms" and data is None:
        how = "a folder of images, an LMDB or tar files"
        missing.append(("images", f"data.path=DIR ({how})"))
    if config.needs_frozen and weights is None:
        missing.append(("a diffusion model", f"frozen.weights=FILE ({_weights_hint(path)})"))
    if missing:
        raise UsageError(
            f"{path} needs {' and '.join(what for what, _ in missing)}: "
            f"{', and '.join(how for _, how in missing)}; or run without: {_without(missing)}"
        )
    if data is not None and not Path(data).exists():
        raise UsageError(f"{origins.where('data.path')}: data.path: {data} does not exist")
    if not config.needs_frozen or weights is None or weights == "random":
        return
    if weights.startswith(BUILTIN):
        _require_builtin(weights, origins)
    elif not Path(weights).exists():
        raise UsageError(
            f"{origins.where('frozen.weights')}: frozen.weights: {weights} does not exist; give a checkpoint "
            f"({_weights_hint(path)}), a shipped model (builtin:NAME) or random (untrained, for trials only)"
        )


def _weights_hint(path: Path) -> str:
    """Where the diffusion model of this config can come from."""
    pretraining = path.with_name(f"{path.stem}_dm.json")
    config = f"{pretraining}" if pretraining.is_file() else f"{path} task=diffusion"
    own = f"your own from `deepspeed engine/train.py --config {config} data.path=DIR`"
    return f"{_RELEASED[path.stem]} or {own}" if path.stem in _RELEASED else own


def _without(missing: list[tuple[str, str]]) -> str:
    rooms = "`deepspeed engine/train.py --config configs/quickstart.json` (procedural images, shipped model)"
    if any(what == "a diffusion model" for what, _ in missing):
        return f"frozen.weights=random (untrained, for trials only), or {rooms}"
    return rooms


def _builtins() -> list[str]:
    return [BUILTIN + file.stem for file in sorted(ASSETS.glob("rooms*.safetensors"))]


def _require_builtin(weights: str, origins: Origins) -> None:
    shipped = _builtins()
    if weights not in shipped:
        near = difflib.get_close_matches(weights, shipped, n=1) or shipped
        where = origins.where("frozen.weights")
        raise UsageError(f"{where}: frozen.weights: no shipped model {weights}; there is {', '.join(near)}")


def _merge(below: dict[str, Any], above: dict[str, Any]) -> dict[str, Any]:
    """``above`` laid over ``below``, section by section."""
    merged = dict(below)
    for key, value in above.items():
        both = isinstance(value, dict) and isinstance(merged.get(key), dict)
        merged[key] = _merge(merged[key], value) if both else value
    return merged


def flat(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested sections as one level of dotted keys."""
    found: dict[str, Any] = {}
    for key, value in values.items():
        found |= flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {prefix + key: value}
    return found


def _matches(key: str, patterns: Iterable[str]) -> bool:
    return any(fnmatch(key, pattern) for pattern in patterns)
