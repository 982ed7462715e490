"""Measures everything and prints a line for each figure; ends with status 1 if one is not reached.

.venv/bin/python3 -m benchmarks
"""

from __future__ import annotations

import hashlib
import json
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from benchmarks.base_images import measure_base_images
from benchmarks.measure import ROOT, Figure, Run, make_project, phantom, seconds_of
from benchmarks.uploads import measure_uploads

MIB = 1 << 20
LARGE = """
extends: hello-phantom
name: {name}
version: "1.0"
summary: hello-phantom on a disk of {size}
disk_size: {size}
"""
REBUILT = """
extends: hello-phantom
name: rebuilt
version: "1.0"
summary: hello-phantom with one small package more
packages: [tree]
"""
BLOCK = 512 * 1024  # of an EBS snapshot


def measure(folder: Path) -> Iterator[Figure]:
    """Every figure, in the order in which one run's results serve the next."""
    project = make_project(
        folder,
        small=LARGE.format(name="small", size="2049MiB"),
        large=LARGE.format(name="large", size="20GiB"),
        rebuilt=REBUILT,
    )
    cold = phantom(project, "image", "--cloud", "nimbus")
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
    yield from measure_base_images(project)
    yield from _disk_size(project, cold.seconds)
    yield from _second_cloud(project, cold)
    yield from _rebuild(project)
    yield from measure_uploads(project)


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


def _second_cloud(project: Path, nimbus: Run) -> Iterator[Figure]:
    """What EC2 costs a build that has been made for Nimbus, both without their boot checks and both
    published to sandboxes. Stages that run beside a boot check count in full."""
    ec2 = phantom(project, "image", "--cloud", "ec2")
    yield Figure(
        name="image for Nimbus and EC2 / for Nimbus, without boot checks",
        value=1 + _without_boots(ec2) / _without_boots(nimbus),
        unit=" x",
        at_most=1.25,
    )
    yield Figure(
        name="peak memory of our own process, EC2 sandbox",
        value=ec2.peak_bytes / MIB,
        unit=" MB",
        at_most=250,
    )


def _without_boots(run: Run) -> float:
    """The time of a run, less the time in which nothing but boot checks went on: from the first
    that started to the last that ended."""
    started = run.time_of(r"^boot .*: (making|booting)")
    ended = max(when for when, line in run.lines if re.match(r"boot .*: done", line))
    stages = run.answer["stages"]
    assert isinstance(stages, list)
    beside = sum(float(each["seconds"]) for each in stages if each["stage"].startswith("hash"))
    return run.seconds - (ended - started) + beside


def _rebuild(project: Path) -> Iterator[Figure]:
    """What the next build sends to EC2 when one small package more is asked for."""
    phantom(project, "image", "rebuilt", "--cloud", "ec2")
    before, after = (
        _blocks(project / "build" / name / "latest") for name in ("hello-phantom", "rebuilt")
    )
    changed = sum(before.get(each) != after.get(each) for each in before.keys() | after.keys())
    yield Figure(
        name="blocks that a rebuild with one small package more sends",
        value=100 * changed / len(after),
        unit=" %",
        at_most=10,
    )


def _blocks(build: Path) -> dict[int, bytes]:
    """The digest of each block of an image for EC2 that is not all zeros."""
    (image,) = build.glob("*.raw")
    found, zeros = {}, bytes(BLOCK)
    with image.open("rb") as file:
        for index in range(image.stat().st_size // BLOCK):
            block = file.read(BLOCK)
            if block != zeros:
                found[index] = hashlib.sha256(block).digest()
    return found


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
