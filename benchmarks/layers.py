"""What an edit costs: a second appliance of the same packages, and one line of its script."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from benchmarks.measure import Figure, Run, phantom

SHARING = 10  # appliances of one base; with each more, both sides grow alike

_DEFINITION = """
extends: hello-phantom
name: edited
version: "1.0"
summary: hello-phantom with a script of its own
scripts: [script.sh]
"""
_SCRIPT = "#!/bin/sh\necho {word} >/etc/motd\n"
_ASSEMBLED = r"^disk .*: done"


def measure_edits(project: Path, plain: float) -> Iterator[Figure]:
    """After a build of hello-phantom. `plain` is the time of a plain mmdebstrap of its packages."""
    folder = project / "images/edited"
    folder.mkdir()
    (folder / "appliance.yaml").write_text(_DEFINITION)
    script = folder / "script.sh"
    for word, name in (
        ("one", "second appliance of the same packages to the assembled disk"),
        ("two", "one edited script to the assembled disk"),
    ):
        script.write_text(_SCRIPT.format(word=word))
        script.chmod(0o755)
        run = phantom(project, "build", "edited", "--cloud", "nimbus")
        yield Figure(
            name=f"{name} / plain mmdebstrap",
            value=run.time_of(_ASSEMBLED) / plain,
            unit=" x",
            at_most=0.15,
        )


def measure_shared_base(project: Path, cold: Run) -> Iterator[Figure]:
    """What appliances take together that share the packages of a cold build, compared with those
    packages once and what one of them takes by itself, times their number."""
    names = [f"sharing-{number}" for number in range(SHARING + 2)]
    for name in names:
        folder = project / "images" / name
        folder.mkdir()
        text = _DEFINITION.replace("edited", name, 1)
        (folder / "appliance.yaml").write_text(text)
        (folder / "script.sh").write_text(_SCRIPT.format(word=name))
        (folder / "script.sh").chmod(0o755)
    words = ("--cloud", "nimbus", "--stop-after", "disk")
    one = min(phantom(project, "build", name, *words).seconds for name in names[:2])
    together = phantom(project, "build", *names[2:], *words).seconds
    base = cold.time_of(r"^packages: done")
    yield Figure(
        name=f"{SHARING} appliances on one base / that base and each alone",
        value=(base + together) / (base + SHARING * one),
        unit=" x",
        at_most=1.3,
    )
