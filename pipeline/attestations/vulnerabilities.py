"""The known vulnerabilities of a build: its bill of materials against Debian's security tracker, or
an export of OSV.

The tracker's export (https://security-tracker.debian.org/tracker/data/json) has source packages,
their CVEs, and for each release which version has the correction.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline import records
from pipeline.attestations import osv
from pipeline.attestations.documents import read_document
from pipeline.attestations.sbom import SOURCE, SOURCE_VERSION
from pipeline.definitions.tracker import SEVERITIES
from pipeline.definitions.yaml import shown
from pipeline.disk.debian_packages import compare_versions
from pipeline.errors import UsageError

_MOST = 512 << 20  # bytes; the export had 70 MB in 2025
_ISSUE = re.compile(r"[A-Z]+-[0-9A-Z-]{1,60}")
_RELEASE = {"status": str, "urgency?": str, "fixed_version?": str, "introduced_version?": str}
_COMPONENTS = {"components": [{"name": str, "purl?": str, "properties?": [{"name": str}]}]}
_DISTRO = re.compile(r"[?&]distro=debian-([0-9]+)")
_CODENAMES = {"11": "bullseye", "12": "bookworm", "13": "trixie", "14": "forky"}


@dataclass(frozen=True, kw_only=True, order=True)
class Vulnerability:
    """An issue that is open in a source package of an image."""

    source: str
    version: str
    """That the image has, of the source package."""
    issue: str
    severity: str
    """One of `SEVERITIES`."""
    fixed: str | None
    """The version with the correction; None where the release has none yet."""
    packages: tuple[str, ...]
    """What the image has of the source package."""


def read_tracker(path: Path) -> Mapping[str, Any]:
    """The content of the tracker's export, or of one of OSV, in the tracker's shape. Raises
    UsageError for a file that is neither."""
    try:
        if osv.is_export(path):
            return osv.read_export(path, _CODENAMES)
        with records.opened(path) as file:
            data = file.read(_MOST + 1)
        if len(data) > _MOST:
            raise records.Unfit("it is too large")
        told: Mapping[str, Any] = records.parse(data, {str: {str: dict}})
    except (OSError, records.Unfit) as error:
        why = error.strerror if isinstance(error, OSError) else error
        raise UsageError(
            f"it is no export of Debian's security tracker, and none of OSV: {why}",
            where=shown(path),
            todo="fetch https://security-tracker.debian.org/tracker/data/json",
        ) from error
    return told


def find_worse(found: Iterable[Vulnerability], severity: str | None) -> list[Vulnerability]:
    """Those that are worse than a severity; of None, none is."""
    limit = len(SEVERITIES) if severity is None else SEVERITIES.index(severity)
    return [each for each in found if SEVERITIES.index(each.severity) > limit]


def list_components(content: Mapping[str, Any], folder: Path) -> list[Mapping[str, Any]]:
    """What the bill of materials lists of the build whose manifest lies in a folder. Raises
    UsageError where the build has none, GoneError, TamperedError, records.Unfit."""
    told = content["sbom"]
    if told is None:
        raise UsageError(
            "the build has no bill of materials: an earlier version made it",
            where=shown(folder),
            todo="build the appliance again",
        )
    listed: list[Mapping[str, Any]] = records.parse(read_document(folder, told), _COMPONENTS)[
        "components"
    ]
    return listed


def find_open(
    components: Iterable[Mapping[str, Any]], tracker: Mapping[str, Any]
) -> list[Vulnerability]:
    """The issues that are open in the components of a bill of materials, the worst first. Only
    packages of Debian's are known to the tracker."""
    found = [
        vulnerability
        for (release, source, version), packages in _by_source(components).items()
        for issue, told in tracker.get(source, {}).items()
        for vulnerability in _judge(release, source, version, packages, issue, told)
    ]
    return sorted(found, key=lambda each: (-SEVERITIES.index(each.severity), each))


def _by_source(
    components: Iterable[Mapping[str, Any]],
) -> dict[tuple[str, str, str], list[str]]:
    """The binary packages of each release, source package and version."""
    found: dict[tuple[str, str, str], list[str]] = {}
    for component in components:
        told = {each["name"]: each["value"] for each in component.get("properties", ())}
        release = _DISTRO.search(component.get("purl", ""))
        if release is None or SOURCE not in told:
            continue
        codename = _CODENAMES.get(release[1], release[1])
        key = codename, *_unsigned(told[SOURCE], told[SOURCE_VERSION])
        found.setdefault(key, []).append(component["name"])
    return found


def _unsigned(source: str, version: str) -> tuple[str, str]:
    """The source package that a signed kernel is of: `linux` 6.1.1-2 for `linux-signed-amd64`
    6.1.1+2. The tracker knows no other name of it."""
    if source.startswith("linux-signed-"):
        return "linux", version.replace("+", "-", 1)
    return source, version


def _judge(
    release: str,
    source: str,
    version: str,
    packages: list[str],
    issue: str,
    told: Mapping[str, Any],
) -> Iterator[Vulnerability]:
    """The issue, if the release's record does not say that this version is free of it."""
    record = told.get("releases", {}).get(release)
    if records.find_fault(record, _RELEASE) is not None or not _ISSUE.fullmatch(issue):
        return
    fixed = record.get("fixed_version")
    resolved = record["status"] == "resolved"
    introduced = record.get("introduced_version")
    if introduced is not None and compare_versions(version, introduced) < 0:
        return
    # 0: no version of the release ever had it.
    if resolved and (fixed in (None, "0") or compare_versions(version, fixed) >= 0):
        return
    yield Vulnerability(
        source=source,
        version=version,
        issue=issue,
        severity=_severity(record.get("urgency", "")),
        fixed=fixed if resolved else None,
        packages=tuple(sorted(packages)),
    )


def _severity(urgency: str) -> str:
    word = urgency.rstrip("*")
    return word if word in SEVERITIES else "unknown"
