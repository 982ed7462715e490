"""Whether an image would boot at a site as it is, and what would prevent its conversion.

The answer depends on the image and on the site's machines, never on the name of the cloud.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from pipeline.disk.formats import to_user_name
from pipeline.disk.fstab import Line
from pipeline.disk.kernel import Fault, Kernel, Remedies, find_faults
from pipeline.disk.superblock import NEW_FEATURES
from pipeline.disk.system import FileSystem, System
from pipeline.guest.mounting import describe_place
from pipeline.layouts import LAYOUTS
from pipeline.model import Disk, Hardware, Machine
from pipeline.sources.base_disk import Looked

EFI_SYSTEM = ("C12A7328-F81F-11D2-BA4B-00A0C93EC93B", "ef")
"""The type of an EFI system partition, in a GPT and in an MBR."""

_ARCHITECTURES = ("x86_64", "i686")  # what an x86_64 machine runs
_NODE_TYPES = ("ext2", "ext3", "ext4")
_DEVICE = re.compile(r"/dev/((?:s|h|v|xv)d[a-z]+[0-9]*|nvme[0-9]+n[0-9]+(?:p[0-9]+)?)$")


@dataclass(frozen=True, kw_only=True)
class Inside:
    """What an image holds besides its `System`."""

    kernel: Kernel | str
    """The kernel that its boot loader boots, or why there is none."""
    remedies: Remedies
    foreign: tuple[Fault, ...]
    """What would fail under a kernel of the site."""
    mounts: tuple[Line, ...]
    """The lines of its fstab."""
    menu: bool
    """Whether it has a boot menu that pygrub reads."""
    remarks: tuple[str, ...]
    """What does not keep it from booting, but should not be in an image that many machines boot."""


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """What an image would do at one kind of site."""

    reasons: tuple[str, ...]
    """Why it would not boot as it is; empty if it would."""
    obstacles: tuple[str, ...]
    """Why it would not boot even after its conversion for the site; empty if it would."""
    notes: tuple[str, ...]
    """What else a person should know."""


def judge(
    file: Looked,
    system: System,
    inside: Inside,
    disk: Disk,
    hardware: Hardware,
    machines: Sequence[Machine],
) -> Verdict:
    """Judges an image for a site that boots such a disk on such machines. `file` is its file."""
    bare = LAYOUTS[disk.layout].table is None
    reasons = list(_architecture(system))
    if bare:
        reasons += _bare(system)
    else:
        reasons += _boot_loader(system, machines)
    if any(machine.edits for machine in machines):
        reasons += _edits(system, bare=bare)
    if hardware.own_kernel:
        reasons += _kernel(inside, hardware)
        reasons += _mounts(system, inside)
    else:
        reasons += [fault.what for fault in inside.foreign]
    notes = []
    if (file.format, file.compression) != (disk.format, disk.compression):
        wanted = " in ".join(filter(None, (to_user_name(disk.format), disk.compression)))
        notes.append(f"the file has to be made {wanted} first")
    if not hardware.own_kernel and not inside.menu:
        notes.append("pygrub would find no boot menu; a kernel that the site gives needs none")
    if not bare:
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
        wanted = " or ".join(dict.fromkeys(machine.firmware.upper() for machine in machines))
        yield f"nothing on it boots by {wanted}"
    elif not system.boot_loaders:
        yield "it has no configuration of a boot loader that is known"


def _firmwares(system: System) -> set[str]:
    """The kinds of firmware that could boot the disk."""
    firmwares = {"bios"} if system.boot_code else set()
    for partition in system.partitions:
        if partition.type in EFI_SYSTEM and _types(system).get(partition.number) == "vfat":
            firmwares.add("uefi")
    return firmwares


def _types(system: System) -> dict[int | None, str]:
    """The type of each partition's file system, by the partition's number."""
    return {each.place.partition: each.type for each in system.file_systems}


def _firmware(system: System, machines: Sequence[Machine]) -> Iterator[str]:
    wanted = {machine.firmware for machine in machines}
    able = _firmwares(system) & wanted
    if able and able != wanted:
        yield f"it boots by {able.pop().upper()} only"


def _edits(system: System, *, bare: bool) -> Iterator[str]:
    """What would keep a node from mounting the first partition and writing into it."""
    root = system.root
    if not bare and system.table is not None:
        first = min(system.partitions, key=lambda partition: partition.number)
        if root.place.volume is not None:
            yield f"its root is the logical volume {root.place.volume}, into which no node writes"
        elif root.place.partition != first.number:
            kind = _types(system).get(first.number) or "nothing known"
            yield (
                f"partition {first.number} ({kind}) comes first, and nodes write into the first "
                f"one: root has to be it, and is {describe_place(root.place)}"
            )
    if root.type not in _NODE_TYPES:
        yield f"its root is {root.type}, which not every node mounts"
    new = sorted(NEW_FEATURES.intersection(system.root_features))
    if new:
        yield f"its root has features that older nodes do not know: {', '.join(new)}"
    for mount in ("/root", "/var"):
        if any(file_system.mount == mount for file_system in system.file_systems):
            yield f"{mount} is a file system of its own, and nodes write into the root's"


def _kernel(inside: Inside, hardware: Hardware) -> Iterator[str]:
    if isinstance(inside.kernel, str):
        yield inside.kernel
        return
    for fault in find_faults(inside.kernel, hardware, inside.remedies):
        yield f"kernel {inside.kernel.version}: {fault.what}"
    for word in inside.kernel.command_line:
        if word.startswith("root=") and (device := _DEVICE.match(word.removeprefix("root="))):
            yield (
                f"its boot loader names root by {device[0]}, and disks have other names elsewhere: "
                "label or UUID"
            )


def _mounts(system: System, inside: Inside) -> Iterator[str]:
    for line in inside.mounts:
        if line.optional:
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
    """Whether the image has the file system that a tag names; other names count as there."""
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
    if isinstance(inside.kernel, str):
        yield inside.kernel
    else:
        heard = replace(inside.kernel, command_line=(f"console={hardware.console}",))
        for fault in find_faults(heard, hardware, inside.remedies):
            yield f"kernel {inside.kernel.version}: {fault.what}"
