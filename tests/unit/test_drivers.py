"""The check of drivers, on root file systems as small as they can be: a kernel's own lists, and an
initramfs made by cpio."""

from __future__ import annotations

import subprocess
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest
from files import make_context

from pipeline.errors import KernelError
from pipeline.model import ContentKey, Hardware
from pipeline.stages.drivers import CheckDrivers
from pipeline.store import Artifact

VERSION = "6.1.0-9-amd64"
EC2 = Hardware(disks=("nvme", "xen_blkfront"), networks=("ena", "xen_netfront"), console="ttyS0")
NVME = "kernel/drivers/nvme/host"


@dataclass(frozen=True, kw_only=True)
class Tree:
    """What a root file system holds of its kernel."""

    options: str = "CONFIG_SERIAL_8250=y\nCONFIG_SERIAL_8250_CONSOLE=y\n"
    grub: str = (
        "set timeout=1\nmenuentry x {\n"
        "    linux /vmlinuz root=LABEL=r ro console=tty0 console=ttyS0,115200\n}\n"
        "menuentry y {\n    linux /vmlinuz.old root=LABEL=r\n}\n"
    )
    built_in: str = "kernel/drivers/virtio/virtio_pci.ko\n"
    dependencies: str = (
        f"{NVME}/nvme-core.ko:\n"
        f"{NVME}/nvme.ko: {NVME}/nvme-core.ko\n"
        "kernel/drivers/block/xen-blkfront.ko.xz:\n"
        "kernel/drivers/net/ethernet/amazon/ena/ena.ko:\n"
        "kernel/drivers/net/xen-netfront.ko.zst:\n"
    )
    initramfs: tuple[str, ...] = ("nvme", "nvme-core", "xen-blkfront")
    """Modules in it."""
    links: dict[str, str] = field(
        default_factory=lambda: {
            "vmlinuz": f"boot/vmlinuz-{VERSION}",
            "initrd.img": f"boot/initrd.img-{VERSION}",
        }
    )


def make_root(folder: Path, tree: Tree) -> Artifact:
    made = folder / "tree"
    modules = made / f"usr/lib/modules/{VERSION}"
    for each in (made / "boot/grub", modules):
        each.mkdir(parents=True)
    (made / "lib").symlink_to("usr/lib")
    for name in (f"vmlinuz-{VERSION}", f"vmlinuz-{VERSION}.old"):
        (made / "boot" / name).write_text("a kernel\n")
    (made / f"boot/config-{VERSION}").write_text(tree.options)
    (made / "boot/grub/grub.cfg").write_text(tree.grub)
    (modules / "modules.builtin").write_text(tree.built_in)
    (modules / "modules.dep").write_text(tree.dependencies)
    make_initramfs(made / f"boot/initrd.img-{VERSION}", folder / "packed", tree.initramfs)
    for name, target in tree.links.items():
        (made / name).symlink_to(target)
    image = folder / "root.ext4"
    subprocess.run(["mke2fs", "-q", "-t", "ext4", "-d", str(made), str(image), "8M"], check=True)
    return Artifact(stage="root", key=ContentKey("r"), folder=folder)


def make_initramfs(file: Path, folder: Path, modules: tuple[str, ...]) -> None:
    """As initramfs-tools makes one: a cpio archive, compressed."""
    inside = folder / f"usr/lib/modules/{VERSION}/kernel"
    inside.mkdir(parents=True)
    for name in modules:
        (inside / f"{name}.ko").write_text("a module\n")
    words = "find . | cpio --quiet -o -H newc | gzip >"
    subprocess.run(["sh", "-c", f'{words}"$1"', "sh", str(file)], cwd=folder, check=True)


def check(folder: Path, tree: Tree, hardware: Hardware = EC2) -> object:
    root = make_root(folder, tree)
    return CheckDrivers(label="ec2", hardware=hardware).run([root], make_context(folder))


def fail(folder: Path, tree: Tree, hardware: Hardware = EC2) -> str:
    with pytest.raises(KernelError) as caught:
        check(folder, tree, hardware)
    assert caught.value.exit_code == 25
    return str(caught.value)


def test_every_driver_in_its_place(tmp_path: Path) -> None:
    """Names are the same with `-` and `_`, and whatever compresses the module."""
    assert check(tmp_path, Tree()) == {
        "kernel": VERSION,
        "disks": {"nvme": "initramfs", "xen_blkfront": "initramfs"},
        "networks": {"ena": "modules", "xen_netfront": "modules"},
        "console": "ttyS0",
    }


def test_drivers_in_the_kernel_itself(tmp_path: Path) -> None:
    """As Debian's cloud kernel has NVMe."""
    tree = Tree(
        built_in=f"{NVME}/nvme-core.ko\n{NVME}/nvme.ko\nkernel/drivers/block/xen-blkfront.ko\n"
        "kernel/net/ena.ko\nkernel/net/xen-netfront.ko\n",
        dependencies="",
        initramfs=(),
    )
    facts = check(tmp_path, tree, replace(EC2, disks=("nvme", "xen-blkfront")))
    assert facts == {
        "kernel": VERSION,
        "disks": {"nvme": "kernel", "xen-blkfront": "kernel"},
        "networks": {"ena": "kernel", "xen_netfront": "kernel"},
        "console": "ttyS0",
    }


def test_a_kernel_that_lacks_drivers(tmp_path: Path) -> None:
    hardware = Hardware(disks=("ata_piix",), networks=("8139cp",), console="ttyS0")
    assert fail(tmp_path, Tree(), hardware) == (
        f"the kernel {VERSION} cannot serve ec2: it has no ata_piix, which drives disks there; it "
        "has no 8139cp, which drives network cards there\n"
        "  do: choose another `kernel` in the definition: `auto` takes one that serves the sites"
    )


def test_a_disk_driver_that_is_not_in_the_initramfs(tmp_path: Path) -> None:
    assert fail(tmp_path, Tree(initramfs=("nvme", "nvme-core"))) == (
        f"the kernel {VERSION} cannot serve ec2: xen_blkfront, which drives disks there, is not in "
        "the initramfs, so root would not be found\n"
        "  do: list xen_blkfront in the image's /etc/initramfs-tools/modules, before the initramfs "
        "is made"
    )


def test_a_driver_without_what_it_needs(tmp_path: Path) -> None:
    assert fail(tmp_path, Tree(initramfs=("nvme", "xen-blkfront"))) == (
        f"the kernel {VERSION} cannot serve ec2: nvme is in the initramfs without nvme_core, which "
        "it needs\n"
        "  do: let initramfs-tools copy modules, which brings what they need"
    )


def test_an_initramfs_of_another_kernel(tmp_path: Path) -> None:
    """Modules of another version cannot be loaded."""
    old = f"boot/vmlinuz-{VERSION}.old"
    tree = Tree(links={"vmlinuz": old, "initrd.img": f"boot/initrd.img-{VERSION}"})
    assert f"the kernel {VERSION}.old cannot serve ec2: it has no nvme" in fail(tmp_path, tree)


def test_a_kernel_without_a_serial_console(tmp_path: Path) -> None:
    tree = Tree(options="# CONFIG_SERIAL_8250_CONSOLE is not set\n")
    assert fail(tmp_path, tree).splitlines()[0] == (
        f"the kernel {VERSION} cannot serve ec2: it cannot use ttyS0 as its console"
    )


@pytest.mark.parametrize("word", ["", "console=ttyS01", "console=tty0", "xconsole=ttyS0"])
def test_a_command_line_without_the_console(tmp_path: Path, word: str) -> None:
    """The second entry is not what is booted."""
    grub = f"linux /vmlinuz ro {word}\nlinux /vmlinuz.old console=ttyS0\n"
    assert fail(tmp_path, Tree(grub=grub)) == (
        f"the kernel {VERSION} cannot serve ec2: its command line has no console=ttyS0, so that "
        "nothing is heard of it\n"
        "  do: add console=ttyS0 to the first menu entry of the image's /boot/grub/grub.cfg"
    )


@pytest.mark.parametrize(("name", "what"), [("vmlinuz", "kernel"), ("initrd.img", "initramfs")])
@pytest.mark.parametrize("dangling", [False, True])
def test_an_image_without_kernel_or_initramfs(
    tmp_path: Path, name: str, what: str, dangling: bool
) -> None:
    links = {key: value for key, value in Tree().links.items() if key != name}
    if dangling:
        links[name] = "boot/gone-1"
    message = fail(tmp_path, Tree(links=links))
    assert message.startswith(f"the image has no {what}: /{name} leads to none\n  do: ")
