"""Measures everything and prints a line for each figure; ends with status 1 if one is not reached.

.venv/bin/python3 -m benchmarks
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from benchmarks.measure import ROOT, Figure, make_project, phantom, seconds_of

MIB = 1 << 20
LARGE = """
extends: hello-phantom
name: {name}
version: "1.0"
summary: hello-phantom on a disk of {size}
disk_size: {size}
"""


def measure(folder: Path) -> Iterator[Figure]:
    """Every figure, in the order in which one run's results serve the next."""
    project = make_project(
        folder,
        small=LARGE.format(name="small", size="2049MiB"),
        large=LARGE.format(name="large", size="20GiB"),
    )
    cold = phantom(project, "image")
    to_disk = cold.time_of(r"^disk .*: done")
    plain = _plain_mmdebstrap(project)
    yield Figure(
        name="cold build to the assembled disk / plain mmdebstrap",
        value=to_disk / plain,
        unit=" x",
        at_most=1.0,
    )
    yield Figure(
        name="all of `image`, boot check and publication / plain mmdebstrap",
        value=cold.seconds / plain,
        unit=" x",
        at_most=1.8,
    )
    yield Figure(
        name="peak memory of our own process", value=cold.peak_bytes / MIB, unit=" MB", at_most=200
    )
    yield Figure(
        name="`make image` with nothing changed",
        value=min(seconds_of(["make", "-C", str(ROOT), "image"]) for _ in range(3)),
        unit=" s",
        at_most=2.0,
    )
    program = [sys.executable, "-m", "pipeline.cli", "--help"]
    yield Figure(
        name="`phantom-image --help`",
        value=min(seconds_of(program, cwd=ROOT) for _ in range(5)),
        unit=" s",
        at_most=0.3,
    )
    yield from _compression(project, cold.answer)
    yield from _disk_size(project, cold.seconds)


def _plain_mmdebstrap(project: Path) -> float:
    """The time of what anybody would type for the same packages from the same mirrors."""
    stages = json.loads((project / "build/hello-phantom/stages.json").read_text())
    fields = stages["root"]["fields"]
    include = ",".join(fields["requested"])
    with tempfile.TemporaryDirectory(dir=project) as target:
        words = ["mmdebstrap", "--variant=minbase", f"--include={include}", fields["release"]]
        sources = fields["apt_sources"].encode()
        return seconds_of([*words, f"{target}/root.tar", "-"], input=sources)


def _compression(project: Path, answer: dict[str, object]) -> Iterator[Figure]:
    (disk,) = (project / "build/store/artifacts").glob("disk-*/disk.raw")
    stages = answer["stages"]
    assert isinstance(stages, list)
    ours = next(each["seconds"] for each in stages if each["stage"].startswith("image"))
    (image,) = (project / "build/store/artifacts").glob("image-*/image.raw.gz")
    packed = project / "gzip-6"
    with packed.open("wb") as target, disk.open("rb") as source:
        theirs = _gzip(source, target)
    yield Figure(
        name="gzip -6 / our compression, time", value=theirs / ours, unit=" x", at_least=10
    )
    yield Figure(
        name="our compression / gzip -6, size",
        value=image.stat().st_size / packed.stat().st_size,
        unit=" x",
        at_most=1.15,
    )


def _gzip(source: object, target: object) -> float:
    import time

    started = time.monotonic()
    subprocess.run(["gzip", "-6"], stdin=source, stdout=target, check=True)  # type: ignore[call-overload]
    return time.monotonic() - started


def _disk_size(project: Path, cold: float) -> Iterator[Figure]:
    """What a large disk costs more, of the time of a whole cold run. Both share the root file
    system, which is the same for every disk size: the difference lies in what follows it."""
    small, large = phantom(project, "image", "small"), phantom(project, "image", "large")
    after_root = cold - small.seconds
    yield Figure(
        name="20 GiB disk / 2 GiB disk with the same content",
        value=(after_root + large.seconds) / (after_root + small.seconds),
        unit=" x",
        at_most=1.10,
    )
    yield Figure(
        name="peak memory of our own process, 20 GiB disk",
        value=large.peak_bytes / MIB,
        unit=" MB",
        at_most=200,
    )


def main() -> int:
    """Prints every figure; 1 if one is not reached."""
    with tempfile.TemporaryDirectory(prefix="phantom-bench-") as folder:
        reached = True
        for figure in measure(Path(folder)):
            print(figure, flush=True)
            reached &= figure.reached
    return 0 if reached else 1


if __name__ == "__main__":
    sys.exit(main())
