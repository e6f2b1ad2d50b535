"""Time a figure of counterfactuals against a straight loop over its images: ``python -m bench.edit``.

The figure has one pair of images in both directions, seven subsets and five scales (0, 1/4, ..., 1). The loop
makes each image by itself, inversion and guided steps as Algorithm 2 prints them; it, too, makes none twice,
so both run the networks equally often per image. First their images must be equal; else nothing is timed and
the exit code is 1.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from bench import machine
from bench.gate import wake
from diffsiam.counterfactual import (
    Inverted,
    Jobs,
    counterfactual_jobs,
    counterfactuals,
    lerp,
    of_subsets,
    slerp,
)
from diffsiam.encoder import encode_images
from diffsiam.objective import DiffSiam
from diffsiam.sampler import Sampler
from diffsiam.sampling import Predict, Recipe, ddim, guided, moves_down, moves_up
from diffsiam.subsets import balanced_ends
from engine import screen
from engine.build import build_frozen, build_model, build_schedule, build_subsets
from engine.config import Config
from engine.config_file import load
from engine.errors import UsageError
from kernels.noise_jump.ref import to_unit_range

SUBSETS, SCALES = 7, (0.0, 0.25, 0.5, 0.75, 1.0)
LARGEST_ERROR = 2e-3  # of pixels in [-1, 1]: float32 rounding over all moves
CHOSEN = [
    "subsets.n=8",
    "subsets.choice=time_tied",
    "subsets.boundaries=null",
    "subsets.split=balanced",
    "report.factors=false",
]


class Figure:
    """Both ways to make it, from the same two images and random weights that are all alive."""

    def __init__(self, config: Config, moves: int, device: torch.device):
        self.recipe = Recipe(moves, moves)
        built = build_frozen(config)
        assert built is not None, "checked when the config was read"
        frozen = wake(built).to(device)
        self.schedule, subsets = build_schedule(config).to(device), build_subsets(config)
        assert subsets.ends == balanced_ends(config.encoder.dim, subsets.n), "equal subsets"
        model = wake(build_model(config, frozen, self.schedule, subsets)).to(device).eval()
        assert isinstance(model, DiffSiam)
        assert model.decoder is not None, "the configs of bench.edit have a diffusion loss"
        self.model, self.frozen, self.decoder, self.subsets = model, model.frozen, model.decoder, subsets
        generator = torch.Generator().manual_seed(config.seed)
        px = config.data.px
        images = torch.randint(0, 256, (2, px, px, 3), dtype=torch.uint8, generator=generator)
        self.x_0 = to_unit_range(images.to(device))
        self.choices = [of_subsets(f"{i}", subsets, [i]) for i in range(1, SUBSETS + 1)]
        self.calls = {"ours": 0, "loop": 0}

    def ours(self) -> Tensor:
        """(1, 2, 7, 5, 3, px, px)."""
        parts = self.frozen, self.decoder, self.schedule, self.subsets
        sampler = Sampler(*parts, self.recipe, batch_size=64)
        z = encode_images(self.model.encoder, self.x_0)
        images = Inverted(self.x_0, z, sampler.invert(self.x_0, z))
        found = counterfactuals(sampler, images, [(0, 1)], self.choices, SCALES)
        self.calls["ours"] = sampler.passes.images
        return found

    def loop(self) -> Tensor:
        """The same, image by image."""
        self.calls["loop"] = 0
        z = torch.cat([encode_images(self.model.encoder, x[None]) for x in self.x_0])
        up, down = (
            moves_up(self.schedule, self.recipe.inversion_moves),
            moves_down(self.schedule, self.recipe.moves),
        )
        x_T = torch.cat([ddim(x[None], self._guided(z[[i]]), up) for i, x in enumerate(self.x_0)])
        jobs, place = self.jobs().needed()
        made = []
        for a, b, scale, choice in zip(
            *map(Tensor.tolist, (jobs.a, jobs.b, jobs.scale, jobs.choice)), strict=True
        ):
            at = torch.tensor([scale], device=z.device)
            edited = lerp(z[[a]], z[[b]], jobs.dims[choice], at)
            made.append(ddim(slerp(x_T[[a]], x_T[[b]], at), self._guided(edited), down).clamp(-1, 1))
        return torch.cat(made)[place].unflatten(0, (1, 2, SUBSETS, len(SCALES)))

    def jobs(self) -> Jobs:
        """All images of the figure."""
        return counterfactual_jobs([(0, 1)], self.choices, SCALES, self.x_0.device)

    def needed_calls(self) -> int:
        """Passes per image that the algorithm cannot do without: two inversions and every distinct edit."""
        edits = 2 * (1 + SUBSETS * (len(SCALES) - 1))
        return 2 * self.recipe.inversion_moves + edits * self.recipe.moves

    def _guided(self, z: Tensor) -> Predict:
        predict = guided(self.frozen, self.decoder, self.schedule, self.subsets, z)

        def counted(x: Tensor, t: Tensor) -> Tensor:
            self.calls["loop"] += 1
            return predict(x, t)

        return counted


def bench(config: Config, moves: int, repeats: int) -> dict[str, Any]:
    """Gate and, if the images are equal, times: what ``--json`` prints."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    figure = Figure(config, moves, device)
    error = float((figure.ours() - figure.loop()).abs().max())
    calls = figure.calls | {"needed": figure.needed_calls(), "without_sharing": _unshared(figure)}
    report: dict[str, Any] = {
        "machine": machine.describe(),
        "px": config.data.px,
        "moves": moves,
        "images": len(figure.jobs()),
        "network_calls": calls,
        "largest_difference": error,
        "equal": error < LARGEST_ERROR and len({calls[k] for k in ("ours", "loop", "needed")}) == 1,
    }
    if not report["equal"]:
        return report
    seconds: dict[str, list[float]] = {"ours": [], "loop": []}
    for _ in range(repeats):  # in turns, so that a drifting clock meets both
        seconds["ours"].append(_timed(figure.ours, device))
        seconds["loop"].append(_timed(figure.loop, device))
    for name, spent in seconds.items():
        report[f"{name}_seconds"] = spent
        report[f"{name}_images_per_second"] = report["images"] / statistics.median(spent)
    report["ratio"] = report["ours_images_per_second"] / report["loop_images_per_second"]
    return report


def _unshared(figure: Figure) -> int:
    """Passes if every image of the figure were made, and inverted for."""
    return len(figure.jobs()) * figure.recipe.moves + 2 * figure.recipe.inversion_moves


def _timed(make: Callable[[], Tensor], device: torch.device) -> float:
    began = time.perf_counter()
    make()
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - began


def show(report: dict[str, Any]) -> None:
    """Print a report for people."""
    calls = report["network_calls"]
    screen.line(
        f"bench.edit: {report['images']} images of {report['px']} px, {report['moves']} moves each way; "
        f"network calls per image {calls['ours']} (loop {calls['loop']}, needed {calls['needed']}, without "
        f"sharing {calls['without_sharing']}); largest difference {report['largest_difference']:.1e}"
    )
    if "ratio" not in report:
        screen.warn("the two do not make the same images: nothing was timed")
        return
    rows = [[name, report[f"{name}_images_per_second"]] for name in ("ours", "loop")]
    screen.table(["figure", "images/s"], rows, f"one batch is {report['ratio']:.2f} times as fast")


def main(arguments: list[str]) -> int:
    """Run and return the exit code: 0 timed, 1 unequal images, 2 usage."""
    parser = argparse.ArgumentParser(prog="bench.edit", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--config", type=Path, default=Path("configs/quickstart.json"))
    parser.add_argument("--moves", type=int, default=10, help="DDIM moves each way (default: %(default)s)")
    parser.add_argument("--repeats", type=int, default=3, help="timings of each (default: %(default)s)")
    parser.add_argument("--threads", type=int, help="CPU threads (default: torch's choice)")
    parser.add_argument("--json", action="store_true", help="print the report as JSON")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="override keys of the config")
    options = parser.parse_intermixed_args(arguments)
    if options.threads:
        torch.set_num_threads(options.threads)
    try:
        config = load(options.config, [*CHOSEN, *options.overrides])
        if not config.needs_frozen:
            raise UsageError(f"{options.config}: has no diffusion model to edit with")
        report = bench(config, options.moves, options.repeats)
    except (UsageError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return UsageError.exit_code
    print(json.dumps(report, indent=2)) if options.json else show(report)
    return 0 if "ratio" in report else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
