"""QEMU: a site's virtual machine on this host."""

from __future__ import annotations

import ipaddress
import os
import shutil
from dataclasses import dataclass
from pathlib import Path

from pipeline import sparse
from pipeline.errors import HostError
from pipeline.machine import site_kernel
from pipeline.model import MIB, Machine, SiteKernel
from pipeline.resources import setup_hint
from pipeline.tools import sfdisk
from pipeline.tools.run import capture

OVERHEAD = 512 * MIB
"""What QEMU itself takes beside a guest's memory: measured under TCG, which keeps the code that it
has translated, 460 MiB."""

FIRMWARE = {"OVMF_CODE_4M.fd": "OVMF_VARS_4M.fd", "OVMF_CODE.fd": "OVMF_VARS.fd"}
"""UEFI's code and the variables that it begins with, without Secure Boot; the first ones that the
host has are used. Debian 12 has both, its successors only those of 4 MiB."""
FIRMWARE_FOLDER = Path("/usr/share/OVMF")

_DISKS = {
    "ide": ["-device", "ide-hd,drive=root,bus=ide.0"],
    "virtio": ["-device", "virtio-blk-pci,drive=root"],
    # A volume's serial number, as EC2 writes it; the specification asks for one.
    "nvme": ["-device", "nvme,drive=root,serial=vol0123456789abcdef0"],
}
_PARTITION_START = MIB
_UUID = "ec2e3a9c-6f0b-4c52-9a51-0d7a3f6f8e21"  # begins as EC2's do; the rest was drawn once
_LINK_LOCAL = ipaddress.IPv4Network("169.254.0.0/16")


@dataclass(frozen=True, kw_only=True)
class Network:
    """What the machine's network card reaches."""

    metadata_socket: str
    """The abstract name of the socket where the metadata service listens, for this user alone."""
    ssh_port: int | None = None
    """A port of this host's loopback that leads to the machine's SSH server."""
    forwards: tuple[tuple[int, int], ...] = ()
    """Further ports of this host's loopback, each with the machine's port that it leads to."""
    services: tuple[tuple[str, str], ...] = ()
    """Further services that the machine reaches, each by `ADDRESS:PORT` in its network, with the
    abstract name of the socket where it listens."""
    outside: bool = False
    """Whether the machine reaches the world. A check must not depend on it."""
    private: tuple[str, str] | None = None
    """A second card's network, as a `-netdev` without an id, and the card's address."""


def find_firmware() -> tuple[Path, Path] | None:
    """UEFI's code, and the variables that it begins with; None where OVMF is not installed."""
    for names in FIRMWARE.items():
        code, variables = (FIRMWARE_FOLDER / name for name in names)
        if code.is_file() and variables.is_file():
            return code, variables
    return None


def ready_disk(machine: Machine, disk: Path) -> None:
    """Turns an image's raw copy into the disk that the machine gets: larger by its spare bytes, and
    with the firmware's variables or the site's ramdisk beside it. Raises HostError where the
    firmware, or what the ramdisk is made of, is missing."""
    if machine.spare:
        os.truncate(disk, disk.stat().st_size + machine.spare)
    if machine.kernel is not None:
        if machine.kernel.kernel is None:
            _, ramdisk = site_kernel.make(disk.parent)
            ramdisk.rename(_ramdisk(disk))
        else:
            _make_partition(disk)
    if machine.firmware == "uefi":
        _, variables = _require_firmware()
        shutil.copyfile(variables, _variables(disk))


def make_overlay(base: Path, overlay: Path) -> None:
    """Makes the disk of one more machine from the disk that `ready_disk` has made, which must not
    change any more: a file of format qcow2 with what the machine writes, and copies of what lies
    beside the base. Raises ToolError, HostError."""
    backing = ("-b", str(base.absolute()), "-F", "raw")
    capture(["qemu-img", "create", "-q", "-f", "qcow2", *backing, str(overlay)])
    for beside in base.parent.glob(f"{base.name}.*"):
        copy = overlay.with_name(overlay.name + beside.name.removeprefix(base.name))
        shutil.copyfile(beside, copy)


def command(
    machine: Machine, disk: Path, network: Network, accelerator: str, *, format: str = "raw"
) -> list[str]:
    """The command that runs a machine from a disk of this format, its serial port on standard input
    and output. It ends when the machine powers off or wants to start again.

    A machine with UEFI, or with the site's kernel, finds what it needs where `ready_disk` put it.
    """
    # Without graphics the BIOS writes to the serial port too what it and GRUB write to the screen.
    board = f"{machine.board},graphics=off" if machine.serial else machine.board
    return [
        "qemu-system-x86_64",
        *("-nodefaults", "-no-user-config", "-no-reboot", "-display", "none"),
        *("-machine", board, "-accel", accelerator),
        *("-m", str(machine.memory // MIB), "-smp", str(machine.cpus), "-vga", "std"),
        *(_firmware(disk) if machine.firmware == "uefi" else ()),
        *(() if machine.kernel is None else _kernel(machine, machine.kernel, disk)),
        *(() if machine.vendor is None else _firmware_tables(machine.vendor)),
        # The disk is thrown away, so nothing of it need ever reach the host's disk.
        *("-drive", f"id=root,if=none,format={format},cache=unsafe,file={_escape(disk)}"),
        *_DISKS[machine.disk_bus],
        *("-netdev", _netdev(machine, network)),
        *("-device", f"{machine.network_card},netdev=net"),
        *(() if network.private is None else _second_card(machine, *network.private)),
        *(("-serial", "mon:stdio" if network.outside else "stdio") if machine.serial else ()),
    ]


def _require_firmware() -> tuple[Path, Path]:
    firmware = find_firmware()
    if firmware is None:
        raise HostError("UEFI's firmware (OVMF) is not installed", todo=setup_hint("it"))
    return firmware


def _firmware(disk: Path) -> list[str]:
    code, _ = _require_firmware()
    return [
        *("-drive", f"if=pflash,unit=0,format=raw,readonly=on,file={_escape(code)}"),
        *("-drive", f"if=pflash,unit=1,format=raw,file={_escape(_variables(disk))}"),
    ]


def _kernel(machine: Machine, wanted: SiteKernel, disk: Path) -> list[str]:
    kernel, ramdisk = wanted.kernel, wanted.ramdisk
    if kernel is None:
        kernel, ramdisk = site_kernel.find_kernel(), _ramdisk(disk)
        assert kernel is not None, "ready_disk comes first"
    consoles = "console=tty0 console=ttyS0,115200" if machine.serial else "console=tty0"
    return [
        *("-kernel", str(kernel), "-append", f"{wanted.command_line} {consoles}"),
        *(() if ramdisk is None else ("-initrd", str(ramdisk))),
    ]


def _firmware_tables(vendor: str) -> list[str]:
    """What a guest reads to know its cloud: AWS's documentation, "Determine whether an instance is
    an EC2 instance", has it look at the UUID's first characters."""
    return [
        *("-uuid", _UUID),
        *("-smbios", f"type=0,vendor={vendor}"),
        *("-smbios", f"type=1,manufacturer={vendor},serial={_UUID}"),
        *("-smbios", f"type=3,manufacturer={vendor},asset={vendor}"),
    ]


def _ramdisk(disk: Path) -> Path:
    return disk.with_name(f"{disk.name}.ramdisk")


def _make_partition(disk: Path) -> None:
    """Turns a bare file system into a disk with one partition: a kernel that is not ours finds
    `sda1` nowhere else, as QEMU has no disk of that name."""
    bare = disk.with_name(f"{disk.name}.bare")
    disk.rename(bare)
    with disk.open("wb") as file:
        file.truncate(_PARTITION_START + bare.stat().st_size)
    sfdisk.write_table(disk, f"label: dos\nstart={_PARTITION_START // 512}, type=83\n")
    with disk.open("r+b") as file:
        sparse.copy_into(bare, file.fileno(), _PARTITION_START)
    bare.unlink()


def _variables(disk: Path) -> Path:
    return disk.with_name(f"{disk.name}.efivars")


def _netdev(machine: Machine, network: Network) -> str:
    words = [
        f"user,id=net,net={machine.network},restrict={'off' if network.outside else 'on'}",
        *_gateway(machine.network),
    ]
    for address, name in ((machine.metadata_address, network.metadata_socket), *network.services):
        # A program for each connection: the built-in forwarding serves only one.
        words.append(f"guestfwd=tcp:{address}-cmd:socat - ABSTRACT-CONNECT:{name}")
    ssh = () if network.ssh_port is None else ((network.ssh_port, 22),)
    for here, there in (*ssh, *network.forwards):
        words.append(f"hostfwd=tcp:127.0.0.1:{here}-:{there}")
    return ",".join(words)


def _second_card(machine: Machine, netdev: str, mac: str) -> list[str]:
    kind, _, rest = netdev.partition(",")
    card = f"{machine.network_card},netdev=private,mac={mac}"
    return ["-netdev", f"{kind},id=private,{rest}", "-device", card]


def _gateway(network: str) -> list[str]:
    """EC2's gateway is the first address of a subnet; elsewhere QEMU's own choice, the second, is
    as good as any."""
    subnet = ipaddress.IPv4Network(network)
    return [f"host={subnet[1]}"] if subnet.subnet_of(_LINK_LOCAL) else []


def _escape(path: Path) -> str:
    """A path as QEMU's options can hold it."""
    return str(path).replace(",", ",,")
