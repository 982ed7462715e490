"""What an edit costs: a second appliance of the same packages, and one line of its script."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from benchmarks.measure import Figure, phantom

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
