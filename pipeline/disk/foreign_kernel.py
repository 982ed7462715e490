"""Finds what in an image would fail under a site's own kernel.

A Xen site boots a bare file system with the site's kernel and ramdisk. The image does not hold that
kernel's modules, so it can rely only on what every such kernel or ramdisk provides: the disk's
driver, and ext3 or ext4.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import PurePosixPath

from pipeline.disk import fstab
from pipeline.disk.fstab import FSTAB
from pipeline.disk.kernel import Fault
from pipeline.disk.tree import Tree

_LOADED = tuple(
    map(PurePosixPath, ("/etc/modules-load.d", "/usr/lib/modules-load.d", "/lib/modules-load.d"))
)
_LOADER = "systemd-modules-load.service"
_UNITS = tuple(map(PurePosixPath, ("/usr/lib/systemd/system", "/lib/systemd/system")))
CONDITION = PurePosixPath(f"/etc/systemd/system/{_LOADER}.d/phantom.conf")
"""This file makes systemd load modules only if the image has some for the running kernel."""
_ROOT_TYPES = {"ext3", "ext4", "auto"}
# File systems that need no device, and bind mounts.
_VIRTUAL = frozenset(
    {
        *("proc", "sysfs", "tmpfs", "devtmpfs", "devpts", "cgroup", "cgroup2", "mqueue", "none"),
        *("debugfs", "tracefs", "securityfs", "hugetlbfs", "bind", "ramfs", "configfs", "bpf"),
        *("fusectl", "pstore", "efivarfs", "selinuxfs"),
    }
)


def find_faults(tree: Tree) -> list[Fault]:
    """What would fail at every boot."""
    return [*_mount_faults(tree), *_module_faults(tree)]


def _mount_faults(tree: Tree) -> Iterator[Fault]:
    for line in fstab.parse(tree.read(FSTAB)):
        of_root = line.source.startswith("/") and not line.source.startswith("/dev/")
        if line.mount == "/":
            if _ROOT_TYPES.isdisjoint(line.type.split(",")):
                yield Fault(
                    f"{FSTAB} says that root is {line.type}, and only ext3 and ext4 can be counted "
                    "on",
                    f"correct the image's {FSTAB}",
                )
        elif line.type not in _VIRTUAL and not line.optional and not of_root:
            swap = line.type == "swap"
            what = "uses swap on" if swap else f"mounts {line.mount} ({line.type}) from"
            yield Fault(
                f"{FSTAB} {what} {line.source}, and the machine has root and nothing else",
                f"take it out of the image's {FSTAB}, or add `nofail` to its options",
            )


def _module_faults(tree: Tree) -> Iterator[Fault]:
    """Only systemd counts this as a failure; other init systems' scripts continue."""
    if CONDITION.name in tree.names(CONDITION.parent):
        return
    if not any(_LOADER in tree.names(folder) for folder in _UNITS):
        return
    seen = set()
    for file in (folder / name for folder in _LOADED for name in sorted(tree.names(folder))):
        if file.suffix != ".conf":
            continue
        text = tree.read(file)
        names = re.findall(r"^[ \t]*([A-Za-z0-9_-]+)", text, re.MULTILINE)
        if names and text not in seen:
            yield Fault(
                f"{file} has {', '.join(names)} loaded, and the site's kernel may have no such "
                "module",
                f"take what is not needed out of the image's {file}",
            )
        seen.add(text)  # two of the folders may be one, by a link
