"""Test the thesis' claims on Rooms: ``python -m bench.claims --config configs/claims.json``.

Every model is trained and measured in turn, seed by seed, and the claims are decided from what is there. The
same command goes on where it stopped, on this machine or on another: results (one small file a model and
seed) are what it looks for, and a training that was cut short goes on from its checkpoint. ``--report`` only
decides, and writes docs/claims.md with its plots. The runs' folder gets claims.json for `diffsiam report`.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from engine.errors import CheckpointError, DataError, NumericsError, UsageError

RESULTS = Path(__file__).resolve().parents[1] / "results" / "claims"
SIMSIAM_WEIGHT = 0.001  # both gradients on the encoder are then within a factor of two, from step 100 on


def main(
    config: Annotated[Path, typer.Option(help="the recipe that all models share")],
    overrides: Annotated[list[str] | None, typer.Argument(metavar="[key=value]...")] = None,
    models: Annotated[str, typer.Option(help="names, separated by commas; all by default")] = "",
    seeds: Annotated[str, typer.Option(help="separated by commas")] = "0,1,2",
    results: Annotated[Path, typer.Option(help="folder of the results")] = RESULTS,
    runs: Annotated[Path, typer.Option(help="folder of the trainings")] = Path("runs/claims"),
    simsiam_weight: Annotated[
        float, typer.Option(help="of SimSiam beside the diffusion loss")
    ] = SIMSIAM_WEIGHT,
    report: Annotated[bool, typer.Option("--report", help="only decide from the results there are")] = False,
) -> None:
    """Train and measure what is missing, then decide."""
    from bench.claims import page
    from bench.claims.decide import Results
    from bench.claims.experiment import Experiment, Stopped, carry_out
    from engine import screen

    try:
        experiment = Experiment(config, tuple(overrides or ()), results, runs, simsiam_weight)
        names, numbers = _chosen(models, experiment.names()), _numbers(seeds)
        failed = [] if report else carry_out(experiment, names, numbers)
    except (UsageError, CheckpointError, DataError, NumericsError) as error:
        print(f"error: {error}", file=sys.stderr)
        raise typer.Exit(error.exit_code) from None
    except Stopped as request:
        print(request, file=sys.stderr)
        raise typer.Exit(128 + request.number) from None
    if results == RESULTS:
        screen.line(f"written: {page.write(Results(results), experiment.names(), config)}")
    if runs.is_dir():
        page.write_record(Results(results), runs)
    for what in failed:
        print(f"failed: {what}", file=sys.stderr)
    raise typer.Exit(bool(failed))


def _chosen(asked: str, known: list[str]) -> list[str]:
    names = asked.split(",") if asked else known
    for name in names:
        if name not in known:
            raise UsageError(f"--models: there is no {name!r}; there are {', '.join(known)}")
    return names


def _numbers(seeds: str) -> list[int]:
    try:
        return [int(seed) for seed in seeds.split(",")]
    except ValueError:
        raise UsageError(f"--seeds {seeds}: give numbers separated by commas, such as 0,1,2") from None


if __name__ == "__main__":
    typer.run(main)
