"""Packages: what the project asks for, what is there, what to install."""

from __future__ import annotations

from dataclasses import dataclass
from importlib import metadata

from packaging.requirements import Requirement

PROJECT = "diffsiam"
OURS = "dev"  # the extra of those who change the code; `docs` and the others are a user's choice


@dataclass(frozen=True)
class Package:
    """One requirement of the project.

    Attributes:
        wanted: the versions that it takes, "" for any.
        found: the version that is installed, or None.
        extra: of which it is part; "" for the project itself.
    """

    name: str
    wanted: str
    found: str | None
    extra: str

    @property
    def fits(self) -> bool:
        wanted = Requirement(f"{self.name}{self.wanted}").specifier
        return self.found is not None and wanted.contains(self.found, prereleases=True)

    @property
    def advice(self) -> str:
        """The command that puts it right."""
        return f"pip install '{self.name}{self.wanted}'"


def packages() -> list[Package]:
    """All requirements of the project and of its extras, from its own metadata; [] where it is not installed
    as a package.
    """
    try:
        lines = metadata.requires(PROJECT) or []
    except metadata.PackageNotFoundError:
        return []
    found = []
    for line in lines:
        requirement = Requirement(line)
        extra = _extra_of(requirement)
        if requirement.name != PROJECT and extra != OURS and _applies(requirement, extra):
            version = installed(requirement.name)
            found.append(Package(requirement.name, str(requirement.specifier), version, extra))
    return found


def installed(name: str) -> str | None:
    """The version of a package, or None."""
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def _extra_of(requirement: Requirement) -> str:
    marker = str(requirement.marker or "")
    return marker.rpartition("extra == ")[2].strip('"') if "extra == " in marker else ""


def _applies(requirement: Requirement, extra: str) -> bool:
    return requirement.marker is None or requirement.marker.evaluate({"extra": extra})
