"""Base images of many shapes, made of Debian's archive without a device or a mount on the host.

`Bases.path` makes an image at its first call. What images share is made once: the packages, one
installed system, and the systems that are layers above it. `mke2fs -d` and `mformat` write the file
systems, and sfdisk writes the partition tables. libguestfs's appliance makes LVM and the image that
a power cut leaves behind.
"""

from __future__ import annotations

import dataclasses
import fcntl
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import Any

from pipeline import sparse
from pipeline.machine import accelerator
from pipeline.model import MIB, NoProgress
from pipeline.store import Store
from pipeline.tools import apt, apt_repository, fat, grub, sfdisk

_MAKE_ROOT = Path(__file__).resolve().parent / "make_root.sh"
_RELEASE = "bookworm"
SECTOR = 512

# ---- systems

_COMMON = (
    *(
        "udev",
        "linux-image-amd64",
        "initramfs-tools",
        "zstd",
        "openssh-server",
        "iproute2",
        "cron",
        "fdisk",
    ),
    *("grub-pc-bin", "grub-efi-amd64-bin", "grub2-common", "curl", "ifupdown", "isc-dhcp-client"),
)
_BASE = (*_COMMON, "systemd-sysv")
_CLOUD = ("cloud-init", "cloud-guest-utils", "netplan.io", "systemd-resolved")
_SYSV = ("sysvinit-core", "sysv-rc", "orphan-sysvinit-scripts", "rsyslog")
_OPENRC = ("sysvinit-core", "openrc", "orphan-sysvinit-scripts", "rsyslog")
_SETS = ((*_BASE, "lvm2", "wget", *_CLOUD), (*_COMMON, "wget", *_SYSV), (*_COMMON, *_OPENRC))
"""The packages of one set can be installed together."""

_APT = """
echo 'deb [trusted=yes] copy:/repository ./' >/etc/apt/sources.list
apt="apt-get -q -y --no-install-recommends"
$apt update
"""
_TIDY = "$apt clean; rm -rf /var/lib/apt/lists/*"

# Today's defaults of mke2fs: Nimbus's nodes do not know them, but Debian 12's GRUB does.
_NEW = ("-t", "ext4", "-O", "64bit,metadata_csum,metadata_csum_seed,orphan_file", "-J", "size=16")
_OLD = ("-t", "ext3", "-O", "^resize_inode", "-J", "size=16")

_INTERFACES = """\
# The loopback network interface
auto lo
iface lo inet loopback

# The primary network interface
allow-hotplug {card}
iface {card} inet dhcp
"""
_HOSTS = "127.0.0.1\tlocalhost\n127.0.1.1\tbuilder\n"
_NETPLAN = """\
network:
    version: 2
    ethernets:
        all-en:
            match:
                name: en*
            dhcp4: true
            dhcp4-overrides:
                use-domains: true
            dhcp6: true
            dhcp6-overrides:
                use-domains: true
        all-eth:
            match:
                name: eth*
            dhcp4: true
            dhcp4-overrides:
                use-domains: true
            dhcp6: true
            dhcp6-overrides:
                use-domains: true
"""
_DATASOURCES = (
    "NoCloud, ConfigDrive, OpenNebula, DigitalOcean, Azure, AltCloud, OVF, MAAS, GCE, OpenStack, "
    "CloudSigma, SmartOS, Bigstep, Scaleway, AliYun, Ec2, CloudStack, Hetzner, IBMCloud, Oracle, "
    "Exoscale, RbxCloud, UpCloud, VMware, Vultr, LXD, NWCS, Akamai, None"
)
_SERIAL_OPTIONS = "console=tty0 console=ttyS0,115200 earlyprintk=ttyS0,115200 consoleblank=0"
_SERIAL_TERMINAL = """\
serial --speed=115200
terminal_input console serial
terminal_output console serial"""
_CLOUD_GRUB = """\
GRUB_DEFAULT=0
GRUB_TIMEOUT=5
GRUB_DISTRIBUTOR=`lsb_release -i -s 2> /dev/null || echo Debian`
GRUB_CMDLINE_LINUX_DEFAULT=""
GRUB_CMDLINE_LINUX="console=tty0 console=ttyS0,115200 earlyprintk=ttyS0,115200 consoleblank=0"
GRUB_TERMINAL="console serial"
GRUB_SERIAL_COMMAND="serial --speed=115200"
"""
_GRUB = """\
GRUB_DEFAULT=0
GRUB_TIMEOUT=5
GRUB_DISTRIBUTOR=`lsb_release -i -s 2> /dev/null || echo Debian`
GRUB_CMDLINE_LINUX_DEFAULT="quiet"
GRUB_CMDLINE_LINUX=""
"""

# The output of Debian 12's update-grub in the system of `debian-grub`, with placeholders for what
# differs. In libguestfs's appliance, grub-install and update-grub take minutes without KVM.
_GRUB_CFG = Path(__file__).resolve().with_name("grub.cfg.in")
_GRUB_MODULES = (
    *("part_msdos", "part_gpt", "ext2", "lvm", "normal", "linux", "echo", "test", "search"),
    *("search_fs_uuid", "gzio", "minicmd", "loadenv"),
)
_MENU_LST = """\
default 0
timeout 2

title Debian GNU/Linux
root (hd0)
kernel /boot/vmlinuz-{version} root=/dev/sda1 ro
initrd /boot/initrd.img-{version}
"""

UUIDS = {
    name: f"5eed0000-0000-4000-8000-{number:012x}"
    for number, name in enumerate(("root", "boot", "swap", "other", "disk", "part-root", "esp"), 1)
}
"""The UUIDs of file systems and partitions."""
_ESP_SERIAL = "5EED0E5B"
_ESP_UUID = f"{_ESP_SERIAL[:4]}-{_ESP_SERIAL[4:]}"


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Layer:
    """A system, as a layer above the base system."""

    change: str = ":"
    """Commands that root runs in it."""
    files: Mapping[str, str] = dataclasses.field(default_factory=dict)
    card: str = "enp1s0"
    """The network card that its ifupdown configures; empty: none."""


_LAYERS = {
    "plain": _Layer(),
    "lvm": _Layer(change=f"{_APT} $apt install lvm2; {_TIDY}"),
    "old": _Layer(change=f"{_APT} $apt install wget; $apt purge curl; {_TIDY}", card="eth0"),
    "cloud": _Layer(
        change=f"{_APT} $apt install {' '.join(_CLOUD)}; $apt purge ifupdown; {_TIDY}\n"
        "rm -rf /etc/network\nsystemctl enable systemd-networkd",
        files={
            "etc/netplan/90-default.yaml": _NETPLAN,
            "etc/default/grub.d/10_cloud.cfg": _CLOUD_GRUB,
            "etc/cloud/cloud.cfg.d/01_debian_cloud.cfg": "apt: {preserve_sources_list: true}\n"
            "manage_etc_hosts: true\n",
            "etc/default/locale": "LANG=C.UTF-8\n",
            "etc/cloud/cloud.cfg.d/90_dpkg.cfg": f"datasource_list: [ {_DATASOURCES} ]\n",
        },
        card="",
    ),
    # The other init replaces systemd-sysv, so nothing keeps systemd installed.
    "sysv": _Layer(
        change=f"{_APT} $apt install {' '.join(_SYSV)} systemd-sysv-\n$apt purge systemd; {_TIDY}",
        card="eth0",
    ),
    "openrc": _Layer(
        change=f"{_APT} $apt install {' '.join(_OPENRC)} systemd-sysv-\n"
        f"$apt purge systemd; {_TIDY}",
        card="eth0",
    ),
}


class Bases:
    """Base images in a folder that processes can share. Tests must not write to them."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._work = folder / "work"
        self._work.mkdir(parents=True, exist_ok=True)
        self._sudo = [] if os.getuid() == 0 else ["sudo"]
        self._makes = False

    @contextmanager
    def _making(self) -> Iterator[None]:
        """Keeps other processes from making anything while the block lasts."""
        if self._makes:
            yield
            return
        with (self._work / "lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            self._makes = True
            try:
                yield
            finally:
                self._makes = False

    def path(self, name: str) -> Path:
        """The image of a shape, one of `NAMES`; made at the first call."""
        file = self.folder / name
        with self._making():
            if not file.exists():
                if name in _FINISHED:
                    self._finish()
                else:
                    SHAPES[name](self, file)
                file.chmod(0o444)
        return file

    # ---- what images are made of

    @property
    def version(self) -> str:
        """The version of the kernel that all systems have."""
        (modules,) = (self._base() / "usr/lib/modules").iterdir()
        return modules.name

    def _repository(self) -> Path:
        folder = self._work / "repository"
        if not folder.exists():
            store = Store(self._work / "store")
            archive = apt.Archive(apt.find_mirrors(_RELEASE), "amd64", store)
            first, *others = [archive.resolve(sorted(each)) for each in _SETS]
            packages = {each.sha256: each for every in (first, *others) for each in every.packages}
            for each in others:
                first.uris.update(each.uris)
                first.stanzas.update(each.stanzas)
            union = dataclasses.replace(first, packages=tuple(packages.values()))
            fetched = archive.download(union, NoProgress())
            folder.mkdir()
            apt_repository.write_repository(union, fetched, folder, _RELEASE)
            for package in folder.glob("*.deb"):  # links into the store, which systems do not see
                target = package.resolve()
                package.unlink()
                package.hardlink_to(target)
        return folder

    def _base(self) -> Path:
        """The tree that all systems share."""
        tree = self._work / "base"
        if not tree.exists():
            repository = str(self._repository())
            self._isolated("base", str(tree), repository, ",".join(_BASE))
        return tree

    def _isolated(self, kind: str, *words: str, **environ: str) -> None:
        settings = [f"{name}={value}" for name, value in environ.items()]
        log = self._work / f"{Path(words[-2]).name if kind == 'variant' else kind}.log"
        with log.open("w") as written:
            ended = subprocess.run(
                [*self._sudo, "env", *settings, "unshare", "--mount"]
                + ["sh", str(_MAKE_ROOT), kind, *words],
                stdin=subprocess.DEVNULL,
                stdout=written,
                stderr=subprocess.STDOUT,
                check=False,
            )
        assert ended.returncode == 0, log.read_text()[-3000:]

    def root(self, layer: str, *, boot: bool = True) -> Path:
        """The root file system of a layer. If `boot` is false, /boot is empty, as in systems whose
        /boot is a file system of its own."""
        name = f"{layer}.ext4" if boot else f"{layer}-without-boot.ext4"
        made = self._work / name
        if not made.exists():
            base, repository = self._base(), self._repository()
            work, files = self._work / f"{layer}-layer", self._work / f"{layer}-files"
            self._write_files(_LAYERS[layer], files)
            flags = [*(_OLD if layer == "old" else _NEW), "-m", "1", "-U", UUIDS["root"]]
            size = "1100M" if layer == "cloud" else "900M"
            mke2fs = f"mke2fs -q -F {' '.join(flags)} "
            write = f'{mke2fs} -d "$tree" {self._work / layer}.ext4 {size}\n'
            if layer in ("plain", "lvm"):
                write += f"mke2fs -q -F -t ext4 -m 1 -J size=4 -U {UUIDS['boot']} "
                write += f'-d "$tree/boot" {self._work / layer}-boot.ext4 200M\n'
                write += 'mount -t tmpfs none "$tree/boot"\n'
                write += f'{mke2fs} -d "$tree" {self._work / layer}-without-boot.ext4 {size}\n'
            self._isolated(
                "variant",
                *(str(base), str(repository), str(work), str(files)),
                CHANGE=_LAYERS[layer].change,
                WRITE=f"{write} chown {os.getuid()} {self._work}/*.ext4",
            )
        return made

    def boot(self, layer: str) -> Path:
        """The content of /boot of `plain` or `lvm`, as a file system of its own."""
        self.root(layer)
        return self._work / f"{layer}-boot.ext4"

    def _write_files(self, layer: _Layer, folder: Path) -> None:
        mirrors = apt.find_mirrors(_RELEASE)
        files = {
            "etc/apt/sources.list": mirrors.image_sources(),
            "etc/default/grub": _GRUB,
            "etc/hostname": "builder\n",
            "etc/hosts": _HOSTS,
            "etc/machine-id": "5eed5eed5eed5eed5eed5eed5eed5eed\n",
            "root/.bash_history": "apt-get update\n",
            **layer.files,
        }
        if layer.card:
            files["etc/network/interfaces"] = _INTERFACES.format(card=layer.card)
        for name, content in files.items():
            path = folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(content)

    def copy_root(self, layer: str, name: str, *, boot: bool = True) -> Path:
        """A copy of a root file system, for a shape to edit."""
        with self._making():
            return copy(self.root(layer, boot=boot), self._work / name)

    def esp(self, start: int, size: int, prefix: str) -> Path:
        """An EFI system partition with GRUB, as grub-install leaves it."""
        made = self._work / f"esp-{size}.fat"
        if not made.exists():
            modules = ["fat", *_GRUB_MODULES]
            program = grub.make_efi_program(prefix, modules, self._work, self._work / "grub.log")
            names = ("/EFI/debian/grubx64.efi", "/EFI/BOOT/BOOTX64.EFI")
            files = {PurePosixPath(name): program for name in names}
            serial = int(_ESP_SERIAL, 16)
            fat.make(made, size, files, label="ESP", serial=serial, start=start)
        return made

    def swap(self, size: int) -> Path:
        made = self._work / f"swap-{size}"
        if not made.exists():
            with made.open("wb") as file:
                file.truncate(size)
            _run("mkswap", "-q", "-U", UUIDS["swap"], str(made))
        return made

    def bootable(self, disk: Path, prefix: str, core_at: int = SECTOR) -> None:
        """Installs GRUB for BIOS on a disk, as grub-install does: in the gap before the first
        partition, or in a partition of its own."""
        log = self._work / "grub.log"
        code, core = grub.make_bios_loader(
            prefix, ["biosdisk", *_GRUB_MODULES], core_at // SECTOR, self._work, log
        )
        assert len(core) < MIB - SECTOR
        with disk.open("r+b") as file:
            sparse.write_at(file.fileno(), code, 0)
            sparse.write_at(file.fileno(), core, core_at)

    def grub_cfg(
        self,
        partition: str,
        *,
        root: str = f"UUID={UUIDS['root']}",
        boot: str | None = None,
        serial: bool = False,
    ) -> str:
        """The file that update-grub writes. `partition` is root's, and `boot` that of a separate
        /boot, both in GRUB's notation; with `serial`, the file is as in Debian's cloud images."""
        text = _GRUB_CFG.read_text()
        if serial:
            text = text.replace("terminal_output gfxterm", _SERIAL_TERMINAL)
        words = {
            "BOOT_PARTITION": boot or partition,
            "BOOT_UUID": UUIDS["boot" if boot else "root"],
            "FOLDER": "" if boot else "/boot",
            "OPTIONS": _SERIAL_OPTIONS if serial else " quiet",
            "PART": "part_gpt" if "gpt" in partition else "part_msdos",
            "ROOT": root,
            "ROOT_PARTITION": partition,
            "ROOT_UUID": UUIDS["root"],
            "VERSION": self.version,
        }
        for name, word in words.items():
            text = text.replace(f"@{name}@", word)
        return text

    # ---- what needs libguestfs's appliance

    def _finish(self) -> None:
        """Makes the two images that need the appliance in one launch, and ends it as a power cut
        would."""
        disks = {
            "lvm": _lvm(self, self._work / "lvm.raw"),
            "dirty": _simple(self, self._work / "dirty.raw"),
        }
        handle = launch(*disks.values())
        try:
            start = _make_volumes(handle, "/dev/sda2")
            handle.sync()
            _cut_power(handle, "/dev/sdb1")
        finally:
            handle.close()
        _fill_volumes(self, disks["lvm"], start)
        for name, disk in disks.items():
            disk.rename(self.folder / f"{name}.raw")


# ---- shapes


def _debian_grub(bases: Bases, disk: Path) -> Path:
    """GPT as Debian's installer makes it: BIOS boot, ESP, /boot, root, swap."""
    root = bases.copy_root("plain", "debian-grub.root", boot=False)
    write(root, "/etc/fstab", _fstab(boot=True, esp=True))
    boot = copy(bases.boot("plain"), bases._work / "debian-grub.boot.root")
    _write_grub_cfg(boot, "/grub", bases.grub_cfg("gpt4", boot="gpt3"))
    mkdir(boot, "/efi")
    table = "label: gpt\n" + "".join(
        f"{number}: start={start}MiB, size={size}MiB, type={kind}\n"
        for number, start, size, kind in (
            (1, 1, 3, _BIOS_BOOT),
            (2, 4, 60, _ESP),
            (3, 64, 200, "linux"),
            (4, 264, 900, "linux"),
            (5, 1164, 64, "swap"),
        )
    )
    parts = {
        4: bases.esp(4 * MIB, 60 * MIB, "(,gpt3)/grub"),
        64: boot,
        264: root,
        1164: bases.swap(64 * MIB),
    }
    raw = lay_out(bases._work / "debian-grub.raw", 1280 * MIB, table, parts)
    bases.bootable(raw, "(,gpt3)/grub", MIB)
    return _convert(raw, disk)


def _cloud_init(bases: Bases, disk: Path) -> Path:
    """Like Debian's own cloud images: root is partition 1 and lies last on the disk."""
    root = bases.copy_root("cloud", "cloud-init.root")
    write(
        root,
        "/etc/fstab",
        f"PARTUUID={UUIDS['part-root']} / ext4 rw,discard,errors=remount-ro,x-systemd.growfs 0 1\n"
        f"UUID={_ESP_UUID} /boot/efi vfat defaults 0 0\n",
    )
    mkdir(root, "/boot/efi")
    cfg = bases.grub_cfg("gpt1", root=f"PARTUUID={UUIDS['part-root']}", serial=True)
    _write_grub_cfg(root, "/boot/grub", cfg)
    table = (
        "label: gpt\n"
        f"1: start=128MiB, size=1100MiB, type=linux, uuid={UUIDS['part-root']}\n"
        f"14: start=1MiB, size=3MiB, type={_BIOS_BOOT}\n"
        f"15: start=4MiB, size=124MiB, type={_ESP}\n"
    )
    parts = {128: root, 4: bases.esp(4 * MIB, 124 * MIB, "(,gpt1)/boot/grub")}
    raw = lay_out(bases._work / "cloud-init.raw", 1280 * MIB, table, parts)
    bases.bootable(raw, "(,gpt1)/boot/grub", MIB)
    return _convert(raw, disk, "-c")


def _lvm(bases: Bases, disk: Path) -> Path:
    """MBR: /boot, and a partition in which `_finish` makes a volume group."""
    boot = copy(bases.boot("lvm"), bases._work / "lvm.boot.root")
    cfg = bases.grub_cfg("msdos2", root="/dev/mapper/debian-root", boot="msdos1")
    _write_grub_cfg(boot, "/grub", cfg)
    table = "label: dos\n1: start=1MiB, size=200MiB, type=83, bootable\n"
    table += "2: start=201MiB, size=1071MiB, type=8e\n"
    lay_out(disk, 1280 * MIB, table, {1: boot})
    bases.bootable(disk, "(,msdos1)/grub")
    return disk


def _fill_volumes(bases: Bases, disk: Path, start: int) -> None:
    """Writes the content of the volumes. In a new group, each volume is one contiguous piece, so
    no data has to go through the appliance."""
    root = bases.copy_root("lvm", "lvm.root", boot=False)
    write(root, "/etc/fstab", _fstab("/dev/mapper/debian-root", boot=True, swap=_LVM_SWAP))
    with disk.open("r+b") as file:
        sparse.copy_into(root, file.fileno(), 201 * MIB + start)
        sparse.copy_into(bases.swap(64 * MIB), file.fileno(), 201 * MIB + start + 900 * MIB)
    root.unlink()


def _swap_first(bases: Bases, disk: Path) -> Path:
    """MBR with swap first: a Nimbus node would take partition 1 for root."""
    root = bases.copy_root("plain", "swap-first.root")
    _configure(bases, root, "msdos2")
    table = "label: dos\n1: start=1MiB, size=64MiB, type=82\n"
    table += "2: start=65MiB, size=900MiB, type=83, bootable\n"
    lay_out(disk, 1024 * MIB, table, {1: bases.swap(64 * MIB), 65: root})
    bases.bootable(disk, "(,msdos2)/boot/grub")
    return disk


def _bare_ext3(bases: Bases, disk: Path) -> Path:
    """For Nimbus on Xen: no partition table, old ext3, GRUB legacy's configuration, wget."""
    root = copy(bases.root("old"), disk)
    write(root, "/etc/fstab", "/dev/sda1 / ext3 defaults,errors=remount-ro 0 1\n")
    mkdir(root, "/boot/grub")
    write(root, "/boot/grub/menu.lst", _MENU_LST.format(version=bases.version))
    return root


def _installed(layer: str) -> Callable[[Bases, Path], Path]:
    def make(bases: Bases, disk: Path) -> Path:
        """MBR as Debian's installer makes it: root, and swap in an extended partition."""
        root = bases.copy_root(layer, f"{disk.name}.root")
        _configure(bases, root)
        table = "label: dos\n1: start=1MiB, size=900MiB, type=83, bootable\n"
        table += "2: start=901MiB, size=66MiB, type=5\n5: start=902MiB, size=64MiB, type=82\n"
        lay_out(disk, 1024 * MIB, table, {1: root, 902: bases.swap(64 * MIB)})
        bases.bootable(disk, "(,msdos1)/boot/grub")
        return disk

    return make


def _simple(bases: Bases, disk: Path, change: Callable[[Path], None] = lambda root: None) -> Path:
    """MBR with root alone, which `change` may edit."""
    root = bases.copy_root("plain", f"{disk.name}.root")
    _configure(bases, root, swap=False)
    change(root)
    table = "label: dos\n1: start=1MiB, type=83, bootable\n"
    lay_out(disk, 901 * MIB, table, {1: root})
    bases.bootable(disk, "(,msdos1)/boot/grub")
    return disk


_FINISHED = ("lvm.raw", "dirty.raw")

SHAPES: dict[str, Callable[[Bases, Path], Path]] = {
    "debian-grub.qcow2": _debian_grub,
    "cloud-init.qcow2": _cloud_init,
    "swap-first.raw": _swap_first,
    "bare-ext3.raw": _bare_ext3,
    "sysv.raw": _installed("sysv"),
    "openrc.raw": _installed("openrc"),
    "simple.raw": _simple,
}
"""The functions that make the images other than those of `_FINISHED`."""

NAMES = (*_FINISHED, *SHAPES)

_BIOS_BOOT = "21686148-6449-6E6F-744E-656564454649"
_ESP = "C12A7328-F81F-11D2-BA4B-00A0C93EC93B"
_LVM_SWAP = "/dev/mapper/debian-swap_1"


def _fstab(
    root: str = f"UUID={UUIDS['root']}",
    *,
    boot: bool = False,
    esp: bool = False,
    swap: str | None = f"UUID={UUIDS['swap']}",
) -> str:
    """The fstab that Debian's installer writes."""
    lines = ["# /etc/fstab: static file system information.", "#"]
    lines.append(f"{root} / ext4 errors=remount-ro 0 1")
    if boot:
        lines.append(f"UUID={UUIDS['boot']} /boot ext4 defaults 0 2")
    if esp:
        lines.append(f"UUID={_ESP_UUID} /boot/efi vfat umask=0077 0 1")
    if swap:
        lines.append(f"{swap} none swap sw 0 0")
    return "\n".join(lines) + "\n"


def _configure(bases: Bases, root: Path, partition: str = "msdos1", *, swap: bool = True) -> None:
    """Writes fstab and GRUB's configuration for a system with everything in root."""
    write(root, "/etc/fstab", _fstab() if swap else _fstab(swap=None))
    _write_grub_cfg(root, "/boot/grub", bases.grub_cfg(partition))


def _write_grub_cfg(file_system: Path, folder: str, content: str) -> None:
    mkdir(file_system, folder)
    write(file_system, f"{folder}/grub.cfg", content)


# ---- the appliance


def launch(*disks: Path) -> Any:
    """A launched appliance with raw disks that it may write to."""
    import guestfs

    handle = guestfs.GuestFS(python_return_dict=True)
    handle.set_backend("direct")
    if accelerator.find_accelerator() == "tcg":
        handle.set_backend_setting("force_tcg", "1")
    for disk in disks:
        handle.add_drive_opts(str(disk), format="raw", cachemode="unsafe")
    handle.launch()
    return handle


def _make_volumes(handle: Any, device: str) -> int:
    """Makes a group `debian` with the volumes root and swap_1; returns root's offset in bytes."""
    handle.pvcreate(device)
    handle.vgcreate("debian", [device])
    handle.lvcreate("root", "debian", 900)
    handle.lvcreate("swap_1", "debian", 64)
    shown = handle.debug("sh", ["lvm pvs --noheadings --units b -o pe_start"])
    handle.vg_activate_all(False)
    return int(shown.strip().rstrip("B"))


def _cut_power(handle: Any, device: str) -> None:
    """Ends the appliance while it writes, so that the last changes are in the journal alone."""
    handle.mount(device, "/")
    handle.mkdir("/var/lib/written")
    for number in range(50):
        handle.write(f"/var/lib/written/{number}", f"{number}\n" * 2000)
    handle.sync()
    for number in range(50, 100):
        handle.write(f"/var/lib/written/{number}", f"{number}\n" * 2000)
    os.kill(handle.get_pid(), signal.SIGKILL)


# ---- file systems and disks


def lay_out(disk: Path, size: int, table: str, parts: Mapping[int, Path]) -> Path:
    """A sparse disk with a partition table, and files at offsets in MiB."""
    with disk.open("wb") as file:
        file.truncate(size)
    sfdisk.write_table(disk, table)
    with disk.open("r+b") as file:
        for start, part in parts.items():
            sparse.copy_into(part, file.fileno(), start * MIB)
    for part in parts.values():
        if part.suffix == ".root":
            part.unlink()
    return disk


def copy(source: Path, target: Path) -> Path:
    """A sparse, writable copy."""
    _run("cp", "--sparse=always", str(source), str(target))
    target.chmod(0o644)
    return target


def _convert(raw: Path, qcow2: Path, *words: str) -> Path:
    _run("qemu-img", "convert", "-q", *words, "-f", "raw", "-O", "qcow2", str(raw), str(qcow2))
    raw.unlink()
    return qcow2


def debugfs(image: Path, *commands: str, start: int = 0) -> str:
    """Runs commands of debugfs on a file system in a file; returns the output without prompts."""
    place = f"{image}?offset={start}" if start else str(image)
    printed = _run("debugfs", "-w", "-f", "-", place, input="".join(f"{c}\n" for c in commands))
    complaints = [
        line
        for line in printed.splitlines()
        if line and not line.startswith(("debugfs", "Allocated inode"))
    ]
    return "\n".join(complaints)


def write(image: Path, path: str, content: str | bytes, *, start: int = 0) -> None:
    """Writes a file into an ext file system, and replaces an old one."""
    local = image.parent / f"{image.name}.content"
    local.write_bytes(content.encode() if isinstance(content, str) else content)
    debugfs(image, f"rm {path}", f"write {local} {path}", start=start)
    local.unlink()


def mkdir(image: Path, path: str, *, start: int = 0) -> None:
    debugfs(image, f"mkdir {path}", start=start)


def remove(image: Path, *paths: str, start: int = 0) -> None:
    debugfs(image, *(f"rm {path}" for path in paths), start=start)


def plant(image: Path, links: Mapping[str, str], *, start: int = 0) -> None:
    """Plants symbolic links (targets by path) in the ext file system at an offset of an image. A
    file, link or empty folder in the place of a link is removed; missing parents are made."""
    commands = []
    for path, target in links.items():
        parents = [str(each) for each in Path(path).parents][-2::-1]
        commands += [f"mkdir {parent}" for parent in parents]
        commands += [f"rm {path}", f"rmdir {path}", f"symlink {path} {target}"]
    debugfs(image, *commands, start=start)
    for path in links:
        assert "symlink" in debugfs(image, f"stat {path}", start=start), path


def _run(*argv: str, input: str | None = None) -> str:
    ended = subprocess.run(
        argv,
        env={**os.environ, "PATH": f"{os.environ['PATH']}:/usr/sbin:/sbin", "LC_ALL": "C"},
        input=input,
        stdin=subprocess.DEVNULL if input is None else None,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    assert ended.returncode == 0, f"{argv}: {ended.stdout}"
    return ended.stdout


def main(folder: str, names: Sequence[str]) -> None:
    """`python base_images.py FOLDER [NAME...]` makes images for people to look at."""
    bases = Bases(Path(folder))
    for name in names or NAMES:
        started = time.monotonic()
        path = bases.path(name)
        used = path.stat().st_blocks * SECTOR // MIB
        print(f"{time.monotonic() - started:5.1f} s {used:5} MiB {path}", flush=True)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2:])
