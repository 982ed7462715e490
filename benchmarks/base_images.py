"""What a base image costs, compared with libguestfs and qemu-img alone."""

from __future__ import annotations

import os
import re
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from benchmarks.measure import ROOT, Figure, Run, launches_of, phantom, seconds_of
from pipeline.machine.accelerator import find_accelerator

MIB = 1 << 20

DEFINITION = """
name: based
version: "1.0"
summary: a base image, changed
source:
  base_image: {location: base.qcow2}
elements: [phantom-user-data, phantom-grow-root]
disk_size: 3GiB
"""

# Launches the appliance as the pipeline does: see pipeline/guest/appliance.py.
_LAUNCH = """
import sys, guestfs
handle = guestfs.GuestFS(python_return_dict=True)
handle.set_backend("direct")
if sys.argv[2] == "tcg":
    handle.set_backend_setting("force_tcg", "1")
handle.add_drive_opts(sys.argv[1], format="raw", readonly=True)
handle.launch()
handle.shutdown()
"""


def measure_base_images(project: Path) -> Iterator[Figure]:
    """Measures base images, in a project that has built hello-phantom for Nimbus."""
    folder = project / "images" / "based"
    folder.mkdir()
    (folder / "appliance.yaml").write_text(DEFINITION)
    (disk,) = (project / "build/store/artifacts").glob("disk-*/disk.raw")
    words = ["qemu-img", "convert", "-f", "raw", "-O", "qcow2", str(disk)]
    subprocess.run([*words, str(folder / "base.qcow2")], check=True)

    # In turns, because the host's other load comes and goes.
    turns = [_convert(project) / _launch_and_copy(project, folder / "base.qcow2") for _ in range(5)]
    yield Figure(
        name="base image to converted image / launch and copy",
        value=statistics.median(turns),
        unit=" x",
        at_most=1.3,
    )
    alone = phantom(project, "build", "based", "--cloud", "nimbus")
    yield Figure(
        name="peak memory of our own process, base image",
        value=alone.peak_bytes / MIB,
        unit=" MB",
        at_most=200,
    )
    again = phantom(project, "build", "based", "--cloud", "nimbus")
    yield Figure(name="launches with nothing changed", value=launches_of(again), unit="", at_most=0)
    (folder / "change.sh").write_text("#!/bin/sh\necho changed\n")
    with (folder / "appliance.yaml").open("a") as definition:
        definition.write("scripts: [change.sh]\n")
    both = phantom(project, "build", "based", "--cloud", "nimbus,ec2")
    yield Figure(
        name="launches of libguestfs's appliance for two sites",
        value=launches_of(both),
        unit="",
        at_most=1,
    )
    yield Figure(
        name="base images unpacked or looked into again for a changed script",
        value=_count(both, r"^base: (converting|copying|unpacking)|looking into the image"),
        unit="",
        at_most=0,
    )


_CONVERT = """
import sys, time
from pathlib import Path
from pipeline.build.builder import Builder
from pipeline.definitions.appliance import load_appliance
from pipeline.clouds import clouds
from pipeline.definitions.sites import load_sites
from pipeline.model import NoProgress
from pipeline.build.plan import make_plan
from pipeline.stages.disk import AssembleDisk
from pipeline.store import Store
store, images = Store(Path(sys.argv[1])), Path("images")
sites = load_sites(None, clouds())[:1]
plan = make_plan(load_appliance("based", images), sites, store, builds=Path("build"))
disk = next(each for each in plan.stages if each.name == AssembleDisk.name)
started = time.monotonic()
Builder(store, lambda title: NoProgress()).build([disk])
print(time.monotonic() - started)
"""


def _convert(project: Path) -> float:
    """The time to turn a base image into a disk for Nimbus, in a store of its own."""
    with tempfile.TemporaryDirectory(dir=project) as store:
        find_accelerator(Path(store))
        told = subprocess.run(
            [sys.executable, "-c", _CONVERT, store],
            cwd=project,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            capture_output=True,
            text=True,
            check=True,
        )
    return float(told.stdout)


def _launch_and_copy(project: Path, base: Path) -> float:
    raw = project / "copy.raw"
    # With writeback, the copy is on the disk when qemu-img ends, as the pipeline's copies are.
    words = ["qemu-img", "convert", "-t", "writeback", "-f", "qcow2", "-O", "raw"]
    copy = seconds_of([*words, str(base), str(raw)])
    accelerator = find_accelerator(project / "build" / "store")
    launch = seconds_of([sys.executable, "-c", _LAUNCH, str(raw), accelerator])
    raw.unlink()
    return launch + copy


def _count(run: Run, pattern: str) -> int:
    return sum(bool(re.search(pattern, line)) for _, line in run.lines)
