"""Exactly the packages of an earlier build, where archives still have them."""

from __future__ import annotations

import os
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from typing import Any

from pipeline.errors import UnknownPackageError
from pipeline.model import Package
from pipeline.tools.apt_lists import Lists

SNAPSHOT, SECURITY_SNAPSHOT = "PHANTOM_SNAPSHOT_MIRROR", "PHANTOM_SNAPSHOT_SECURITY_MIRROR"
_SHOWN = 20  # packages in one message


@dataclass(frozen=True, kw_only=True)
class Pins:
    """What an earlier build was made of."""

    packages: tuple[Package, ...]
    left_out: tuple[str, ...] = ()
    """Packages that were only preferred, and conflicted with others."""


def snapshots() -> dict[str, Any]:
    """The archives as they once were, where the settings name snapshots of them, by the names that
    `Mirrors` has for their URIs."""
    told = {"main": os.environ.get(SNAPSHOT), "security": os.environ.get(SECURITY_SNAPSHOT)}
    return {name: uri.rstrip("/") for name, uri in told.items() if uri}


def check_there(lists: Lists, pins: Pins, where: str) -> None:
    """Raises UnknownPackageError where the archive has another version of a package, or none."""
    versions = lists.versions(package.name for package in pins.packages)
    gone = [
        package
        for package in pins.packages
        if package.version not in {version for version, _ in versions.get(package.name, ())}
    ]
    _refuse(gone, "has no more", where)


def check_same(pins: Pins, digests: Collection[str], where: str) -> None:
    """Raises UnknownPackageError where a package of the same version has other bytes."""
    others = [package for package in pins.packages if package.sha256 not in digests]
    _refuse(others, "has other packages in place of", where)


def _refuse(packages: Iterable[Package], what: str, where: str) -> None:
    words = [f"{package.name} {package.version}" for package in packages]
    if not words:
        return
    more = f" and {len(words) - _SHOWN} others" if len(words) > _SHOWN else ""
    raise UnknownPackageError(
        f"the archive {what} {', '.join(words[:_SHOWN])}{more}",
        where=where,
        packages=[package.name for package in packages],
        todo=f"set {SNAPSHOT} to a snapshot of the archive of the time of the build",
    )
