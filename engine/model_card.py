"""README.md of an exported folder: what the model is, how to use it, what was measured, what was not."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from diffsiam.weights import Parts
from engine.config import Config
from engine.json_files import read_object

TEMPLATE = Path(__file__).resolve().parent / "assets" / "model_card.md"
ARMS = {
    "loss_reduction": "loss below the frozen model's own",
    "mean_probe": "mean linear probe of the factors",
    "moved_by_all": "factors moved by swapping all of z",
    "distinct_factors": "different factors moved by single subsets",
}
NOTHING = "Nothing was measured: `diffsiam evaluate RUN` and exporting again would say more here."


def card(
    parts: Parts, config: Config, provenance: Mapping[str, Any], results: str, folder: str = "THIS FOLDER"
) -> str:
    """The card's text, from what the run recorded.

    Args:
        results: see :func:`measured`.
        folder: name of the export, for the lines that load it.
    """
    frozen, subsets = parts.extras["frozen"] or {}, parts.extras["subsets"]
    ends = subsets["ends"]
    source = Path(frozen["file"]).name if frozen else config.frozen.weights
    return TEMPLATE.read_text().format(
        run=provenance["run"],
        folder=folder,
        step=f"{provenance['step']:,}",
        batch=config.train.batch_size,
        method=config.method,
        px=config.data.px,
        dim=config.encoder.dim,
        data=f"{config.data.source}, {config.data.px} px, fingerprint {provenance['data_fingerprint'][:12]}",
        encoder=f"{config.encoder.arch}, d = {config.encoder.dim}",
        subsets=f"{len(ends)} of z, choice {subsets['choice']}, mask {subsets['mask']}, "
        f"detach {subsets['detach']}, ending at {_ends(ends)}",
        frozen=f"{source}" + (f", sha256 {frozen['sha256']}" if frozen else "")
        if config.needs_frozen
        else "none (SimSiam alone)",
        images=parts.contract.describe(),
        versions=", ".join(f"{name} {version}" for name, version in provenance["versions"].items()),
        config_hash=provenance["config_hash"],
        reconstructs=_reconstructs(parts),
        results=results,
    )


def measured(run_dir: Path) -> str:
    """What the run's report and evaluations say, as Markdown, or that they say nothing."""
    report, tables = run_dir / "report" / "evaluation.json", run_dir / "evaluation" / "tables.md"
    found = []
    if report.is_file():
        found.append(_arms(read_object(report).get("arms", {})))
    if tables.is_file():
        found.append(tables.read_text().strip())
    return "\n\n".join(found) or NOTHING


def _arms(arms: Mapping[str, Mapping[str, float | None]]) -> str:
    """The report's numbers of this run beside those it compares with."""
    rows = [f"| on held-out rooms | {' | '.join(arms)} |", f"|---|{'---|' * len(arms)}"]
    for key, what in ARMS.items():
        rows.append(f"| {what} | {' | '.join(_number(arm.get(key)) for arm in arms.values())} |")
    return "\n".join(rows)


def _number(value: float | None) -> str:
    if value is None:
        return ""
    return f"{value:.3f}" if isinstance(value, float) else str(value)


def _ends(ends: list[int]) -> str:
    shown = [str(end) for end in ends]
    return ", ".join(shown if len(shown) <= 8 else [*shown[:3], "...", shown[-1]])


def _reconstructs(parts: Parts) -> str:
    if parts.decoder is None:
        return "No decoder was trained: `encode` is all there is."
    if parts.unet is None:
        return 'The diffusion model is not included: `diffsiam.load(path, frozen="FILE")` reconstructs.'
    return "`model.reconstruct(images, z=edited)` gives images back, guided by z or by an edited z."
