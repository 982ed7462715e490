"""The check of drivers, on minimal root file systems: the lists that a kernel brings, and an
initramfs made by cpio."""

from __future__ import annotations

import subprocess
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest
from files import make_context

from pipeline.disk import foreign_kernel
from pipeline.errors import FileSystemError, KernelError
from pipeline.model import ContentKey, Hardware
from pipeline.stages.drivers import CheckDrivers
from pipeline.store import Artifact

VERSION = "6.1.0-9-amd64"
EC2 = Hardware(disks=("nvme", "xen_blkfront"), networks=("ena", "xen_netfront"), console="ttyS0")
NVME = "kernel/drivers/nvme/host"


@dataclass(frozen=True, kw_only=True)
class Tree:
    """A root file system's kernel: its files, and how it is booted."""

    options: str = "CONFIG_SERIAL_8250=y\nCONFIG_SERIAL_8250_CONSOLE=y\n"
    grub: str = (
        "set timeout=1\nmenuentry x {\n"
        "    linux /vmlinuz root=LABEL=r ro console=tty0 console=ttyS0,115200\n"
        "    initrd /initrd.img\n}\n"
        "menuentry y {\n    linux /vmlinuz.old root=LABEL=r\n}\n"
    )
    built_in: str = "kernel/drivers/virtio/virtio_pci.ko\n"
    dependencies: str = (
        "kernel/fs/ext4/ext4.ko:\n"
        f"{NVME}/nvme-core.ko:\n"
        f"{NVME}/nvme.ko: {NVME}/nvme-core.ko\n"
        "kernel/drivers/block/xen-blkfront.ko.xz:\n"
        "kernel/drivers/net/ethernet/amazon/ena/ena.ko:\n"
        "kernel/drivers/net/xen-netfront.ko.zst:\n"
    )
    initramfs: tuple[str, ...] = ("ext4", "nvme", "nvme-core", "xen-blkfront")
    """Modules in the initramfs."""
    links: dict[str, str] = field(
        default_factory=lambda: {
            "vmlinuz": f"boot/vmlinuz-{VERSION}",
            "initrd.img": f"boot/initrd.img-{VERSION}",
        }
    )
    files: dict[str, str] = field(default_factory=dict)
    """The content of further files, by path."""
    packed: str = f"boot/initrd.img-{VERSION}"
    """The path of the initramfs."""
    packer: str = "gzip"


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
    make_initramfs(made / tree.packed, folder / "packed", tree.initramfs, tree.packer)
    for name, text in tree.files.items():
        (made / name).parent.mkdir(parents=True, exist_ok=True)
        (made / name).write_text(text)
    for name, target in tree.links.items():
        (made / name).symlink_to(target)
    image = folder / "root.ext4"
    subprocess.run(["mke2fs", "-q", "-t", "ext4", "-d", str(made), str(image), "8M"], check=True)
    return Artifact(stage="root", key=ContentKey("r"), folder=folder)


def make_initramfs(file: Path, folder: Path, modules: tuple[str, ...], packer: str) -> None:
    """Makes a compressed cpio archive, as initramfs-tools does."""
    inside = folder / f"usr/lib/modules/{VERSION}/kernel"
    inside.mkdir(parents=True)
    for name in modules:
        (inside / f"{name}.ko").write_text("a module\n")
    words = f"find . | cpio --quiet -o -H newc | {packer} >"
    subprocess.run(["sh", "-c", f'{words}"$1"', "sh", str(file)], cwd=folder, check=True)


def check(folder: Path, tree: Tree, hardware: Hardware = EC2, *, base: bool = False) -> object:
    root = make_root(folder, tree)
    stage = CheckDrivers(label="ec2", hardware=hardware, base_image=base)
    return stage.run([root], make_context(folder))


def fail(folder: Path, tree: Tree, hardware: Hardware = EC2, *, base: bool = False) -> str:
    with pytest.raises(KernelError) as caught:
        check(folder, tree, hardware, base=base)
    assert caught.value.exit_code == 25
    return str(caught.value)


def test_every_driver_in_its_place(tmp_path: Path) -> None:
    """`-` and `_` mean the same in a name, and a module may be compressed in any way."""
    assert check(tmp_path, Tree()) == {
        "kernel": VERSION,
        "disks": {"nvme": "initramfs", "xen_blkfront": "initramfs"},
        "networks": {"ena": "modules", "xen_netfront": "modules"},
        "console": "ttyS0",
    }


def test_drivers_in_the_kernel_itself(tmp_path: Path) -> None:
    """Debian's cloud kernel has NVMe built in."""
    tree = Tree(
        built_in=f"kernel/fs/ext4/ext4.ko\n{NVME}/nvme-core.ko\n{NVME}/nvme.ko\nkernel/drivers/block/xen-blkfront.ko\n"
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
    assert fail(tmp_path, Tree(initramfs=("ext4", "nvme", "nvme-core"))) == (
        f"the kernel {VERSION} cannot serve ec2: xen_blkfront, which drives disks there, is not in "
        "the initramfs, so root would not be found\n"
        "  do: list xen_blkfront in the image's /etc/initramfs-tools/modules, before the initramfs "
        "is made"
    )


def test_a_driver_without_what_it_needs(tmp_path: Path) -> None:
    assert fail(tmp_path, Tree(initramfs=("ext4", "nvme", "xen-blkfront"))) == (
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
    """Only the first entry counts, because it is the one that boots."""
    grub = f"linux /vmlinuz ro {word}\ninitrd /initrd.img\nlinux /vmlinuz.old console=ttyS0\n"
    assert fail(tmp_path, Tree(grub=grub)) == (
        f"the kernel {VERSION} cannot serve ec2: its command line has no console=ttyS0, so "
        "its messages cannot be read\n"
        "  do: add console=ttyS0 to the first menu entry of the image's /boot/grub/grub.cfg"
    )


@pytest.mark.parametrize("dangling", [False, True])
def test_an_image_without_kernel_or_initramfs(tmp_path: Path, dangling: bool) -> None:
    links = {
        "initrd.img": f"boot/initrd.img-{VERSION}",
        **({"vmlinuz": "gone"} if dangling else {}),
    }
    todo = (
        "  do: let the operating-system element install one of Debian's kernel packages and make "
        "its initramfs, as elements/phantom-debian does"
    )
    (tmp_path / "kernel").mkdir()
    assert fail(tmp_path / "kernel", Tree(links=links)) == (
        "the image has no kernel: /boot/grub/grub.cfg names /vmlinuz, and that leads to none\n"
        + todo
    )
    links = {"vmlinuz": f"boot/vmlinuz-{VERSION}", **({"initrd.img": "gone"} if dangling else {})}
    (tmp_path / "initramfs").mkdir()
    assert fail(tmp_path / "initramfs", Tree(links=links)) == (
        f"the image has no initramfs for /boot/vmlinuz-{VERSION}\n" + todo
    )


def test_an_initramfs_that_cannot_read_root(tmp_path: Path) -> None:
    """Such an initramfs was made for a root file system of XFS only."""
    assert fail(tmp_path, Tree(initramfs=("nvme", "nvme-core", "xen-blkfront"))).splitlines()[
        0
    ] == (
        f"the kernel {VERSION} cannot serve ec2: ext4, which reads the root file system, is not in "
        "the initramfs, so root would not be found"
    )


@pytest.mark.parametrize(
    "packer", ["gzip", "xz --check=crc32", "zstd -q", "lz4 -l -c", "bzip2", "lzma", "cat"]
)
def test_whatever_compresses_the_initramfs(tmp_path: Path, packer: str) -> None:
    """An archive with microcode, and zeros, come first, as dracut and Debian put them there."""
    early = "mkdir e; touch e/GenuineIntel.bin; (echo e; echo e/GenuineIntel.bin)"
    packer = f"({early} | cpio --quiet -o -H newc; head -c 3072 /dev/zero; {packer})"
    assert check(tmp_path, Tree(packer=packer)) == {
        "kernel": VERSION,
        "disks": {"nvme": "initramfs", "xen_blkfront": "initramfs"},
        "networks": {"ena": "modules", "xen_netfront": "modules"},
        "console": "ttyS0",
    }


@pytest.mark.parametrize(
    ("packer", "reason"),
    [
        ("head -c 300", "an archive in it is cut off or damaged"),
        ("gzip | head -c 80", "it ends too early"),
        ("zstd -q | head -c 80", "an archive in it is cut off or damaged"),
        ("cat >/dev/null; true", "there is no cpio archive in it"),
        (
            "cat >/dev/null; echo neither",
            "it is compressed in an unknown way (it begins with 6e6569746865)",
        ),
        # An archive whose first name would have 4 GiB.
        (
            "cat >/dev/null; printf 070701%096d00000000ffffffff 0",
            "an archive in it is cut off or damaged",
        ),
    ],
)
def test_an_initramfs_that_cannot_be_read(tmp_path: Path, packer: str, reason: str) -> None:
    assert fail(tmp_path, Tree(packer=f"({packer})")) == (
        f"the initramfs cannot be read: {reason}\n"
        "  do: have the image's own tool make it anew (update-initramfs, dracut)"
    )


OF_DEBIAN = f"""
if [ -s $prefix/grubenv ]; then
  load_env
fi
export linux_gfx_mode
menuentry 'Debian GNU/Linux' --class debian {{
\tload_video
\tsearch --no-floppy --fs-uuid --set=root 1-2
\techo\t'Loading Linux ...'
\tlinux\t/boot/vmlinuz-{VERSION} root=UUID=1-2 ro  console=tty0 console=ttyS0,115200
\tinitrd\t/boot/initrd.img-{VERSION}
}}
submenu 'Advanced options for Debian GNU/Linux' {{
\tmenuentry 'recovery' {{
\t\tlinux\t/boot/vmlinuz-{VERSION} root=UUID=1-2 ro single
\t}}
}}
"""
OF_FEDORA = """
set default_kernelopts="root=UUID=1-2 ro console=ttyS0"
insmod blscfg
blscfg
"""
ENTRY = """title Fedora Linux
version {0}
linux /vmlinuz-{0}
initrd /initramfs-{0}.img $tuned_initrd
options $kernelopts $tuned_params
"""


def test_base_image_with_a_configuration_of_update_grub(tmp_path: Path) -> None:
    assert check(tmp_path, Tree(grub=OF_DEBIAN, links={}), base=True)


def test_base_image_with_entries_of_its_boot_loader(tmp_path: Path) -> None:
    """Fedora has such entries on a file system that is mounted at /boot. The newest one counts."""
    files = {
        "boot/grub2/grub.cfg": OF_FEDORA,
        "boot/grub2/grubenv": "# GRUB Environment Block\nkernelopts=ro console=ttyS0\n####",
        "boot/loader/entries/1-6.1.0-10-amd64.conf": ENTRY.format(VERSION),
        "boot/loader/entries/1-6.1.0-9-amd64.conf": ENTRY.format("6.1.0-8-amd64"),
        "boot/loader/entries/1-0-rescue.conf": ENTRY.format("0-rescue"),
    }
    packed = f"boot/initramfs-{VERSION}.img"
    assert check(tmp_path, Tree(grub="", files=files, packed=packed, links={}), base=True)


def test_base_image_without_a_configuration(tmp_path: Path) -> None:
    """The newest kernel is the one that is checked."""
    files = {"boot/vmlinuz-6.1.0-8-amd64": "", "boot/vmlinuz-0-rescue-1": ""}
    packed = f"boot/initrd-{VERSION}"
    message = fail(tmp_path, Tree(grub="", links={}, files=files, packed=packed), base=True)
    assert message.startswith(
        f"the kernel {VERSION} cannot serve ec2: its command line has no console=ttyS0"
    )


def test_advice_for_base_images_without_a_driver(tmp_path: Path) -> None:
    hardware = replace(EC2, disks=("nvme", "ata_piix"))
    system = {"etc/os-release": "ID=ubuntu\nID_LIKE=debian\n"}
    debian = {**system, "etc/initramfs-tools/initramfs.conf": ""}
    (tmp_path / "debian").mkdir()
    assert fail(
        tmp_path / "debian", Tree(files=debian, initramfs=("ext4",)), hardware, base=True
    ) == (
        f"the kernel {VERSION} cannot serve ec2: nvme, which drives disks there, is not in the "
        "initramfs, so root would not be found; it has no ata_piix, which drives disks there\n"
        "  do: let a script of the definition write MODULES=most into the image's "
        "/etc/initramfs-tools/initramfs.conf and run `update-initramfs -u -k all`; add `packages: "
        "[linux-image-generic]` to the definition and `network: true` below its base_image, or "
        "choose another base image"
    )
    dracut = {
        "etc/os-release": 'ID="rocky"\nID_LIKE="rhel centos fedora"\n',
        "etc/dracut.conf.d/x": "",
    }
    (tmp_path / "dracut").mkdir()
    assert fail(
        tmp_path / "dracut", Tree(files=dracut, initramfs=("ext4",)), hardware, base=True
    ).endswith(
        "  do: let a script of the definition run `dracut --no-hostonly --force --regenerate-all`; "
        "add `packages: [kernel]` to the definition and `network: true` below its base_image, or "
        "choose another base image"
    )


XEN = Hardware(disks=(), networks=(), console="ttyS0", own_kernel=False)


def test_an_image_for_a_kernel_of_the_site(tmp_path: Path) -> None:
    """The image's own kernel needs no drivers. If it has one, pygrub may boot it."""
    files = {
        "etc/fstab": "# by label\nLABEL=r / ext4 errors=remount-ro 0 1\n"
        "proc /proc proc defaults 0 0\nLABEL=d /data xfs nofail 0 2\n/swapfile none swap sw 0 0\n",
        "etc/modules": "# a comment\n\n",
        "etc/modules-load.d/README": "nothing to load\n",
    }
    (tmp_path / "sound").mkdir()
    facts = check(tmp_path / "sound", Tree(files=files, initramfs=()), XEN)
    assert facts == {"kernel": None, "pygrub": "/vmlinuz"}
    (tmp_path / "bare").mkdir()
    facts = check(tmp_path / "bare", Tree(grub=""), XEN)
    assert facts == {"kernel": None, "pygrub": None}


def test_an_image_that_needs_modules(tmp_path: Path) -> None:
    files = {
        "etc/fstab": "UUID=1 / xfs defaults 0 0\nUUID=2 /boot/efi vfat umask=0077 0 1\n"
        "UUID=3 none swap sw 0 0\n",
        "etc/modules-load.d/docker.conf": "overlay\nbr_netfilter\n",
        "etc/modules": "loop\n",
    }
    systemd = {**files, "usr/lib/systemd/system/systemd-modules-load.service": ""}
    root_alone = {"etc/fstab": "UUID=1 / ext3 defaults 0 1\n"}
    condition = str(foreign_kernel.CONDITION.relative_to("/"))
    # Other init systems go on when a module is missing, and a condition keeps systemd from trying.
    for number, sound in enumerate((files, {**systemd, condition: ""})):
        (tmp_path / str(number)).mkdir()
        check(tmp_path / str(number), Tree(files={**sound, **root_alone}), XEN)
    assert fail(tmp_path, Tree(files=systemd), XEN, base=True) == (
        "the image cannot boot with the kernel of ec2: /etc/fstab says that root is xfs, and only "
        "ext3 and ext4 can be counted on; /etc/fstab mounts /boot/efi (vfat) from UUID=2, and the "
        "machine has root and nothing else; /etc/fstab uses swap on UUID=3, and the machine has "
        "root and nothing else; /etc/modules-load.d/docker.conf has overlay, br_netfilter loaded, "
        "and the site's kernel may have no such module\n"
        "  do: correct the image's /etc/fstab; take it out of the image's /etc/fstab, or add "
        "`nofail` to its options; take what is not needed out of the image's "
        "/etc/modules-load.d/docker.conf"
    )


def test_links_and_files_that_were_planted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Names that hold commands of debugfs run nothing, and a file that is too large is not read."""
    monkeypatch.chdir(tmp_path)
    for number, long in enumerate(("", "y" * 60)):  # the second link is too long for its inode
        evil = f'x"\ndump /etc/passwd s\n{long}'
        links = {"vmlinuz": evil, "initrd.img": f"boot/initrd.img-{VERSION}"}
        folder = tmp_path / f"link-{number}"
        folder.mkdir()
        message = fail(folder, Tree(links=links, files={"etc/passwd": "root\n"}))
        assert "/boot/grub/grub.cfg names /vmlinuz, and that leads to none" in message
        assert not (tmp_path / "s").exists()
    folder = tmp_path / "large"
    folder.mkdir()
    packer = "(cat >/dev/null; truncate -s 2G /dev/stdout)"
    with pytest.raises(FileSystemError) as caught:
        check(folder, Tree(packer=packer))
    assert str(caught.value) == (
        f"/boot/initrd.img-{VERSION} in the image takes 2 GiB, and at most 1 GiB of such a file "
        "are read\n  do: remove it, or choose another base image"
    )
