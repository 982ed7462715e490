"""An export of OSV (ossf.github.io/osv-schema): a ZIP file with a JSON file for each issue."""

from __future__ import annotations

import re
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from pipeline import records

_MOST_FILES, _MOST_BYTES = 1_000_000, 4 << 20  # of the export, and of one issue
_ECOSYSTEM = re.compile(r"Debian:([0-9]+)")
_CVE = re.compile(r"(?:DEBIAN-)?(CVE-[0-9]{4}-[0-9]{4,12})")
_ISSUE: Mapping[str, Any] = {"id": str, "affected?": [dict], "aliases?": [str], "upstream?": [str]}
_AFFECTED: Mapping[str, Any] = {
    "package": {"ecosystem": str, "name": str},
    "ranges?": [{"type": str, "events": [dict]}],
    "ecosystem_specific?": dict,
}


def is_export(path: Path) -> bool:
    """Whether a file may be an export of OSV, by how it begins. Raises OSError."""
    with records.opened(path) as file:
        return file.read(4) == b"PK\x03\x04"


def read_export(path: Path, codenames: Mapping[str, str]) -> dict[str, dict[str, Any]]:
    """What an export says of Debian's source packages, in the shape of the security tracker's
    export. `codenames` has the releases by their numbers. Raises OSError, records.Unfit."""
    found: dict[str, dict[str, Any]] = {}
    try:
        with zipfile.ZipFile(path) as export:
            members = [each for each in export.infolist() if each.filename.endswith(".json")]
            if len(members) > _MOST_FILES or any(each.file_size > _MOST_BYTES for each in members):
                raise records.Unfit("it is too large")
            for member in members:
                _add(records.parse(export.read(member), _ISSUE), codenames, found)
    except (zipfile.BadZipFile, NotImplementedError, RuntimeError) as error:
        raise records.Unfit(f"it is no whole ZIP file: {error}") from error
    return found


def _add(
    issue: Mapping[str, Any], codenames: Mapping[str, str], found: dict[str, dict[str, Any]]
) -> None:
    if issue.get("withdrawn"):
        return
    for affected in issue.get("affected", ()):
        if records.find_fault(affected, _AFFECTED) is not None:
            continue
        release = _ECOSYSTEM.fullmatch(affected["package"]["ecosystem"])
        codename = None if release is None else codenames.get(release[1])
        if codename is None:
            continue
        issues = found.setdefault(affected["package"]["name"], {})
        record = _to_record(affected)
        for name in _names(issue):
            releases = issues.setdefault(name, {"releases": {}})["releases"]
            releases.setdefault(codename, record)


def _names(issue: Mapping[str, Any]) -> Iterator[str]:
    """The CVEs that an issue is about; its own name where it is about none."""
    names = (issue["id"], *issue.get("aliases", ()), *issue.get("upstream", ()))
    cves = {cve[1] for name in names if (cve := _CVE.fullmatch(name))}
    yield from sorted(cves) or [issue["id"]]


def _to_record(affected: Mapping[str, Any]) -> dict[str, str]:
    """What the tracker would say of a release."""
    urgency = affected.get("ecosystem_specific", {}).get("urgency")
    record = {"status": "open", "urgency": urgency if isinstance(urgency, str) else ""}
    for each in affected.get("ranges", ()):
        if each["type"] != "ECOSYSTEM":
            continue
        for event in each["events"]:
            if isinstance(fixed := event.get("fixed"), str):
                record |= {"status": "resolved", "fixed_version": fixed}
            if isinstance(first := event.get("introduced"), str) and first != "0":
                record["introduced_version"] = first
    return record
