"""Whether an image would boot at a site as it is, and what would stand in the way of converting it.

Asked of what an image is and of what a site's machines have, and never of which cloud it is.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from pipeline.guest.fstab import Line
from pipeline.guest.inspection import describe_place
from pipeline.guest.system import FileSystem, System
from pipeline.model import Disk, Hardware, Machine
from pipeline.tools import ext4
from pipeline.tools.disk_formats import called
from pipeline.tools.kernel import Fault, Kernel, Remedies, find_faults

EFI_SYSTEM = ("C12A7328-F81F-11D2-BA4B-00A0C93EC93B", "ef")
"""The type of an EFI system partition, in a GPT and in an MBR."""

_ARCHITECTURES = ("x86_64", "i686")  # what an x86_64 machine runs
_NODE_TYPES = ("ext2", "ext3", "ext4")
_DEVICE = re.compile(r"/dev/((?:s|h|v|xv)d[a-z]+[0-9]*|nvme[0-9]+n[0-9]+(?:p[0-9]+)?)$")
_WAITS_FOR_NOTHING = frozenset({"noauto", "nofail", "_netdev"})


@dataclass(frozen=True, kw_only=True)
class Inside:
    """What was read in an image besides its `System`."""

    kernel: Kernel | None
    """What its boot loader boots."""
    kernel_error: str | None
    """Why there is no kernel."""
    remedies: Remedies
    foreign: tuple[Fault, ...]
    """What would fail under a kernel that is not its own."""
    mounts: tuple[Line, ...]
    """Its fstab."""
    menu: bool
    """Whether it has a boot menu that pygrub reads."""
    remarks: tuple[str, ...]
    """What is no reason against booting, but should not be in an image that many machines boot."""


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """What became of an image at one kind of site."""

    reasons: tuple[str, ...]
    """Why it would not boot as it is; empty: it would."""
    obstacles: tuple[str, ...]
    """Why it would not boot after it was converted for the site; empty: it would."""
    notes: tuple[str, ...]
    """What a person should know besides."""


def judge(
    system: System,
    inside: Inside,
    *,
    disk: Disk,
    hardware: Hardware,
    machines: Sequence[Machine],
    file_format: str,
    compression: str | None,
) -> Verdict:
    """What an image would do at a site that boots that disk on those machines."""
    reasons = list(_architecture(system))
    if disk.layout == "bare":
        reasons += _bare(system)
    else:
        reasons += _boot_loader(system, machines)
    if any(machine.edits for machine in machines):
        reasons += _edits(system, bare=disk.layout == "bare")
    if hardware.own_kernel:
        reasons += _kernel(inside, hardware)
        reasons += _mounts(system, inside)
    else:
        reasons += [fault.what for fault in inside.foreign]
    notes = []
    if (file_format, compression) != (disk.format, disk.compression):
        wanted = " in ".join(filter(None, (called(disk.format), disk.compression)))
        notes.append(f"the file has to be made {wanted} first")
    if not hardware.own_kernel and not inside.menu:
        notes.append("pygrub would find no boot menu; a kernel that the site gives needs none")
    if disk.layout != "bare":
        notes += _firmware(system, machines)
    return Verdict(
        reasons=tuple(dict.fromkeys(reasons)),
        obstacles=tuple(dict.fromkeys(_obstacles(system, inside, hardware))),
        notes=tuple(notes),
    )


# ---- as it is


def _architecture(system: System) -> Iterator[str]:
    if system.architecture not in _ARCHITECTURES:
        yield f"its programs are for {system.architecture}, and the machines are x86_64"


def _bare(system: System) -> Iterator[str]:
    if system.table is not None:
        yield f"it has a partition table ({system.table}), and the site boots a bare file system"
    elif system.root.place.volume is not None:
        yield "its root is a logical volume, and the site boots a bare file system"
    if system.root.type not in ("ext3", "ext4"):
        yield f"its root is {system.root.type}, and only ext3 and ext4 can be counted on"


def _boot_loader(system: System, machines: Sequence[Machine]) -> Iterator[str]:
    if system.table is None and not system.boot_code:
        yield "it is a bare file system, and the site boots a disk with a boot loader of its own"
        return
    if not _firmwares(system) & {machine.firmware for machine in machines}:
        wanted = " or ".join(dict.fromkeys(machine.firmware for machine in machines))
        yield f"nothing on it boots by {wanted.replace('bios', 'BIOS').replace('uefi', 'UEFI')}"
    elif not system.boot_loaders:
        yield "it has no configuration of a boot loader that is known"


def _firmwares(system: System) -> set[str]:
    """By what the disk could be booted."""
    found = {"bios"} if system.boot_code else set()
    types = {each.place.partition: each.type for each in system.file_systems}
    for each in system.partitions:
        if each.type in EFI_SYSTEM and types.get(each.number) == "vfat":
            found.add("uefi")
    return found


def _firmware(system: System, machines: Sequence[Machine]) -> Iterator[str]:
    wanted = {machine.firmware for machine in machines}
    found = _firmwares(system) & wanted
    if found and found != wanted:
        names = {"bios": "BIOS", "uefi": "UEFI"}
        yield f"it boots by {names[found.pop()]} only"


def _edits(system: System, *, bare: bool) -> Iterator[str]:
    """A node mounts the first partition, and writes into it."""
    root = system.root
    if not bare and system.table is not None:
        first = min(system.partitions, key=lambda each: each.number)
        if root.place.volume is not None:
            yield f"its root is the logical volume {root.place.volume}, into which no node writes"
        elif root.place.partition != first.number:
            kind = next(
                (each.type for each in system.file_systems if each.place.partition == first.number),
                "",
            )
            yield (
                f"partition {first.number} ({kind or 'nothing known'}) comes first, and nodes "
                f"write into the first one: root has to be it, and is "
                f"{describe_place(root.place)}"
            )
    if root.type not in _NODE_TYPES:
        yield f"its root is {root.type}, which not every node mounts"
    new = sorted(ext4.NEW_FEATURES.intersection(system.root_features))
    if new:
        yield f"its root has features that older nodes do not know: {', '.join(new)}"
    for mount in ("/root", "/var"):
        if any(each.mount == mount for each in system.file_systems):
            yield f"{mount} is a file system of its own, and nodes write into the root's"


def _kernel(inside: Inside, hardware: Hardware) -> Iterator[str]:
    if inside.kernel is None:
        yield inside.kernel_error or "it has no kernel"
        return
    for fault in find_faults(inside.kernel, hardware, inside.remedies):
        yield f"kernel {inside.kernel.version}: {fault.what}"
    for word in inside.kernel.command_line:
        device = _DEVICE.match(word.removeprefix("root=")) if word.startswith("root=") else None
        if device is not None:
            yield (
                f"its boot loader names root by {device[0]}, and disks have other names elsewhere: "
                "label or UUID"
            )


def _mounts(system: System, inside: Inside) -> Iterator[str]:
    for line in inside.mounts:
        if _WAITS_FOR_NOTHING.intersection(line.options):
            continue
        if _DEVICE.match(line.source):
            yield (
                f"fstab names {_use(line)} by {line.source}, and disks have other names elsewhere: "
                "label or UUID"
            )
        elif not _is_there(line.source, system):
            yield f"fstab names {_use(line)} by {line.source}, which is not in the image"


def _use(line: Line) -> str:
    return "swap" if line.type == "swap" else line.mount


def _is_there(source: str, system: System) -> bool:
    """Whether the file system is there that a tag names; what is named otherwise counts so."""
    tag, _, value = source.partition("=")
    if tag not in ("UUID", "LABEL", "PARTUUID", "PARTLABEL"):
        return True

    def named(each: FileSystem) -> Iterator[str]:
        yield {"UUID": each.uuid, "LABEL": each.label}.get(tag, "")
        for partition in system.partitions:
            if partition.number == each.place.partition:
                yield {"PARTUUID": partition.uuid, "PARTLABEL": partition.name}.get(tag, "")

    return any(value == name for each in system.file_systems for name in named(each))


# ---- after it was converted


def _obstacles(system: System, inside: Inside, hardware: Hardware) -> Iterator[str]:
    yield from _architecture(system)
    if system.init is None:
        yield "it has no init system that could start the user-data fetcher"
    if not system.clients:
        yield "it has neither curl nor wget, and the user-data fetcher needs one"
    if not hardware.own_kernel:
        return  # the conversion deals with what fstab mounts and with modules
    if inside.kernel is None:
        yield inside.kernel_error or "it has no kernel"
    else:
        heard = replace(inside.kernel, command_line=(f"console={hardware.console}",))
        for fault in find_faults(heard, hardware, inside.remedies):
            yield f"kernel {inside.kernel.version}: {fault.what}"
