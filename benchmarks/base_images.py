"""What a base image costs, against what libguestfs and qemu-img cost alone."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from benchmarks.measure import Figure, Run, phantom, seconds_of

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

# As the pipeline launches it: see pipeline/guest/appliance.py.
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
    """The figures of base images, in a project in which hello-phantom was built for Nimbus."""
    folder = project / "images" / "based"
    folder.mkdir()
    (folder / "appliance.yaml").write_text(DEFINITION)
    (disk,) = (project / "build/store/artifacts").glob("disk-*/disk.raw")
    words = ["qemu-img", "convert", "-f", "raw", "-O", "qcow2", str(disk)]
    subprocess.run([*words, str(folder / "base.qcow2")], check=True)

    both = phantom(project, "image", "based", "--cloud", "nimbus,ec2")
    yield Figure(
        name="base image to converted image / launch and copy",
        value=_to_disk(both) / _launch_and_copy(project, folder / "base.qcow2"),
        unit=" x",
        at_most=1.3,
    )
    yield Figure(
        name="launches of libguestfs's appliance for two sites",
        value=_launches(both),
        unit="",
        at_most=1,
    )
    yield Figure(
        name="peak memory of our own process, base image",
        value=both.peak_bytes / MIB,
        unit=" MB",
        at_most=200,
    )
    again = phantom(project, "build", "based", "--cloud", "nimbus")
    yield Figure(name="launches with nothing changed", value=_launches(again), unit="", at_most=0)
    (folder / "change.sh").write_text("#!/bin/sh\necho changed\n")
    with (folder / "appliance.yaml").open("a") as definition:
        definition.write("scripts: [change.sh]\n")
    changed = phantom(project, "build", "based", "--cloud", "nimbus")
    yield Figure(
        name="base images read or looked into again for a changed script",
        value=_count(changed, r"^base: |looking into the image"),
        unit="",
        at_most=0,
    )


def _to_disk(run: Run) -> float:
    """The time of what turns a base image into a disk for Nimbus."""
    stages = run.answer["stages"]
    assert isinstance(stages, list)
    seconds = {each["stage"]: float(each["seconds"]) for each in stages}
    return seconds["base"] + seconds["root"] + seconds["disk mbr"]


def _launch_and_copy(project: Path, base: Path) -> float:
    from pipeline import host

    raw = project / "copy.raw"
    # A copy that is on the disk when it is said to be, as the pipeline's are.
    words = ["qemu-img", "convert", "-t", "writeback", "-f", "qcow2", "-O", "raw"]
    copy = seconds_of([*words, str(base), str(raw)])
    accelerator = host.find_accelerator(project / "build" / "store")
    launch = min(
        seconds_of([sys.executable, "-c", _LAUNCH, str(raw), accelerator]) for _ in range(2)
    )
    raw.unlink()
    return launch + copy


def _launches(run: Run) -> int:
    return _count(run, "starting libguestfs")


def _count(run: Run, pattern: str) -> int:
    return sum(bool(re.search(pattern, line)) for _, line in run.lines)
