"""What a build host must have: programs, rights, namespaces, space, and a guest that really runs.

`diagnose` looks at all of it for `phantom-image doctor`; `require` looks, before a build, for what
its stages need and what costs nothing to see; `find_accelerator` tells what a guest runs under.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Literal

from pipeline.errors import HostError, MirrorError, PhantomError, SudoError
from pipeline.model import GIB, MIB, format_size
from pipeline.store import write_atomically
from pipeline.tools import apt, dib, grub, namespace, qemu, run, site_kernel

_MMAP_THRESHOLD = -3  # mallopt's M_MMAP_THRESHOLD (glibc's malloc.h)

Accelerator = Literal["kvm", "tcg"]

_SETUP = "make setup"


@dataclass(frozen=True, kw_only=True)
class Finding:
    """One thing that was looked at."""

    name: str
    ok: bool | None
    """True: it is there; None: it works, but worse than it could; False: it is missing."""
    found: str
    meaning: str
    """What follows from it for builds."""
    mend: str | None = None
    """The command or act that mends it."""


Check = Callable[[Path], Finding]


def diagnose(store: Path) -> list[Finding]:
    """Looks at everything; `store` is the folder that artifacts go to, which may not exist yet.

    The slowest check, libguestfs without KVM, decides how long it takes: about ten seconds.
    """
    everything = checks()
    with ThreadPoolExecutor(max_workers=len(everything)) as pool:
        return list(pool.map(lambda check: _checked(check, store), everything))


def format_findings(findings: Iterable[Finding]) -> str:
    """The findings as lines for people, each with what mends it below."""
    words = {True: "ok", None: "warning", False: "missing"}
    lines = []
    for finding in findings:
        word = words[finding.ok]
        lines.append(f"{word:7}  {finding.name}: {finding.found} - {finding.meaning}")
        if finding.mend is not None:
            lines.append(f"{'':7}  mend: {finding.mend}")
    return "\n".join(lines)


def checks() -> list[Check]:
    """Everything that is looked at, in the order in which it is told."""
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
    """What a check finds, be it that it could not look."""
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


# ---- programs


@dataclass(frozen=True, kw_only=True)
class Program:
    """A program of the host that stages run."""

    name: str
    package: str
    """The Debian package that has it."""
    purpose: str
    version: tuple[str, ...] = ("--version",)
    """The words that make it tell its version."""
    tested: tuple[int, ...] = ()
    """The version from which on it is known to work: Debian 12's."""

    def find(self) -> str | None:
        """Where the program is."""
        return shutil.which(self.name, path=_search_path())

    def check(self, _store: Path) -> Finding:
        """Whether the program is there, and its version."""
        path = self.find()
        if path is None:
            return Finding(
                name=self.name,
                ok=False,
                found="not installed",
                meaning=self.purpose,
                mend=f"{_SETUP}   # or: sudo apt-get install {self.package}",
            )
        try:
            told = run.capture(["sh", "-c", 'exec "$@" 2>&1', "sh", path, *self.version])
        except run.ToolError as error:
            return Finding(
                name=self.name,
                ok=False,
                found=f"installed, but {error.what}",
                meaning=self.purpose,
                mend=f"sudo apt-get install --reinstall {self.package}",
            )
        number = re.search(r"(?<![0-9.])[0-9]+(\.[0-9]+)+", told)
        version = number[0] if number else "of an unknown version"
        if number and tuple(map(int, version.split("."))) < self.tested:
            wanted = ".".join(map(str, self.tested))
            return Finding(
                name=self.name,
                ok=None,
                found=version,
                meaning=f"{self.purpose}; builds were tested with {wanted} and newer",
                mend="build on Debian 12 or newer",
            )
        return Finding(name=self.name, ok=True, found=version, meaning=self.purpose)


PROGRAMS = (
    Program(name="apt-get", package="apt", purpose="resolves packages", tested=(2, 6)),
    Program(name="sudo", package="sudo", purpose="diskimage-builder asks for it, even as root"),
    Program(
        name="mmdebstrap",
        package="mmdebstrap",
        purpose="makes root file systems from packages",
        tested=(1, 3),
    ),
    Program(name="unshare", package="util-linux", purpose="keeps builds in their own namespaces"),
    Program(name="setpriv", package="util-linux", purpose="ends what a build started with it"),
    Program(
        name="mke2fs",
        package="e2fsprogs",
        purpose="writes file systems",
        version=("-V",),
        tested=(1, 47),
    ),
    Program(
        name="debugfs",
        package="e2fsprogs",
        purpose="reads and edits file systems without mounting them",
        version=("-V",),
        tested=(1, 47),
    ),
    Program(name="sfdisk", package="fdisk", purpose="writes partition tables"),
    Program(name="fdisk", package="fdisk", purpose="finds partitions as Nimbus's nodes do"),
    Program(name="grub-mkimage", package="grub-common", purpose="makes the boot loader"),
    Program(
        name="mformat",
        package="mtools",
        purpose="makes EFI system partitions",
        tested=(4, 0, 32),
    ),
    Program(
        name="zstd",
        package="zstd",
        purpose="unpacks initramfs, to list an image's drivers, and base images",
    ),
    Program(
        name="qemu-img",
        package="qemu-utils",
        purpose="converts base images",
        tested=(7, 2),
    ),
    Program(name="prlimit", package="util-linux", purpose="limits what an image may cost"),
    Program(name="lz4", package="lz4", purpose="unpacks initramfs of other distributions"),
    Program(
        name="qemu-system-x86_64",
        package="qemu-system-x86",
        purpose="boots images as their sites would",
        tested=(7, 2),
    ),
    Program(
        name="socat",
        package="socat",
        purpose="leads from a booted image to its metadata server",
        version=("-V",),
    ),
    Program(
        name="busybox",
        package="busybox-static",
        purpose="makes the ramdisk that stands for a Xen site's own",
        version=("--help",),
    ),
)


@dataclass(frozen=True, kw_only=True)
class Files:
    """Files of the host that stages use."""

    name: str
    package: str
    """The Debian package that has them."""
    purpose: str
    find: Callable[[], Path | None]
    """Where they are."""

    def check(self, _store: Path) -> Finding:
        """Whether the files are there."""
        found = self.find()
        return Finding(
            name=self.name,
            ok=found is not None,
            found="not installed" if found is None else str(found),
            meaning=self.purpose,
            mend=None
            if found is not None
            else f"{_SETUP}   # or: sudo apt-get install {self.package}",
        )


def _find_grub(platform: str) -> Path | None:
    folder = grub.LIBRARY / platform
    return folder if (folder / "kernel.img").is_file() else None


def _find_guestfs() -> Path | None:
    spec = find_spec("guestfs")
    return None if spec is None or spec.origin is None else Path(spec.origin)


def _find_firmware() -> Path | None:
    found = qemu.find_firmware()
    return None if found is None else found[0]


FILES = (
    Files(
        name="GRUB for BIOS",
        package="grub-pc-bin",
        purpose="the boot loader's code, which lands in the image",
        find=lambda: _find_grub(grub.BIOS),
    ),
    Files(
        name="GRUB for UEFI",
        package="grub-efi-amd64-bin",
        purpose="the boot loader's code, which lands in images that UEFI boots too",
        find=lambda: _find_grub(grub.EFI),
    ),
    Files(
        name="OVMF",
        package="ovmf",
        purpose="the firmware with which images boot by UEFI",
        find=_find_firmware,
    ),
    Files(
        name="libguestfs's Python module",
        package="python3-guestfs",
        purpose="changes base images",
        find=_find_guestfs,
    ),
    Files(
        name="kernel for Xen's boot checks",
        package="linux-image-cloud-amd64",
        purpose="stands for the kernel of sites that boot bare file systems",
        find=site_kernel.find_kernel,
    ),
)

# What the stages need, by the names in their `requires`; the cheap checks of `require`.
_NEEDS = {
    "base": ("qemu-img", "zstd", "prlimit"),
    "root": ("sudo", "apt-get", "mmdebstrap", "mke2fs", "debugfs", "unshare", "setpriv"),
    "root from a base image": ("libguestfs's Python module",),
    "disk": ("sfdisk", "grub-mkimage", "GRUB for BIOS"),
    "disk for UEFI": ("mformat", "GRUB for UEFI"),
    "drivers": ("debugfs", "zstd", "lz4"),
    "boot": ("fdisk", "sfdisk", "debugfs", "qemu-system-x86_64", "socat"),
    "boot by UEFI": ("OVMF",),
    "boot with a site's kernel": ("busybox", "kernel for Xen's boot checks"),
}


def require(needs: Iterable[str]) -> None:
    """Sees that all is there that stages need, by their `requires`; takes a few milliseconds.

    Raises HostError, or SudoError for a sudo that a user needs, with what mends it.
    """
    programs = {program.name: program for program in PROGRAMS}
    files = {each.name: each for each in FILES}
    for name in dict.fromkeys(name for need in needs for name in _NEEDS.get(need, ())):
        if name in files:
            finding = files[name].check(Path())
            if finding.ok is False:
                raise HostError(f"{finding.name}: {finding.found}", todo=finding.mend)
            continue
        program = programs[name]
        if program.find() is None:
            kind = SudoError if name == "sudo" and os.geteuid() != 0 else HostError
            raise kind(
                f"{name} is not installed ({program.purpose})",
                todo=f"`{_SETUP}` installs what is missing; or: "
                f"sudo apt-get install {program.package}",
            )


def require_namespaces() -> None:
    """Sees that root may make namespaces and mount in them. Raises HostError."""
    finding = _check_namespaces(Path())
    if not finding.ok:
        raise HostError(f"{finding.name}: {finding.found}", todo=finding.mend)


def _search_path() -> str:
    """The PATH, and the folders of system programs, which a user's PATH often lacks."""
    return os.pathsep.join(
        [*filter(None, [os.environ.get("PATH")]), "/usr/local/sbin", "/usr/sbin", "/sbin"]
    )


def _check_diskimage_builder(_store: Path) -> Finding:
    program = Path(sys.executable).with_name("disk-image-create")
    if not program.is_file():
        return Finding(
            name="diskimage-builder",
            ok=False,
            found="not beside this Python",
            meaning="runs the elements' hooks",
            mend=_SETUP,
        )
    return Finding(
        name="diskimage-builder", ok=True, found=dib.version(), meaning="runs the elements' hooks"
    )


# ---- rights, namespaces and room


def _check_rights(_store: Path) -> Finding:
    meaning = "root file systems are built with root's rights, in namespaces of their own"
    if os.geteuid() == 0:
        return Finding(name="root's rights", ok=True, found="this is root", meaning=meaning)
    try:
        run.capture(["sudo", "-n", "true"])
    except HostError:
        found, ok = "no sudo, and this is not root", False
        mend = "run as root, or as root: apt-get install sudo && adduser USER sudo"
    except run.ToolError:
        found, ok = "sudo asks for a password, or does not know this user", None
        mend = "sudo -v   # before the build; if that fails, an administrator has to grant it"
    else:
        return Finding(name="root's rights", ok=True, found="by sudo", meaning=meaning)
    return Finding(name="root's rights", ok=ok, found=found, meaning=meaning, mend=mend)


def _check_namespaces(_store: Path) -> Finding:
    name, meaning = "namespaces", "even a killed build leaves no mount and no process"
    # The new process is the first of its namespace, and what it mounts nobody else sees.
    script = 'test "$$" -eq 1 && test -e /proc/1/exe && mount -t tmpfs phantom /mnt'
    isolate = ["unshare", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc"]
    try:
        run.capture(namespace.as_root([*isolate, "sh", "-c", script]))
    except run.ToolError as error:
        found = (error.output.strip() or error.what).splitlines()[-1]
        if found.startswith("sudo:"):
            found, mend = "not tried without root's rights", "sudo -v   # then run this again"
            return Finding(name=name, ok=None, found=found, meaning=meaning, mend=mend)
        mend = "in a container: run it privileged; else boot a kernel with namespaces and tmpfs"
        return Finding(name=name, ok=False, found=found, meaning=meaning, mend=mend)
    return Finding(name=name, ok=True, found="mount and process namespaces", meaning=meaning)


# Debian's minimal system with a kernel takes 500 MB unpacked, its disk twice that until stored, and
# its packages 200 MB more.
_SPACE_NEEDED, _SPACE_WANTED = 3 * GIB, 10 * GIB
# Below the one, the boot check's machine has no room; with the other, builds run in memory.
_MEMORY_NEEDED, _MEMORY_WANTED = 768 * MIB, 5 * GIB


def _check_space(store: Path) -> Finding:
    folder = store.absolute()
    while not os.path.exists(folder):  # nor where this user may not even look
        folder = folder.parent
    free = shutil.disk_usage(folder).free
    writable = os.access(folder, os.W_OK | os.X_OK)
    return Finding(
        name="space for artifacts",
        ok=_rank(free, _SPACE_NEEDED, _SPACE_WANTED) if writable else False,
        found=f"{format_size(free)} free in {folder}"
        + ("" if writable else ", which this user may not write to"),
        meaning=f"a build takes about {format_size(_SPACE_NEEDED)}, and the store keeps several",
        mend="phantom-image gc, or set PHANTOM_STORE to a folder with more room"
        if free < _SPACE_WANTED or not writable
        else None,
    )


def _check_memory(_store: Path) -> Finding:
    available = available_memory()
    return Finding(
        name="memory",
        ok=_rank(available, _MEMORY_NEEDED, _MEMORY_WANTED),
        found=f"{format_size(available)} available",
        meaning="enough to build in memory"
        if available >= _MEMORY_WANTED
        else "builds go by way of the disk, which is slower",
        mend=None
        if available >= _MEMORY_WANTED
        else f"end other programs, or give this host {format_size(_MEMORY_WANTED)} or more",
    )


def _rank(amount: int, needed: int, wanted: int) -> bool | None:
    if amount < needed:
        return False
    return True if amount >= wanted else None


def _check_mirror(_store: Path) -> Finding:
    meaning = "where packages of images come from"
    try:
        mirrors = apt.find_mirrors("stable")
    except MirrorError as error:
        return Finding(name="mirror", ok=False, found=error.what, meaning=meaning, mend=error.todo)
    return Finding(name="mirror", ok=True, found=mirrors.main, meaning=meaning)


# ---- a guest that really runs

KVM = Path("/dev/kvm")
_QEMU = "qemu-system-x86_64"

# The whole guest, loaded by the BIOS from the first sector of its disk:
#   b0 10   mov  al, 0x10
#   e6 f4   out  0xf4, al     the port of isa-debug-exit: QEMU ends with status 2 * 0x10 + 1
#   f4      hlt
#   eb fd   jmp  $-1
_GUEST = bytes.fromhex("b010 e6f4 f4 ebfd").ljust(510, b"\0") + b"\x55\xaa"
_GUEST_STATUS = 2 * 0x10 + 1

TCG_SECONDS = 10.0  # a hundred times what it takes: 0.06 to 0.1 s
# KVM that works is about as fast as TCG with a guest so small. Where another hypervisor imitates
# it, it may never answer, or take fifty times as long as TCG (3.4 s), and a whole machine then
# takes hours. On a host under load everything takes longer, TCG too.
KVM_SECONDS = 1.0
KVM_TIMES_TCG = 3


def give_memory_back() -> None:
    """Has this process give large buffers back to the system as soon as they are free. Otherwise
    the C library keeps some of them for each thread, of which there are many."""
    import ctypes

    ctypes.CDLL(None).mallopt(_MMAP_THRESHOLD, MIB)


def available_memory() -> int:
    """Bytes that the kernel could give without swapping; 0 where it does not tell."""
    for line in Path("/proc/meminfo").read_text().splitlines():
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) * 1024
    return 0


def find_accelerator(folder: Path | None = None) -> Accelerator:
    """What guests run under here: `kvm` where one really does, else `tcg`.

    The answer is kept for this process and, in `folder` if it is there, until the host boots again,
    so that a KVM that does not answer is waited for once. Raises HostError, ToolError where no
    guest runs at all.
    """
    if not os.access(KVM, os.R_OK | os.W_OK):
        return "tcg"  # not kept: the rights to the device may change at any time
    state = _host_state()
    file = None if folder is None else folder / _KEPT
    with _lock:
        kept = None if file is None else _read_kept(file, state)
        if state not in _known:
            _known[state] = kept or _try_accelerators()
        if file is not None and kept != _known[state]:
            _keep(file, state, _known[state])
        return _known[state]


_KEPT = "accelerator.json"
_known: dict[str, Accelerator] = {}
_lock = threading.Lock()


def _host_state() -> str:
    """What the answer depends on: this boot of the host, and its QEMU."""
    boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    qemu = shutil.which(_QEMU, path=_search_path())
    return f"{boot} {qemu} {Path(qemu).stat().st_mtime_ns if qemu else 0}"


def _read_kept(file: Path, state: str) -> Accelerator | None:
    with suppress(OSError, ValueError, KeyError, TypeError):
        kept = json.loads(file.read_text())
        if kept["host"] == state:
            return "kvm" if kept["accelerator"] == "kvm" else "tcg"
    return None


def _keep(file: Path, state: str, accelerator: Accelerator) -> None:
    with suppress(OSError):  # it only saves time
        write_atomically(file, json.dumps({"host": state, "accelerator": accelerator}) + "\n")


def _try_accelerators() -> Accelerator:
    tcg = time_guest("tcg", TCG_SECONDS)
    try:
        time_guest("kvm", _kvm_limit(tcg))
    except run.ToolError:
        return "tcg"
    return "kvm"


def _kvm_limit(tcg: float) -> float:
    """How long KVM may take, on a host whose load let TCG take that long."""
    return max(KVM_SECONDS, KVM_TIMES_TCG * tcg)


def time_guest(accelerator: Accelerator, limit: float) -> float:
    """How many seconds a guest of one sector took from start to end.

    Raises ToolError where it did not run or took longer than `limit`, and HostError without QEMU.
    """
    with tempfile.NamedTemporaryFile(prefix="phantom-guest-") as disk:
        disk.write(_GUEST)
        disk.flush()
        argv = [
            *(_QEMU, "-nodefaults", "-no-user-config", "-display", "none", "-no-reboot"),
            *("-machine", "pc", "-accel", accelerator, "-m", "16"),
            *("-drive", f"format=raw,if=ide,file={disk.name}"),
            *("-device", "isa-debug-exit,iobase=0xf4,iosize=4"),
        ]
        started = time.monotonic()
        try:
            run.capture(argv, timeout=limit)
        except run.ToolError as error:
            if error.status == _GUEST_STATUS:
                return time.monotonic() - started
            raise
        raise run.ToolError(argv, 0, "the guest ended without writing to the port", None)


def _check_guest(_store: Path) -> Finding:
    name, slower = "guest", "boot checks run without KVM and take several times as long"
    try:
        tcg = time_guest("tcg", TCG_SECONDS)
    except (HostError, run.ToolError) as error:
        return Finding(
            name=name,
            ok=False,
            found=f"QEMU runs none: {_last_line(error)}",
            meaning="no image can be checked, so none is published",
            mend="sudo apt-get install --reinstall qemu-system-x86 qemu-system-data seabios",
        )
    if not KVM.exists():
        return Finding(
            name=name,
            ok=None,
            found=f"runs under TCG; there is no {KVM}",
            meaning=slower,
            mend="sudo modprobe kvm_intel || sudo modprobe kvm_amd   # in a virtual machine: have "
            "its host allow nested virtualization",
        )
    if not os.access(KVM, os.R_OK | os.W_OK):
        return Finding(
            name=name,
            ok=None,
            found=f"runs under TCG; this user may not open {KVM}",
            meaning=slower,
            mend='sudo adduser "$USER" kvm   # then log in again',
        )
    limit = _kvm_limit(tcg)
    try:
        seconds = time_guest("kvm", limit)
    except run.ToolError as error:
        return Finding(
            name=name,
            ok=None,
            found=f"runs under TCG ({tcg:.2f} s); under KVM, {_last_line(error)}",
            meaning=slower,
            mend="none on this host: another hypervisor imitates KVM, and does it too badly",
        )
    return Finding(
        name=name,
        ok=True,
        found=f"runs under KVM ({seconds:.2f} s)",
        meaning="boot checks run at full speed",
    )


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


def libguestfs_environment(accelerator: Accelerator) -> dict[str, str]:
    """The settings under which libguestfs starts its appliance on this host."""
    settings = {"LIBGUESTFS_BACKEND": "direct"}
    if accelerator == "tcg":
        settings["LIBGUESTFS_BACKEND_SETTINGS"] = "force_tcg"
    return settings


def _check_libguestfs(store: Path) -> Finding:
    def missing(found: str, mend: str) -> Finding:
        meaning = "appliances that start from a base image cannot be built; others can"
        return Finding(name="libguestfs", ok=False, found=found, meaning=meaning, mend=mend)

    kernels = sorted(Path("/boot").glob("vmlinuz-*"))
    if not kernels:
        return missing(
            "no kernel in /boot for its appliance",
            f"{_SETUP}   # or: sudo apt-get install linux-image-cloud-amd64",
        )
    if not any(os.access(kernel, os.R_OK) for kernel in kernels):
        return missing("this user may not read /boot/vmlinuz-*", "sudo chmod a+r /boot/vmlinuz-*")
    environment = libguestfs_environment(find_accelerator(store))
    started = time.monotonic()
    try:
        version = run.capture(
            [sys.executable, "-c", _LAUNCH], env=environment, timeout=LIBGUESTFS_SECONDS
        )
    except run.ToolError as error:
        if "No module named" in error.output:
            return missing(
                "its Python module is not installed",
                f"{_SETUP}   # or: sudo apt-get install python3-guestfs",
            )
        settings = " ".join(f"{name}={value}" for name, value in environment.items())
        return missing(
            f"its appliance does not start: {_first_complaint(error.output)}",
            f"read what it says: {settings} LIBGUESTFS_DEBUG=1 {sys.executable} -c 'import guestfs;"
            " g = guestfs.GuestFS(); g.add_drive_scratch(1 << 20); g.launch()'",
        )
    return Finding(
        name="libguestfs",
        ok=True,
        found=f"{version.strip()}, its appliance started in {time.monotonic() - started:.0f} s",
        meaning="appliances can start from a base image",
    )


def _first_complaint(output: str) -> str:
    complaints: Sequence[str] = re.findall(r"^RuntimeError: (.*)$", output, re.MULTILINE)
    return complaints[0] if complaints else output.strip().splitlines()[-1]
