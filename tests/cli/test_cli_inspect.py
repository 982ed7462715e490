"""`phantom-image inspect`: its report on an image, and errors of other files and of the host."""

from __future__ import annotations

import gzip
import re
import shutil
import signal
from pathlib import Path

import pytest
from cli_runs import Hello, Project, Running, assert_clean, assert_nothing_runs
from small_images import CENTOS, DEBIAN, UUIDS, Part, make_disk, make_ext, make_luks, make_swap

from pipeline.layouts import LAYOUTS
from pipeline.model import GIB, MIB, ContentKey, NoProgress
from pipeline.stages.base import Context
from pipeline.stages.disk import DISK, AssembleDisk
from pipeline.store import Artifact, Store

pytestmark = pytest.mark.slow

STEPS = "inspect: starting libguestfs\ninspect: looking into the image\n"

SHOWN = """\
old.raw: raw, 17 MiB; a disk of 17 MiB
  partition table  MBR; boot code in the first sector
  partition 1  2 MiB  at 1 MiB  swap                    type 82
  partition 2  8 MiB  at 4 MiB  ext3  on /  label root  type 83

  system         CentOS release 5.11 (Final), i686
  root           8 MiB
  kernels        2.6.18-398.el5, 2.6.18-1024.el5
  boot loaders   grub-legacy
  init           sysv
  packages       yum
  network        network-scripts
  cloud-init     none
  SELinux        enforcing
  fetcher        not there; HTTP clients: curl

Nimbus on KVM (root: hda): does not boot as it is
  - partition 1 (swap) comes first, and nodes write into the first one: root has to be it, and is \
partition 2
  - the image has no initramfs for /boot/vmlinuz-2.6.18-398.el5
  - fstab names / by /dev/sda2, and disks have other names elsewhere: label or UUID
  - fstab names /data by LABEL=data, which is not in the image
  (the file has to be made raw in gzip first)
  nor after it was converted as a base image:
  - the image has no initramfs for /boot/vmlinuz-2.6.18-398.el5
Nimbus on Xen (root: sda1): does not boot as it is
  - it has a partition table (mbr), and the site boots a bare file system
  - /etc/fstab mounts /data (ext3) from LABEL=data, and the machine has root and nothing else
  (the file has to be made raw in gzip first)
  as a base image it is converted, and boots
EC2: does not boot as it is
  - the image has no initramfs for /boot/vmlinuz-2.6.18-398.el5
  - fstab names / by /dev/sda2, and disks have other names elsewhere: label or UUID
  - fstab names /data by LABEL=data, which is not in the image
  (it boots by BIOS only)
  nor after it was converted as a base image:
  - the image has no initramfs for /boot/vmlinuz-2.6.18-398.el5

An image that many machines boot should not be so:
  - persistent-net rules name the network card of another machine
  - it has SSH host keys, which all its machines would share
  - it has a machine-id, which all its machines would share
  - root has a password
  - guest has an empty password
  - /root/.ssh/authorized_keys lets its owner in
"""


def make_old(folder: Path) -> Path:
    """A disk with an old system that no site can boot, for many reasons."""
    tree = {
        **CENTOS,
        "etc/fstab": "/dev/sda2 / ext3 defaults 1 1\nLABEL=data /data ext3 defaults 1 2\n",
        "etc/udev/rules.d/70-persistent-net.rules": 'SUBSYSTEM=="net", NAME="eth0"\n',
        "etc/ssh/ssh_host_rsa_key": "secret",
        "etc/machine-id": "0123456789abcdef0123456789abcdef\n",
        "etc/shadow": "root:$1$salt$hash:15000:0:99999:7:::\nbin:*:15000::::::\nguest::15000::\n",
        "root/.ssh/authorized_keys": "# mine\nssh-rsa AAAA me\n",
    }
    root = make_ext(folder / "root", tree, kind="ext3", label="root")
    swap = make_swap(folder / "swap", UUIDS[1])
    return make_disk(folder / "old.raw", "dos", [Part(swap, 2 * MIB, "82"), Part(root, 8 * MIB)])


def test_whole_output_of_inspect(project: Project, tmp_path: Path) -> None:
    """The whole output for an image with many faults; the image does not change."""
    shutil.copy(make_old(tmp_path), project.folder / "old.raw")
    before = (project.folder / "old.raw").read_bytes()
    done = project.succeed("inspect", "old.raw")
    assert done.out == SHOWN
    assert done.steps == f"{STEPS}inspect: looking at its kernel\ninspect: done\n"
    assert (project.folder / "old.raw").read_bytes() == before
    assert_clean(project)


def make_hybrid(hello: Hello, folder: Path) -> Path:
    """hello-phantom's root file system on EC2's disk."""
    out, work = folder / "out", folder / "work"
    out.mkdir()
    work.mkdir()
    root = Artifact(stage="root", key=ContentKey("r"), folder=hello.artifact("root"), facts={})
    stage = AssembleDisk(layout=LAYOUTS["hybrid"], size=2 * GIB, tools={})
    context = Context(
        out=out, work=work, log=folder / "log", store=Store(folder), progress=NoProgress()
    )
    stage.run([root], context)
    return out / DISK


def test_json_output_of_inspect(project: Project, hello: Hello, tmp_path: Path) -> None:
    """The report says that the project's own disks boot at the sites that they were made for."""
    disks = {"mbr": hello.artifact("disk") / DISK, "gpt": make_hybrid(hello, tmp_path)}
    for table, disk in disks.items():
        told = project.succeed("inspect", str(disk), "--json").json
        assert list(told) == [
            *("file", "bytes", "format", "compression", "disk_bytes", "table", "boot_code"),
            *("partitions", "file_systems", "system", "sites", "remarks"),
        ]
        assert told["file"] == str(disk) and told["bytes"] == disk.stat().st_size
        assert (told["format"], told["compression"]) == ("raw", None)
        system = told["system"]
        assert (system["distribution"], system["release"]) == ("debian", "12")
        assert (system["init"], system["fetcher"]) == ("systemd", True)
        assert system["kernels"] == [system["boots"]["version"]]
        assert told["remarks"] == []
        assert all(site["boots_converted"] and site["obstacles"] == [] for site in told["sites"])
        boots = {(each["cloud"], each["layout"]): each["boots"] for each in told["sites"]}
        assert told["table"] == table
        assert boots == {
            ("nimbus", "mbr"): True,
            ("nimbus", "bare"): False,
            ("ec2", "hybrid"): True,
        }
    assert_clean(project)


def _refused(project: Project, name: str, status: int, message: str) -> None:
    done = project.run("inspect", name)
    assert (done.status, done.out) == (status, "")
    assert done.error == message
    assert_clean(project)
    told = project.run("inspect", name, "--json").json if status < 47 else {"exit_code": status}
    assert told["exit_code"] == status


def test_inspect_refuses_files_that_are_not_images(project: Project, tmp_path: Path) -> None:
    """Each file gives an error with its own exit status, and nothing is left behind. None of them
    needs a launch."""
    project.write("page.html", "<!DOCTYPE html><title>Not found</title>\n")
    _refused(
        project,
        "page.html",
        46,
        "error: page.html: is a web page and not a disk image\n"
        "  do: name the location of the image itself, not of the page that links to it\n",
    )
    _refused(
        project,
        "nowhere.raw",
        24,
        "error: nowhere.raw is not there\n"
        "  do: name the file of a disk image: raw, qcow2, vmdk, vhd or vdi, packed or not\n",
    )
    root = make_ext(tmp_path / "root", DEBIAN)
    disk = make_disk(tmp_path / "disk", "gpt", [Part(root, 8 * MIB, "L")])
    content = disk.read_bytes()
    (project.folder / "cut.raw").write_bytes(content[: 5 * MIB])
    _refused(
        project,
        "cut.raw",
        46,
        f"error: {project.folder}/cut.raw: the image is truncated: partition 1 ends at 9 MiB, and "
        "the image has 5 MiB\n"
        "  do: fetch the image again and compare its checksum\n",
    )
    done = project.run("inspect", "cut.raw", "--format", "qcow2")
    assert done.status == 46 and "is declared as qcow2, and is raw" in done.error


def test_inspect_refuses_encrypted_images_and_several_systems(
    project: Project, tmp_path: Path
) -> None:
    luks = make_luks(tmp_path / "luks", UUIDS[2])
    disk = make_disk(tmp_path / "disk", "dos", [Part(luks, 2 * MIB)])
    (project.folder / "crypt.raw.gz").write_bytes(gzip.compress(disk.read_bytes(), 1))
    _refused(
        project,
        "crypt.raw.gz",
        53,
        "error: crypt.raw.gz: the image's root is encrypted: LUKS on partition 1\n"
        "  do: decrypt it, or choose another base image: nobody is there to enter a key\n",
    )
    parts = [make_ext(tmp_path / name, tree) for name, tree in (("a", DEBIAN), ("b", CENTOS))]
    two = make_disk(project.folder / "two.raw", "dos", [Part(each, 8 * MIB) for each in parts])
    _refused(
        project,
        two.name,
        48,
        "error: two.raw: the image holds several operating systems: Debian GNU/Linux 12 (bookworm) "
        "on partition 1 and CentOS release 5.11 (Final) on partition 2\n"
        "  do: choose a base image with one, or copy the partition that you want to a disk of its "
        "own\n",
    )


# ---- the appliance


def _sockets(project: Project) -> list[Path]:
    """The folders of the sockets of a project's appliances: if the user is root, libguestfs makes
    them in /tmp whatever the settings are."""
    notes = project.temporary.glob("phantom-appliance-*/sockets")
    return [Path(note.read_text().strip()) for note in notes if note.stat().st_size]


def test_libguestfs_that_does_not_start(project: Project, tmp_path: Path) -> None:
    """Of the user's own settings of libguestfs, only those that locate its parts count."""
    make_ext(project.folder / "root.raw", DEBIAN)
    todo = "  do: `phantom-image doctor` looks for the reason\n"
    for variable, reason in {
        "LIBGUESTFS_HV": "there is no QEMU at /nowhere",
        "LIBGUESTFS_PATH": "cannot find any suitable libguestfs supermin, fixed or old-style "
        "appliance on LIBGUESTFS_PATH (search path: /nowhere)",
    }.items():
        done = project.run("inspect", "root.raw", **{variable: "/nowhere"})
        assert done.status == 43
        assert re.sub("  log: .*\n", "", done.error) == (
            f"error: libguestfs does not start: {reason}\n{todo}"
        )
        assert_clean(project)
    crash = project.write(
        "qemu", "#!/bin/sh\nexec qemu-system-x86_64 -m 1 -kernel /dev/null\n", 0o755
    )
    done = project.run("inspect", "root.raw", LIBGUESTFS_HV=str(crash))
    assert done.status == 43 and todo in done.error
    nonsense = dict.fromkeys(("LIBGUESTFS_BACKEND", "LIBGUESTFS_BACKEND_SETTINGS"), "nonsense")
    done = project.succeed("inspect", "root.raw", LIBGUESTFS_MEMSIZE="12", **nonsense)
    assert "Debian GNU/Linux 12 (bookworm), x86_64" in done.out


@pytest.mark.parametrize(
    "at", [pytest.param(STEPS.splitlines()[0], marks=pytest.mark.only_soak), STEPS.splitlines()[1]]
)
def test_killed_or_interrupted(project: Project, at: str) -> None:
    """No QEMU and no folder is left behind, however and whenever the command ends."""
    make_ext(project.folder / "root.raw", DEBIAN)
    seen: list[Path] = []

    def begin() -> Running:
        running = project.start("inspect", "root.raw")
        running.wait_for_line(at)
        running.wait_until(lambda: bool(_sockets(project)), "QEMU")
        seen.extend(_sockets(project))
        return running

    begin().kill()
    assert_nothing_runs(project.folder)
    for group in (False, True):
        done = begin().interrupt(group=group)
        assert done.status == 130
        assert done.err.endswith("interrupted; the same command goes on where it can\n")
        assert_clean(project)
    running = begin()
    running.process.terminate()
    assert running.end().status == 128 + signal.SIGTERM
    assert_clean(project)
    assert len(seen) == 4
    assert [folder for folder in seen if folder.exists()] == []
