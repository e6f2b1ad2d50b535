"""``diffsiam doctor``: what is there, what is chosen, how fast it is, what to do."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from engine import screen
from engine.doctor import speed
from engine.doctor.choices import Choice, choices, requirements
from engine.doctor.machine import Fact, busy, facts
from engine.doctor.packages import Package, packages
from engine.errors import UsageError

BUSY = 1.5  # runnable processes for each processor from which on times say little


@dataclass(frozen=True)
class Examined:
    """Everything that was found.

    Attributes:
        checks: by name; the text of what went wrong where a check could not run.
    """

    facts: list[Fact]
    packages: list[Package]
    choices: list[Choice]
    checks: dict[str, speed.Check | str]
    load: float

    @property
    def advice(self) -> list[str]:
        """What to do, the most important first."""
        wrong = [p for p in self.packages if not p.extra and not p.fits]
        found = [
            f"{p.name} {p.found} does not fit: {p.advice}" if p.found else f"{p.name} is missing: {p.advice}"
            for p in wrong
        ]
        found += [f"{fact.name}: {fact.advice}" for fact in self.facts if fact.advice]
        found += [f"{c.name}: {c.advice}" for c in self.choices if not c.fast and c.advice]
        for name, check in self.checks.items():
            if isinstance(check, str):
                found.append(f"{name}: its check fails: {check}")
            elif not check.ok:
                found.append(f"{name}: slower than {check.against}; `make bench` measures it at length")
        for extra, missing in self.missing_extras().items():
            if extra == "gpu" and not torch.cuda.is_available():
                continue
            found.append(f"pip install 'diffsiam[{extra}]' adds {', '.join(p.name for p in missing)}")
        return found

    def missing_extras(self) -> dict[str, list[Package]]:
        """The packages of each extra that are not there, or in another version."""
        missing: dict[str, list[Package]] = {}
        for package in self.packages:
            if package.extra and not package.fits:
                missing.setdefault(package.extra, []).append(package)
        return missing


def doctor(
    require: str = "", as_json: bool = False, quick: bool = False, folder: Path = Path("runs")
) -> None:
    """Examine this machine and print what was found.

    Args:
        require: names separated by commas, see :func:`engine.doctor.choices.requirements`.
        quick: leave the speed checks out.
        folder: where runs go.

    Raises:
        UsageError: something that is required is not there, or nobody knows it.
    """
    device = torch.device("cuda", 0) if torch.cuda.is_available() else torch.device("cpu")
    known = requirements(device)
    wanted = [name.strip() for name in require.split(",") if name.strip()]
    if unknown := [name for name in wanted if name not in known]:
        raise UsageError(f"--require {','.join(unknown)}: there are {', '.join(known)}")
    examined = examine(device, folder, quick)
    if as_json:
        print(json.dumps(to_dict(examined), indent=1))
    else:
        show(examined)
    if lacking := {name: reason for name in wanted if (reason := known[name]())}:
        raise UsageError(f"required and not there: {'; '.join(f'{n}: {r}' for n, r in lacking.items())}")


def examine(device: torch.device, folder: Path, quick: bool) -> Examined:
    """Look at everything; a check that fails is a finding, not an end."""
    load = busy()
    place = next(path for path in (folder.absolute(), *folder.absolute().parents) if path.is_dir())
    measures: Sequence[speed.Measure] = () if quick else speed.CHECKS
    return Examined(
        facts(folder),
        packages(),
        choices(device),
        {measure.__name__: _measured(measure, device, place) for measure in measures},
        load,
    )


def _measured(measure: speed.Measure, device: torch.device, place: Path) -> speed.Check | str:
    try:
        return measure(device, place)
    except Exception as error:  # whatever a broken machine raises is what it was asked for
        return f"{type(error).__name__}: {(str(error).splitlines() or [''])[0]}"


def show(examined: Examined) -> None:
    """Print it for people."""
    needed = [p for p in examined.packages if not p.extra]
    versions = ", ".join(f"{p.name} {p.found}" for p in needed if p.found)
    rows = [(fact.name, fact.value) for fact in examined.facts]
    screen.block([*rows, ("packages", versions)], "this machine")
    screen.block([(choice.name, choice.chosen) for choice in examined.choices], "what a run gets")
    checks = [(name, c) for name, c in examined.checks.items() if isinstance(c, speed.Check)]
    if checks:
        screen.table(
            ["", "measured", "expected", "unit", "expectation", ""],
            [[n, c.measured, c.expected, c.unit, c.against, "ok" if c.ok else "slow"] for n, c in checks],
            "speed",
        )
    if checks and examined.load > BUSY:
        screen.warn(
            f"{examined.load:.1f} processes for each processor: these are not the speeds of an idle machine"
        )
    for text in examined.advice:
        screen.line(f"- {text}")
    if not examined.advice:
        screen.line("nothing is missing")


def to_dict(examined: Examined) -> dict[str, Any]:
    """The same for programs."""
    return {
        "facts": [asdict(fact) for fact in examined.facts],
        "packages": [{**asdict(p), "fits": p.fits} for p in examined.packages],
        "choices": [asdict(choice) for choice in examined.choices],
        "speed": {
            name: {"failure": check} if isinstance(check, str) else {**asdict(check), "ok": check.ok}
            for name, check in examined.checks.items()
        },
        "load": examined.load,
        "advice": examined.advice,
    }
