"""Base images of many shapes, each converted once in a test run; some are built for their sites and
booted."""

from __future__ import annotations

import json
import pickle
import re
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from base_images import Bases
from cli_runs import Done, Project, make_project, remove_tree
from sharing import alone
from soak import SOAKING

from pipeline import sparse
from pipeline.disk.system import System
from pipeline.guest import inspection
from pipeline.guest.booting import Kept
from pipeline.model import MIB

SITES = """
sites:
  kvm: {cloud: nimbus, sandbox: true, root: hda}
  xen: {cloud: nimbus, sandbox: true, root: sda1}
  amazon: {cloud: ec2, sandbox: true}
"""
SHAPES: Mapping[str, tuple[str, ...]] = {
    "debian-grub.qcow2": ("kvm", "xen"),
    "swap-first.raw": ("kvm",),
    "lvm.raw": ("xen",),
    "bare-ext3.raw": ("kvm",),
    "sysv.raw": ("kvm",),
    "openrc.raw": ("xen",),
    "dirty.raw": ("kvm",),
}
"""The sites that each shape is built for."""
BOOTED = frozenset(SHAPES) if SOAKING else frozenset({"debian-grub.qcow2"})
"""The shapes that are booted there too: the most common one, or all of them in `make soak`."""
_DEFINITION = """\
source:
  base_image:
    location: {location}
elements: [phantom-user-data, phantom-grow-root]
files: [{{from: brought, to: /}}]
scripts: [set-up.sh]
disk_size: 2GiB
boot_check:
  script: check.sh
  seconds: 900
phantom:
  user_data: greet.sh
"""
_SET_UP = "#!/bin/sh\necho set up once\n"
_GREET = "#!/bin/sh\necho run >>/run/greeted\n"
_CHECK = """\
#!/bin/sh
set -eux
[ "$(wc -l </run/greeted)" -eq 1 ]
[ "$(df -k / | awk 'NR == 2 { print $2 }')" -gt 1500000 ]
! grep -E "^[^#]*[[:space:]](/boot|/boot/efi|swap)[[:space:]]" /etc/fstab
ls /boot/vmlinuz-*
for key in /etc/ssh/ssh_host_*_key; do [ -s "$key" ]; done
[ "$(cat "/var/log/mine/blank ")" = brought ]
[ "$(readlink /opt/mine/link)" = nowhere ]
[ -d /opt/mine/empty ]
"""
# The ext features that nodes of 2010 know (docs/facts/nimbus.md, "What the image must be").
_FEATURES = frozenset(
    (
        *("has_journal", "ext_attr", "resize_inode", "dir_index", "filetype", "extent", "flex_bg"),
        *("sparse_super", "large_file", "huge_file", "uninit_bg", "dir_nlink", "extra_isize"),
    )
)


@dataclass(frozen=True)
class Converted:
    """The root file system that a base image became, and tools to read it."""

    root: Path
    system: System
    kept: Kept | None

    def read(self, path: str) -> str:
        """The content of a file."""
        return self._debugfs(f"cat {path}")

    def names(self, folder: str) -> set[str]:
        """The names in a folder."""
        lines = self._debugfs(f"ls -p {folder}").splitlines()
        return {line.split("/")[5] for line in lines if line.startswith("/")} - {".", ".."}

    def check(self) -> None:
        """Checks the file system, that nodes of 2010 can mount it, and its size."""
        checked = subprocess.run(["e2fsck", "-f", "-n", self.root], capture_output=True, text=True)
        assert checked.returncode == 0, checked.stdout
        shown = subprocess.run(
            ["dumpe2fs", "-h", self.root], capture_output=True, text=True, check=True
        ).stdout
        (features,) = re.findall(r"^Filesystem features: *(.*)", shown, re.MULTILINE)
        assert set(features.split()) <= _FEATURES
        (blocks,) = re.findall(r"^Block count: *(.*)", shown, re.MULTILINE)
        assert abs(int(blocks) * 4096 - self.root.stat().st_size) < MIB

    def _debugfs(self, command: str) -> str:
        return subprocess.run(
            ["debugfs", "-R", command, self.root], capture_output=True, text=True, check=True
        ).stdout


class Conversions:
    """Builds of the shapes, in a folder that processes share."""

    def __init__(self, folder: Path, bases: Bases) -> None:
        self._folder = folder
        self._bases = bases

    def build(self, shape: str) -> tuple[Project, Done]:
        """The project in which the appliance `mine` was built from a shape, and the command. One of
        `BOOTED` was booted; of others only the root file system was made. The build did not change
        the base image."""
        folder = self._folder / shape
        folder.mkdir(exist_ok=True)
        record = folder / "build.pickle"
        with alone(folder):
            if not record.exists():
                record.write_bytes(pickle.dumps(self._build(shape, folder)))
        project, done = pickle.loads(record.read_bytes())
        return project, done

    def _build(self, shape: str, folder: Path) -> tuple[Project, Done]:
        base = self._bases.path(shape)
        digest = sparse.digest(base)
        project = make_project(folder / "project", folder / "store")
        project.write("sites.yaml", SITES)
        for name, text in (("set-up.sh", _SET_UP), ("check.sh", _CHECK), ("greet.sh", _GREET)):
            project.write(f"images/mine/{name}", text, 0o755)
        project.write("images/mine/brought/var/log/mine/blank ", "brought")
        brought = project.folder / "images/mine/brought/opt/mine"
        (brought / "empty").mkdir(parents=True)
        (brought / "link").symlink_to("nowhere")
        project.define("mine", _DEFINITION.format(location=base), extends=None)
        words = [*words_for(shape), *(() if shape in BOOTED else ("--stop-after", "root"))]
        done = project.succeed("build", "mine", *words, "--json", "-v")
        assert sparse.digest(base) == digest
        if len(SHAPES[shape]) == 1:  # tests read only boot and root; the rest takes a gigabyte
            for artifact in project.artifacts():
                if not artifact.name.startswith(("boot-", "root-")):
                    remove_tree(artifact)
        return project, done

    def converted(self, shape: str) -> Converted:
        """The root file system of a shape."""
        project, _ = self.build(shape)
        (folder,) = project.artifacts("root")
        facts = json.loads((folder / "artifact.json").read_text())["facts"]
        return Converted(
            root=folder / "root.ext4",
            system=inspection.from_facts(facts["system"]),
            kept=None if facts["kept"] is None else Kept(**facts["kept"]),
        )


def words_for(shape: str) -> list[str]:
    """The words of the command line that name a shape's sites."""
    return [word for site in SHAPES[shape] for word in ("--site", site)]
