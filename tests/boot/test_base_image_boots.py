"""Base images of all shapes, built for sites of all kinds, and booted by their boot checks."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from base_images import Bases
from cli_runs import Hello, Project, make_project, remove_tree

SITES = """
sites:
  kvm: {cloud: nimbus, sandbox: true, root: hda}
  xen: {cloud: nimbus, sandbox: true, root: sda1}
  amazon: {cloud: ec2, sandbox: true}
"""
DEFINITION = """\
source:
  base_image:
    location: {location}
elements: [phantom-user-data, phantom-grow-root]
disk_size: 2GiB
boot_check:
  script: check.sh
  seconds: 900
phantom:
  user_data: greet.sh
"""
GREET = "#!/bin/sh\necho run >>/run/greeted\n"
CHECK = """\
#!/bin/sh
set -eux
[ "$(wc -l </run/greeted)" -eq 1 ]
[ "$(df -k / | awk 'NR == 2 { print $2 }')" -gt 1500000 ]
! grep -E "^[^#]*[[:space:]](/boot|/boot/efi|swap)[[:space:]]" /etc/fstab
ls /boot/vmlinuz-*
for key in /etc/ssh/ssh_host_*_key; do [ -s "$key" ]; done
"""


@pytest.fixture
def project(tmp_path: Path) -> Iterator[Project]:
    """A project with a store of its own."""
    made = make_project(tmp_path / "project", tmp_path / "store")
    made.write("sites.yaml", SITES)
    yield made
    remove_tree(tmp_path)


@pytest.mark.parametrize(
    ("shape", "site"),
    [
        ("swap-first.raw", "kvm"),
        ("lvm.raw", "xen"),
        ("bare-ext3.raw", "kvm"),
        ("sysv.raw", "kvm"),
        ("openrc.raw", "xen"),
    ],
)
def test_shape_at_site(shape: str, site: str, bases: Bases, project: Project) -> None:
    """`debian-grub` is booted by the tests of the command line."""
    project.write("images/mine/check.sh", CHECK, 0o755)
    project.write("images/mine/greet.sh", GREET, 0o755)
    project.define("mine", DEFINITION.format(location=bases.path(shape)), extends=None)
    project.succeed("build", "mine", "--site", site)


def test_cloud_image_at_kvm_and_amazon(bases: Bases, project: Project) -> None:
    """The definition for Debian's cloud images, with an image that is made as they are: cloud-init
    runs user-data at Amazon, and the fetcher at Nimbus."""
    base = project.folder / "images/debian-cloud-base/debian-12-generic-amd64.qcow2"
    base.symlink_to(bases.path("cloud-init.qcow2"))
    project.succeed("build", "debian-cloud-base", "--site", "kvm", "--site", "amazon")


def test_the_example_that_starts_from_a_build(hello: Hello, project: Project) -> None:
    shutil.copytree(hello.project.build, project.build, symlinks=True)
    project.succeed("build", "hello-base", "--site", "kvm")
