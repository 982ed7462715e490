"""Nights of the tests: one with all that a night can have, and those before it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from pipeline.model import GIB, MIB
from pipeline.nightly.night import Kept, Night, Outcome, StageTime, State

DAY = 86400.0
FIRST = 1767234600.0
"""When the first night began: 2026-01-01, 02:30 UTC."""
SITES = (("hotel", "nimbus"), ("frankfurt", "ec2"))
HOSTILE = "<script>alert('x')</script> & \x1b[31m red \u202eabc\u202c \ud800 \ufffe"
ARABIC = "خادم الويب"
LONG = "no such file: " + "/very/long/path" * 700


def name_of(started: float) -> str:
    from datetime import UTC, datetime

    return datetime.fromtimestamp(started, UTC).strftime("%Y%m%dT%H%M%SZ")


def make_outcome(appliance: str, site: str = "hotel", **more: Any) -> Outcome:
    """An outcome, by default one that is unchanged."""
    values: dict[str, object] = {
        "appliance": appliance,
        "version": "1.2",
        "site": site,
        "cloud": dict(SITES).get(site, "nimbus"),
        "state": State.UNCHANGED,
        "build": "0123456789ab",
        "before": "0123456789ab",
        "because": "unchanged since 2026-01-03",
        "image_bytes": 612 * MIB,
        "root_bytes": 1400 * MIB,
        "boot_seconds": 21.5,
    }
    return Outcome(**(values | more))  # type: ignore[arg-type]


def make_night(number: int = 0, *outcomes: Outcome, **more: Any) -> Night:
    """The night of a day of January."""
    started = FIRST + number * DAY
    values: dict[str, object] = {
        "name": name_of(started),
        "started": started,
        "ended": started + 1800 + 400 * (number % 3),
        "outcomes": outcomes,
        "host_cores": 8,
        "jobs": 4,
        "store_bytes": 12 * GIB + number * 300 * MIB,
        "store_limit": 20 * GIB,
        "free_bytes": 80 * GIB,
        "forecast_bytes": 3 * GIB,
        "environment": {"host": "builder.example.org", "phantom-image": "0.1.0"},
    }
    return Night(**(values | more))  # type: ignore[arg-type]


def make_built(appliance: str, site: str, number: int, **more: Any) -> Outcome:
    """An outcome with a new build."""
    return make_outcome(
        appliance,
        site,
        **{
            "state": State.BUILT,
            "build": f"{number:02}23456789ab",
            "because": None,
            "reasons": ("openssl 3.0.19-1~deb12u1 -> 3.0.20-1~deb12u1",),
            "changes": (
                "package openssl 3.0.19-1~deb12u1 -> 3.0.20-1~deb12u1",
                "file /etc/motd: 120 B -> 160 B",
            ),
            "seconds": 180.0 + 13 * (number % 5),
            "image_bytes": (600 + 3 * number) * MIB,
            "stages": (
                StageTime(title="packages", reused=True, seconds=0.0),
                StageTime(title="root", reused=False, seconds=61.2),
            ),
            "bytes_built": 2 * GIB,
            "bytes_sent": 600 * MIB,
            "bytes_saved": GIB,
            **more,
        },
    )


def make_history(count: int = 9) -> list[Night]:
    """The nights before: in all of them something is built, and in one something fails."""
    return [make_night(number, *_ordinary(number)) for number in range(count)]


def _ordinary(number: int) -> Iterator[Outcome]:
    for site, _ in SITES:
        for appliance in ("database", "mail", "shop", "web", "worker"):
            outcome = make_outcome(appliance, site, last_success=FIRST + number * DAY + 1800)
            if (number + len(appliance)) % 3 == 0:
                outcome = make_built(
                    appliance, site, number, last_success=FIRST + number * DAY + 1800
                )
            if number == 4 and appliance == "mail":
                outcome = replace(outcome, state=State.FAILED, message="the mirror is away")
            yield outcome


def make_full_night(number: int = 9) -> Night:
    """A night in which all happens that can."""
    log = "/var/lib/phantom-image/build/web/logs/boot-hotel.log"
    failed: dict[str, Any] = {
        "state": State.FAILED,
        "because": None,
        "stage": "boot frankfurt bios",
        "message": "the guest did not report within 240 s; its console ends with: "
        "Kernel panic - not syncing: VFS: Unable to mount root fs",
        "todo": "look at the log for what the guest was doing",
        "error": "BootError",
        "exit_status": 40,
        "log": log,
        "tries": 2,
        "seconds": 312.0,
    }
    skipped: dict[str, Any] = {
        "state": State.SKIPPED,
        "because": "base failed at 'packages'",
        "seconds": 0.0,
    }
    new: dict[str, Any] = {
        "reasons": (
            *(
                "openssl 3.0.19-1~deb12u1 -> 3.0.20-1~deb12u1",
                "linux-image-amd64 6.1.158 -> 6.1.162",
            ),
            *("scripts: two.sh changed", "base image debian-12 moved"),
        ),
        "warnings": ("curl is pinned, and the archive has 8.12-2",),
    }
    outcomes = [
        *(make_outcome("web", site, **failed) for site, _ in SITES),
        make_outcome("base", **failed | {"stage": "packages", "message": LONG, "build": None}),
        make_outcome(HOSTILE, **failed | {"message": HOSTILE, "stage": HOSTILE, "log": HOSTILE}),
        make_outcome(ARABIC, **failed | {"message": f"{ARABIC} {ARABIC}: 404", "before": None}),
        *(make_outcome(name, **skipped) for name in ("cache", "proxy")),
        *(make_built("mail", site, number, **new) for site, _ in SITES),
        make_built("shop", "hotel", number, reasons=(HOSTILE,), changes=(HOSTILE, ARABIC)),
        make_built("shop", "frankfurt", number, state=State.REUSED, reasons=("new at this site",)),
        *(make_outcome("database", site) for site, _ in SITES),
        *(make_outcome(f"worker-{count}", "hotel") for count in range(12)),
    ]
    kept = (
        Kept(appliance="web", build="aa23456789ab", action="removed", reason="older", bytes=GIB),
        Kept(appliance="shop", build="bb23456789ab", action="retired", reason=HOSTILE),
        Kept(appliance="web", build="cc23456789ab", action="kept", reason="the last of its week"),
    )
    warnings = ("the mirror was away for 40 s", "the clock went backwards by 3 s")
    return make_night(number, *outcomes, kept=kept, warnings=warnings)
