"""QEMU: a site's virtual machine on this host."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from pipeline.model import MIB, Machine

_DISKS = {
    "ide": ["-device", "ide-hd,drive=root,bus=ide.0"],
    "virtio": ["-device", "virtio-blk-pci,drive=root"],
}


@dataclass(frozen=True, kw_only=True)
class Network:
    """What the machine's network card reaches."""

    metadata_port: int
    """Where the metadata service listens on this host's loopback."""
    ssh_port: int | None = None
    """A port of this host's loopback that leads to the machine's SSH server."""
    outside: bool = False
    """Whether the machine reaches the world. A check must not depend on it."""


def command(machine: Machine, disk: Path, network: Network, accelerator: str) -> list[str]:
    """The command that runs a machine from a raw disk, its serial port on standard input and
    output. It ends when the machine powers off or wants to start again."""
    # Without graphics the BIOS writes to the serial port too what it and GRUB write to the screen.
    board = f"{machine.board},graphics=off" if machine.serial else machine.board
    return [
        "qemu-system-x86_64",
        *("-nodefaults", "-no-user-config", "-no-reboot", "-display", "none"),
        *("-machine", board, "-accel", accelerator),
        *("-m", str(machine.memory // MIB), "-smp", str(machine.cpus), "-vga", "std"),
        # The disk is thrown away, so nothing of it need ever reach the host's disk.
        *("-drive", f"id=root,if=none,format=raw,cache=unsafe,file={_escape(disk)}"),
        *_DISKS[machine.disk_bus],
        *("-netdev", _netdev(machine, network)),
        *("-device", f"{machine.network_card},netdev=net"),
        *(("-serial", "mon:stdio" if network.outside else "stdio") if machine.serial else ()),
    ]


def _netdev(machine: Machine, network: Network) -> str:
    words = [
        f"user,id=net,net={machine.network},restrict={'off' if network.outside else 'on'}",
        # A program for each connection: the built-in forwarding serves only one.
        f"guestfwd=tcp:{machine.metadata_address}-cmd:socat - "
        f"TCP:127.0.0.1:{network.metadata_port}",
    ]
    if network.ssh_port is not None:
        words.append(f"hostfwd=tcp:127.0.0.1:{network.ssh_port}-:22")
    return ",".join(words)


def _escape(path: Path) -> str:
    """A path as QEMU's options can hold it."""
    return str(path).replace(",", ",,")
