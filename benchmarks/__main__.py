"""Measures and prints every figure; exits with status 1 if one misses its bound.

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
from benchmarks.boot import measure_boot
from benchmarks.catalog import measure_catalog
from benchmarks.layers import measure_edits, measure_shared_base
from benchmarks.measure import (
    ROOT,
    Figure,
    Run,
    launches_of,
    make_project,
    phantom,
    seconds_of,
)
from benchmarks.nightly import measure_nightly
from benchmarks.phantom import measure_domain, measure_phantom
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
BLOCK = 512 * 1024  # the block of an EBS snapshot


def measure(folder: Path) -> Iterator[Figure]:
    """Measures every figure, in an order in which each run uses the results of the ones before."""
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
        at_most=0.40,
    )
    yield from measure_edits(project, plain)
    yield Figure(
        name="all of `image`, boot check and publication / plain mmdebstrap",
        value=cold.seconds / plain,
        unit=" x",
        at_most=1.8,
    )
    yield Figure(
        name="peak memory of our own process", value=cold.peak_bytes / MIB, unit=" MB", at_most=200
    )
    yield from _gate(cold)
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
    yield from measure_shared_base(project, cold)
    yield from measure_boot(project)
    yield from measure_domain(project)
    yield from _compression(project, cold.answer)
    yield from measure_base_images(project)
    yield from _disk_size(project, cold.seconds)
    yield from _second_cloud(project, cold)
    yield from _rebuild(project)
    yield from measure_uploads(project)
    yield from measure_phantom()
    yield from measure_catalog()
    yield from measure_nightly(project)


def _plain_mmdebstrap(project: Path) -> float:
    """The time of a plain mmdebstrap of the same packages from the same mirrors."""
    stages = json.loads((project / "build/hello-phantom/stages.json").read_text())["stages"]
    fields, release = stages["root"]["fields"], stages["packages"]["fields"]["release"]
    include = ",".join(fields["requested"])
    with tempfile.TemporaryDirectory(dir=project) as target:
        words = ["mmdebstrap", "--variant=minbase", f"--include={include}", release]
        sources = fields["apt_sources"].encode()
        return seconds_of([*words, f"{target}/root.tar", "-"], input=sources)


def _gate(cold: Run) -> Iterator[Figure]:
    """What the gate and the list of packages add to a build from scratch."""
    stages = cold.answer["stages"]
    assert isinstance(stages, list)
    seconds = {each["stage"]: float(each["seconds"]) for each in stages}
    yield Figure(
        name="gate and inventory",
        value=seconds["gate"] + seconds["inventory"],
        unit=" s",
        at_most=5,
    )
    yield Figure(
        name="launches of libguestfs's appliance in a build from scratch",
        value=launches_of(cold),
        unit="",
        at_most=0,
    )


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
    """How much longer a whole cold run takes for a large disk than for a small one. Both share the
    root file system, so only the stages after it differ."""
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
    """What EC2 adds to a build for Nimbus. Both publish to sandboxes, and neither counts its boot
    checks. Stages that run beside a boot check count in full."""
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
    """The time of a run without its boot checks, from the start of the first to the end of the
    last. The hash stages beside them still count."""
    started = run.time_of(r"^boot .*: (making|booting)")
    ended = max(when for when, line in run.lines if re.match(r"boot .*: done", line))
    stages = run.answer["stages"]
    assert isinstance(stages, list)
    beside = sum(float(each["seconds"]) for each in stages if each["stage"].startswith("hash"))
    return run.seconds - (ended - started) + beside


def _rebuild(project: Path) -> Iterator[Figure]:
    """How many blocks the next build sends to EC2 after one small package was added."""
    phantom(project, "image", "rebuilt", "--cloud", "ec2")
    before, after = (
        _blocks(project / "build" / name / "latest") for name in ("hello-phantom", "rebuilt")
    )
    changed = sum(before.get(each) != after.get(each) for each in before.keys() | after.keys())
    yield Figure(
        name="blocks that a rebuild with one small package more sends",
        value=100 * changed / len(after),
        unit=" %",
        at_most=5,
    )


def _blocks(build: Path) -> dict[int, bytes]:
    """The digest of each block of an EC2 image that is not all zeros, by index."""
    (image,) = build.glob("*.raw")
    found, zeros = {}, bytes(BLOCK)
    with image.open("rb") as file:
        for index in range(image.stat().st_size // BLOCK):
            block = file.read(BLOCK)
            if block != zeros:
                found[index] = hashlib.sha256(block).digest()
    return found


def main() -> int:
    """Prints every figure; returns 1 if one misses its bound."""
    with tempfile.TemporaryDirectory(prefix="phantom-bench-") as folder:
        reached = True
        for figure in measure(Path(folder)):
            print(figure, flush=True)
            reached &= figure.reached
    return 0 if reached else 1


if __name__ == "__main__":
    sys.exit(main())
