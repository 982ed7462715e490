"""What a build host must have: programs, rights, namespaces, space, and a guest that really runs.

`diagnose` looks at all of it for `phantom-image doctor`. Before a build, `require` of
`requirements.py` looks only for what its stages need.
"""

from __future__ import annotations

import os
import re
import shutil
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

from pipeline import resources
from pipeline.errors import HostError, MirrorError, PhantomError
from pipeline.machine.accelerator import (
    KVM,
    available_memory,
    find_accelerator,
    libguestfs_environment,
    time_guest,
)
from pipeline.machine.requirements import FILES, PROGRAMS, SETUP, Finding, mend_by
from pipeline.model import GIB, MIB, format_size
from pipeline.tools import apt, dib, namespace, run

Check = Callable[[Path], Finding]

_REINSTALL = "reinstall phantom-image" if resources.INSTALLED else SETUP


def diagnose(store: Path) -> list[Finding]:
    """Looks at everything; `store` is the folder that artifacts go to, which may not exist yet.

    The slowest check, libguestfs without KVM, decides how long it takes: about ten seconds.
    """
    everything = checks()
    with ThreadPoolExecutor(max_workers=len(everything)) as pool:
        return list(pool.map(lambda check: _checked(check, store), everything))


def checks() -> list[Check]:
    """All checks, in the order of their report."""
    return [
        *(program.check for program in PROGRAMS),
        _check_diskimage_builder,
        *(files.check for files in FILES),
        _check_rights,
        _check_namespaces,
        _check_mirror,
        _check_memory,
        _check_space,
        _check_guest,
        _check_libguestfs,
    ]


def _checked(check: Check, store: Path) -> Finding:
    """What a check finds, or that it could not look."""
    try:
        return check(store)
    except PhantomError as error:
        name = getattr(check, "__name__", "check").removeprefix("_check_").replace("_", " ")
        return Finding(
            name=name,
            ok=False,
            found=error.what,
            meaning=(error.detail or "this could not be looked at").splitlines()[-1],
            mend=error.todo,
        )


def require_isolation(store: Path) -> None:
    """Checks that programs can run as root in namespaces of their own, with folders of the store's
    file system. Raises HostError, SudoError."""
    way = namespace.find_way(_existing(store))
    if not way.mapped:
        namespace.check_root(way)
    finding = _check_namespaces(store)
    if not finding.ok:
        raise HostError(f"{finding.name}: {finding.found}", todo=finding.mend)


def _check_diskimage_builder(_store: Path) -> Finding:
    finding = partial(Finding, name="diskimage-builder", meaning="runs the elements' hooks")
    if not (dib.PROGRAMS / "disk-image-create").is_file():
        return finding(ok=False, found="not beside this Python", mend=_REINSTALL)
    return finding(ok=True, found=dib.version())


# ---- rights, namespaces and room


def _check_rights(store: Path) -> Finding:
    finding = partial(Finding, name="rights")
    way = namespace.find_way(_existing(store))
    if way.mapped:
        found = "root of a user namespace, and of nothing else"
        return finding(ok=True, found=found, meaning="builds run without root's rights")
    meaning = f"definitions are root on this host: {way.refused}"
    if os.geteuid() == 0:
        return finding(ok=None, found="this is root", meaning=meaning, mend=way.mend)
    try:
        run.capture(["sudo", "-n", "true"])
    except HostError:
        mend = way.mend or "run as root, or as root: apt-get install sudo && adduser USER sudo"
        told = f"no user namespace ({way.refused}), no sudo, and this is not root"
        return finding(ok=False, found=told, meaning="nothing can be built", mend=mend)
    except run.ToolError:
        told = "sudo asks for a password, or does not know this user"
        mend = way.mend or "sudo -v   # before the build; if that fails, ask an administrator"
        return finding(ok=None, found=told, meaning=meaning, mend=mend)
    return finding(ok=None, found="by sudo", meaning=meaning, mend=way.mend)


def _check_namespaces(store: Path) -> Finding:
    meaning = "even a killed build leaves no mount and no process"
    untried = "not tried without root's rights"
    finding = partial(Finding, name="namespaces", meaning=meaning)
    folder = _existing(store)
    if namespace.find_way(folder).mapped:
        return finding(ok=True, found="user, mount, process and network namespaces")
    try:
        namespace.try_as_root(folder)
    except HostError:  # there is no sudo
        return finding(ok=None, found=untried)
    except run.ToolError as error:
        complaint = (error.output.strip() or error.what).splitlines()[-1].removeprefix("isolate: ")
        if complaint.startswith("sudo:"):
            return finding(ok=None, found=untried, mend="sudo -v   # then run this again")
        mend = "in a container: run it privileged; else boot a kernel with namespaces and tmpfs"
        return finding(ok=False, found=complaint, mend=mend)
    return finding(ok=True, found="mount, process and network namespaces")


def _existing(folder: Path) -> Path:
    """The nearest folder above, or this one, that is there and that this user may write to; else
    that of temporary files."""
    folder = folder.absolute()
    while not os.path.isdir(folder):
        folder = folder.parent
    return folder if os.access(folder, os.W_OK | os.X_OK) else Path(tempfile.gettempdir())


# Debian's minimal system with a kernel takes 500 MB unpacked, its disk twice that until stored, and
# its packages 200 MB more.
_SPACE_NEEDED, _SPACE_WANTED = 3 * GIB, 10 * GIB
# With less than the first, no machine boots; with the second or more, builds run in memory.
_MEMORY_NEEDED, _MEMORY_WANTED = 768 * MIB, 5 * GIB


def _check_space(store: Path) -> Finding:
    folder = store.absolute()
    while not os.path.exists(folder):  # nor where this user may not even look
        folder = folder.parent
    free = shutil.disk_usage(folder).free
    ok, refused = _rank(free, _SPACE_NEEDED, _SPACE_WANTED), ""
    if not os.access(folder, os.W_OK | os.X_OK):
        ok, refused = False, ", which this user may not write to"
    return Finding(
        name="space for artifacts",
        ok=ok,
        found=f"{format_size(free)} free in {folder}{refused}",
        meaning=f"a build takes about {format_size(_SPACE_NEEDED)}, and the store keeps several",
        mend=None if ok else "phantom-image gc, or set PHANTOM_STORE to a folder with more room",
    )


def _check_memory(_store: Path) -> Finding:
    available = available_memory()
    finding = partial(Finding, name="memory", found=f"{format_size(available)} available")
    ok = _rank(available, _MEMORY_NEEDED, _MEMORY_WANTED)
    if ok:
        return finding(ok=ok, meaning="enough to build in memory")
    mend = f"end other programs, or give this host {format_size(_MEMORY_WANTED)} or more"
    return finding(ok=ok, meaning="builds go by way of the disk, which is slower", mend=mend)


def _rank(amount: int, needed: int, wanted: int) -> bool | None:
    if amount < needed:
        return False
    return True if amount >= wanted else None


def _check_mirror(_store: Path) -> Finding:
    finding = partial(Finding, name="mirror", meaning="where packages of images come from")
    try:
        return finding(ok=True, found=apt.find_mirrors("stable").main)
    except MirrorError as error:
        return finding(ok=False, found=error.what, mend=error.todo)


# ---- a guest that really runs


def _check_guest(_store: Path) -> Finding:
    slower = "boot checks run without KVM and take several times as long"
    slow = partial(Finding, name="guest", ok=None, meaning=slower)
    try:
        tcg = time_guest("tcg")
    except (HostError, run.ToolError) as error:
        return Finding(
            name="guest",
            ok=False,
            found=f"QEMU runs none: {_last_line(error)}",
            meaning="no image can be checked, so none is published",
            mend="sudo apt-get install --reinstall qemu-system-x86 qemu-system-data seabios",
        )
    if not KVM.exists():
        return slow(
            found=f"runs under TCG; there is no {KVM}",
            mend="sudo modprobe kvm_intel || sudo modprobe kvm_amd   # in a virtual machine: have "
            "its host allow nested virtualization",
        )
    if not os.access(KVM, os.R_OK | os.W_OK):
        return slow(
            found=f"runs under TCG; this user may not open {KVM}",
            mend='sudo adduser "$USER" kvm   # then log in again',
        )
    try:
        found = f"runs under KVM ({time_guest('kvm'):.2f} s)"
    except run.ToolError as error:
        return slow(
            found=f"runs under TCG ({tcg:.2f} s); under KVM, {_last_line(error)}",
            mend="none on this host: another hypervisor imitates KVM, and does it too badly",
        )
    return Finding(name="guest", ok=True, found=found, meaning="boot checks run at full speed")


def _last_line(error: PhantomError) -> str:
    return (error.detail or error.what).splitlines()[-1]


# ---- libguestfs

LIBGUESTFS_SECONDS = 120.0  # ten times a launch under TCG; the first one also makes the appliance

# In a process of its own: where the appliance's QEMU dies, libguestfs may take its caller along.
_LAUNCH = """
import guestfs
machine = guestfs.GuestFS(python_return_dict=True)
machine.add_drive_scratch(1 << 20)
machine.launch()
version = machine.version()
print(version["major"], version["minor"], version["release"], sep=".")
"""


def _check_libguestfs(store: Path) -> Finding:
    meaning = "appliances that start from a base image cannot be built; others can"
    missing = partial(Finding, name="libguestfs", ok=False, meaning=meaning)
    kernels = sorted(Path("/boot").glob("vmlinuz-*"))
    if not kernels:
        return missing(
            found="no kernel in /boot for its appliance",
            mend=mend_by("sudo apt-get install linux-image-cloud-amd64"),
        )
    if not any(os.access(kernel, os.R_OK) for kernel in kernels):
        found = "this user may not read /boot/vmlinuz-*"
        return missing(found=found, mend="sudo chmod a+r /boot/vmlinuz-*")
    environment = libguestfs_environment(find_accelerator(store))
    started = time.monotonic()
    try:
        version = run.capture(
            [sys.executable, "-c", _LAUNCH], env=environment, timeout=LIBGUESTFS_SECONDS
        )
    except run.ToolError as error:
        if "No module named" in error.output:
            return missing(
                found="its Python module is not installed",
                mend=mend_by("sudo apt-get install python3-guestfs"),
            )
        settings = " ".join(f"{name}={value}" for name, value in environment.items())
        return missing(
            found=f"its appliance does not start: {_first_complaint(error.output)}",
            mend=f"read what it says: {settings} LIBGUESTFS_DEBUG=1 {sys.executable} -c "
            "'import guestfs; g = guestfs.GuestFS(); g.add_drive_scratch(1 << 20); g.launch()'",
        )
    return Finding(
        name="libguestfs",
        ok=True,
        found=f"{version.strip()}, its appliance started in {time.monotonic() - started:.0f} s",
        meaning="appliances can start from a base image",
    )


def _first_complaint(output: str) -> str:
    complaint = re.search(r"^RuntimeError: (.*)$", output, re.MULTILINE)
    return complaint[1] if complaint else output.strip().splitlines()[-1]
