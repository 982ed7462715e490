"""Until when distributions mend faults of their releases."""

from __future__ import annotations

from pipeline.disk.os_release import Release

# By os-release's ID, and the beginning of VERSION_ID: the last day of updates that are free of
# charge, Debian's with its long-term support (the distributions' own pages, and endoflife.date).
_ENDS = {
    "debian": "9 2022-06-30, 10 2024-06-30, 11 2026-08-31, 12 2028-06-30, 13 2030-06-30",
    "ubuntu": "16.04 2021-04-30, 18.04 2023-05-31, 20.04 2025-05-31, 22.04 2027-04-30, "
    "24.04 2029-04-30, 24.10 2025-07-10, 25.04 2026-01-15, 25.10 2026-07-31, 26.04 2031-04-30",
    "centos": "6 2020-11-30, 7 2024-06-30, 8 2024-05-31, 9 2027-05-31",
    "rhel": "6 2020-11-30, 7 2024-06-30, 8 2029-05-31, 9 2032-05-31",
    "rocky": "8 2029-05-31, 9 2032-05-31, 10 2035-05-31",
    "almalinux": "8 2029-03-01, 9 2032-05-31, 10 2035-05-31",
    "ol": "7 2024-12-31, 8 2029-07-31, 9 2032-06-30, 10 2035-06-30",
    "fedora": "39 2024-11-26, 40 2025-05-13, 41 2025-12-15, 42 2026-05-13, 43 2026-12-09",
    "amzn": "1 2023-12-31, 2 2026-06-30, 2023 2029-06-30",
    "opensuse-leap": "15.5 2024-12-31, 15.6 2026-04-30, 16.0 2027-10-31",
    "alpine": "3.17 2024-11-22, 3.18 2025-05-09, 3.19 2025-11-01, 3.20 2026-04-01, "
    "3.21 2026-11-01, 3.22 2027-05-01, 3.23 2027-11-01",
}


def end_of(release: Release) -> str | None:
    """The last day, as in ISO 8601, of a release's updates; None where that is not known."""
    listed = _ENDS.get(release.id)
    ends = dict(pair.split(" ") for pair in listed.split(", ")) if listed else {}
    parts = release.version.split(".")
    versions = (".".join(parts[:count]) for count in range(len(parts), 0, -1))
    return next((ends[version] for version in versions if version in ends), None)
