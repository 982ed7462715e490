"""What in an image would fail under a kernel that is not its own, with no module of it at hand.

A Xen site boots a bare file system with a kernel and ramdisk of its own. Their modules are not in
the image, so only what every kernel has built in or its ramdisk brings can be counted on: the disk,
and ext3 or ext4.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import PurePosixPath

from pipeline.tools.kernel import Fault, Tree

_FSTAB = PurePosixPath("/etc/fstab")
_LOADED = tuple(
    map(PurePosixPath, ("/etc/modules-load.d", "/usr/lib/modules-load.d", "/lib/modules-load.d"))
)
_LOADER = "systemd-modules-load.service"
_UNITS = tuple(map(PurePosixPath, ("/usr/lib/systemd/system", "/lib/systemd/system")))
CONDITION = PurePosixPath(f"/etc/systemd/system/{_LOADER}.d/phantom.conf")
"""With it, systemd loads modules only where the image has some for the kernel that runs."""
_ROOT_TYPES = ("ext3", "ext4", "auto")
# Of no device: the kernel's own, and binds of what is there already.
_VIRTUAL = frozenset(
    {
        *("proc", "sysfs", "tmpfs", "devtmpfs", "devpts", "cgroup", "cgroup2", "mqueue", "none"),
        *("debugfs", "tracefs", "securityfs", "hugetlbfs", "bind", "ramfs", "configfs", "bpf"),
        *("fusectl", "pstore", "efivarfs", "selinuxfs"),
    }
)
_WAITS_FOR_NOTHING = {"noauto", "nofail", "_netdev", "bind", "rbind"}


def find_faults(tree: Tree) -> list[Fault]:
    """What fails at every boot; nothing where all is well."""
    return [*_mount_faults(tree), *_module_faults(tree)]


def _mount_faults(tree: Tree) -> Iterator[Fault]:
    for line in tree.read(_FSTAB).splitlines():
        words = line.split("#")[0].split()
        if len(words) < 3:
            continue
        source, where, kind = words[:3]
        options = set(words[3].split(",")) if len(words) > 3 else set()
        if where == "/":
            if not {*kind.split(",")} & {*_ROOT_TYPES}:
                yield Fault(
                    f"{_FSTAB} says that root is {kind}, and only ext3 and ext4 can be counted on",
                    f"correct the image's {_FSTAB}",
                )
        elif kind not in _VIRTUAL and not options & _WAITS_FOR_NOTHING:
            what = "uses swap on" if kind == "swap" else f"mounts {where} ({kind}) from"
            if source.startswith("/") and not source.startswith("/dev/"):
                continue  # a file of root's
            yield Fault(
                f"{_FSTAB} {what} {source}, and the machine has root and nothing else",
                f"take it out of the image's {_FSTAB}, or add `nofail` to its options",
            )


def _module_faults(tree: Tree) -> Iterator[Fault]:
    """Of systemd alone: the scripts of other init systems go on."""
    if CONDITION.name in tree.names(CONDITION.parent):
        return
    if not any(_LOADER in tree.names(folder) for folder in _UNITS):
        return
    seen = set()
    for file in (folder / name for folder in _LOADED for name in sorted(tree.names(folder))):
        if file.suffix != ".conf":
            continue
        text = tree.read(file)
        names = re.findall(r"^\s*([A-Za-z0-9_-]+)", text, re.MULTILINE)
        if names and text not in seen:
            yield Fault(
                f"{file} has {', '.join(names)} loaded, and the site's kernel may have no such "
                "module",
                f"take what is not needed out of the image's {file}",
            )
        seen.add(text)  # two folders may be one
