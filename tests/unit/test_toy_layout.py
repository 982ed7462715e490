"""A new layout is one module and one line: a copy of the pipeline gets one, and uses it."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import pipeline

PACKAGE = Path(pipeline.__file__).parent

# A GPT that only a BIOS boots. No layout of the pipeline is like that.
TOY = """
from pipeline.layouts.layout import SECTOR, BiosBoot, Layout
from pipeline.model import MIB

LAYOUT = Layout(
    name="toy",
    root_start=4 * MIB,
    tail=MIB,
    table="label: gpt\\nlabel-id: {guids[0]}\\n"
    "1: start={start}, size={size}, type=0FC63DAF-8483-4772-8E79-3D69D8477DE4, uuid={guids[1]}\\n"
    f"14: start={MIB // SECTOR}, size={3 * MIB // SECTOR}, "
    "type=21686148-6449-6E6F-744E-656564454649, uuid={guids[14]}\\n",
    bios=BiosBoot(
        core_start=MIB,
        core_room=3 * MIB,
        prefix="(,gpt1)/boot/grub",
        modules=("biosdisk", "part_gpt", "ext2", "normal", "linux"),
    ),
    tools=("grub",),
)
"""

# Runs in the copy and prints as JSON how each module that deals with layouts handles the new one.
SCRIPT = """
import json
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

from pipeline.build import manifest
from pipeline.build.plan import make_plan
from pipeline.clouds import make_cloud
from pipeline.commands.compatibility import Inside, judge
from pipeline.disk.kernel import SCRATCH
from pipeline.disk.partitions import read_geometry
from pipeline.disk.system import FileSystem, Place, System
from pipeline.layouts import AROUND_ROOT, LAYOUTS, find_layout
from pipeline.layouts.layout import SECTOR
from pipeline.model import (
    MIB, Appliance, ApplianceBuild, BaseImageSource, ContentKey, Disk, NoProgress, Site
)
from pipeline.sources.base_disk import Looked
from pipeline.stages.base import Context
from pipeline.stages.disk import DISK, HEAD, AssembleDisk
from pipeline.store import Artifact, Store

folder = Path(sys.argv[1])
toy = LAYOUTS["toy"]
store = Store(folder / "store")
root = folder / "root"
root.mkdir()
words = ["mke2fs", "-q", "-t", "ext4", str(root / "root.ext4"), "8M"]
subprocess.run(words, capture_output=True, check=True)

site = Site(name="here", cloud="ec2", sandbox=True, where="built in")
wanted = Disk(layout="toy", format="raw", compression="gzip")
type(make_cloud(site)).disk = property(lambda self: wanted)


def plan(location):
    appliance = Appliance(
        name="web",
        version="1",
        summary="A web server",
        source=BaseImageSource(location=location),
        disk_size=128 * MIB,
        definition=folder / "images/web/appliance.yaml",
    )
    return make_plan(appliance, [site], store, builds=folder / "builds")


def assemble(stage, name, facts, head=b""):
    out, work = folder / name / "out", folder / name / "work"
    out.mkdir(parents=True)
    work.mkdir()
    if head:
        (root / HEAD).write_bytes(head)
    artifact = Artifact(stage="root", key=ContentKey("r"), folder=root, facts=facts)
    log, progress = folder / name / "log", NoProgress()
    stage.run([artifact], Context(out=out, work=work, log=log, store=store, progress=progress))
    return out / DISK


planned = plan(root / "root.ext4")
(stage,) = [each for each in planned.stages if isinstance(each, AssembleDisk)]
disk = assemble(stage, "own", {"sha256": "0"})
head = disk.read_bytes()[: toy.root_start]
dump = subprocess.run(["sfdisk", "-d", str(disk)], capture_output=True, text=True, check=True)
room = (128 * MIB - toy.around) // SECTOR
table = re.sub(rf"size= *{room}\\b", "size={size}", dump.stdout)
table = re.sub(r"^(device|last-lba):.*\\n", "", table, flags=re.MULTILINE)
kept = {"layout": "toy", "root_start": toy.root_start, "tail": toy.tail, "table": table}
again = assemble(stage, "kept", {"sha256": "0", "kept": kept}, head)

geometry = read_geometry(disk)
build = folder / "builds/other/123456789012"
build.mkdir(parents=True)
(build / "toy.raw").write_bytes(b"an image")
images = [
    {"layout": layout, "site": layout, "file": f"{layout}.raw", "sha256": "0"}
    for layout in ("hybrid", "toy")
]
(build / manifest.FILE).write_text(json.dumps(
    {"schema": manifest.SCHEMA, "appliance": {"build": build.name}, "images": images}
))
(folder / "builds/other/latest").symlink_to(build.name)
other = plan(ApplianceBuild(name="other"))


def verdict(table, boot_code):
    place = Place(partition=None, start=0, size=128 * MIB)
    file_system = FileSystem(place=place, type="ext4", mount="/")
    system = System(
        disk_bytes=128 * MIB, table=table, partitions=geometry.partitions, boot_code=boot_code,
        file_systems=(file_system,), root_bytes=8 * MIB, root_features=(), distribution="debian",
        family="debian", release="12", codename="bookworm", product="Debian",
        architecture="x86_64", package_manager="apt", init="systemd", boot_loaders=("grub2",),
        kernels=(), cloud_init=None, selinux=None, networks=(), clients=(), fetcher=False,
    )
    inside = Inside(
        kernel="it has none", remedies=SCRATCH, foreign=(), mounts=(), menu=True, remarks=(),
    )
    cloud = make_cloud(site)
    hardware = replace(cloud.hardware, own_kernel=False)
    file = Looked(format="raw", compression="gzip", bytes=None)
    told = judge(file, system, inside, cloud.disk, hardware, cloud.machines)
    return list(told.reasons)


print(json.dumps({
    "pipeline": str(Path(manifest.__file__).parents[1]),
    "titles": sorted(each.title for each in planned.stages if "toy" in each.title),
    "requires": list(stage.requires),
    "tools": sorted(stage.tools),
    "made": planned.makers["layouts"].keys() >= {"toy"},
    "around": AROUND_ROOT // MIB,
    "starts": {each.number: each.start for each in geometry.partitions},
    "same": disk.read_bytes() == again.read_bytes(),
    "root": disk.read_bytes()[toy.root_start :][: 8 * MIB] == (root / "root.ext4").read_bytes(),
    "base": other.source.base.path.name,
    "kept": find_layout("gpt", [each.type for each in geometry.partitions[1:]]).name,
    "bare": verdict(None, False),
    "whole": verdict("gpt", True),
}))
"""


@pytest.fixture(scope="module")
def told(tmp_path_factory: pytest.TempPathFactory) -> dict[str, object]:
    """What a copy of the pipeline with a toy layout says of this layout."""
    folder = tmp_path_factory.mktemp("toy")
    copy = folder / "pipeline"
    shutil.copytree(PACKAGE, copy, ignore=shutil.ignore_patterns("__pycache__"))
    (folder / "elements").symlink_to(PACKAGE.parent / "elements")
    (copy / "layouts/toy.py").write_text(TOY)
    listed = copy / "layouts/__init__.py"
    before = listed.read_text()
    assert before.count('        "mbr",\n') == 1
    listed.write_text(before.replace('        "mbr",\n', '        "mbr",\n        "toy",\n'))
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, str(folder)],
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    answer: dict[str, object] = json.loads(done.stdout)
    assert answer.pop("pipeline") == str(copy)
    return answer


def test_a_toy_layout_is_planned(told: dict[str, object]) -> None:
    assert told["titles"] == ["disk toy", "hash toy", "image toy raw gzip"]
    assert (told["requires"], told["tools"], told["made"]) == (["disk"], ["grub"], True)


def test_a_toy_layout_is_assembled(told: dict[str, object]) -> None:
    """Where a base image already has that layout, its own table and boot loader are used."""
    assert told["starts"] == {"1": 4 << 20, "14": 1 << 20}
    assert (told["root"], told["same"]) == (True, True)


def test_a_toy_layout_takes_its_place_among_the_others(told: dict[str, object]) -> None:
    """The layout with the most around root decides what root leaves free. Of a build's images, the
    one with the least around root becomes the base image."""
    assert (told["around"], told["base"], told["kept"]) == (65, "toy.raw", "toy")


def test_an_image_is_judged_for_a_toy_layout(told: dict[str, object]) -> None:
    assert told["bare"] == [
        "it is a bare file system, and the site boots a disk with a boot loader of its own"
    ]
    assert told["whole"] == []


def test_no_other_module_names_a_layout() -> None:
    """Only clouds name layouts, for what their sites boot. `mbr` is also a kind of table."""
    elsewhere = [
        str(path.relative_to(PACKAGE))
        for path in PACKAGE.rglob("*.py")
        if path.relative_to(PACKAGE).parts[0] not in ("layouts", "clouds")
        and any(f'"{name}"' in path.read_text() for name in ("bare", "hybrid"))
    ]
    assert elsewhere == []
