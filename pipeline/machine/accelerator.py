"""What guests run under on this host: KVM where a guest really runs under it, else emulation; and
how much memory there is for them.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import tempfile
import threading
import time
from contextlib import suppress
from pathlib import Path
from typing import Literal

from pipeline import records
from pipeline.model import MIB
from pipeline.store import write_atomically
from pipeline.tools import run

Accelerator = Literal["kvm", "tcg"]

_MMAP_THRESHOLD = -3  # mallopt's M_MMAP_THRESHOLD (glibc's malloc.h)

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
# KVM that works takes a guest so small hardly any time of a processor. Where another hypervisor
# imitates it, it may never answer, or take fifty times as long as TCG (3.4 s), and a whole machine
# then takes hours. The time of the clock tells nothing on a host under load.
KVM_SECONDS = 10.0
KVM_PROCESSOR_SECONDS = 1


def give_memory_back() -> None:
    """Has this process give large buffers back to the system as soon as they are free. Otherwise
    the C library keeps some of them for each thread, of which there are many."""
    import ctypes

    ctypes.CDLL(None).mallopt(_MMAP_THRESHOLD, MIB)


def available_memory() -> int:
    """Bytes that the kernel could give without swapping; 0 where it does not tell."""
    available = re.search(r"^MemAvailable: +(\d+)", Path("/proc/meminfo").read_text(), re.MULTILINE)
    return int(available[1]) * 1024 if available else 0


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
    qemu = shutil.which(_QEMU, path=search_path())
    return f"{boot} {qemu} {Path(qemu).stat().st_mtime_ns if qemu else 0}"


def _read_kept(file: Path, state: str) -> Accelerator | None:
    kept = records.read(file, {"host": str, "accelerator": str})
    if kept is None or kept["host"] != state:
        return None
    return "kvm" if kept["accelerator"] == "kvm" else "tcg"


def _keep(file: Path, state: str, accelerator: Accelerator) -> None:
    with suppress(OSError):  # it only saves time
        write_atomically(file, json.dumps({"host": state, "accelerator": accelerator}) + "\n")


def _try_accelerators() -> Accelerator:
    time_guest("tcg")
    try:
        time_guest("kvm")
    except run.ToolError:
        return "tcg"
    return "kvm"


def time_guest(accelerator: Accelerator, limit: float | None = None) -> float:
    """How many seconds a guest of one sector took from start to end.

    Raises ToolError where it did not run or took longer than `limit` seconds, or under KVM more of
    the processors' time than KVM that works, and HostError without QEMU.
    """
    limit = limit or (KVM_SECONDS if accelerator == "kvm" else TCG_SECONDS)
    with tempfile.NamedTemporaryFile(prefix="phantom-guest-") as disk:
        disk.write(_GUEST)
        disk.flush()
        argv = [
            *(_QEMU, "-nodefaults", "-no-user-config", "-display", "none", "-no-reboot"),
            *("-machine", "pc", "-accel", accelerator, "-m", "16"),
            *("-drive", f"format=raw,if=ide,file={disk.name}"),
            *("-device", "isa-debug-exit,iobase=0xf4,iosize=4"),
        ]
        if accelerator == "kvm":
            argv = ["prlimit", f"--cpu={KVM_PROCESSOR_SECONDS}", *argv]
        started = time.monotonic()
        try:
            run.capture(argv, timeout=limit)
        except run.ToolError as error:
            if error.status == _GUEST_STATUS:
                return time.monotonic() - started
            if error.status == -signal.SIGKILL and time.monotonic() - started < limit:
                slow = f"it took more than {KVM_PROCESSOR_SECONDS} s of a processor"
                raise run.ToolError(argv, error.status, slow, None) from error
            raise
        raise run.ToolError(argv, 0, "the guest ended without writing to the port", None)


def libguestfs_environment(accelerator: Accelerator) -> dict[str, str]:
    """The settings under which libguestfs starts its appliance on this host."""
    forced = {"LIBGUESTFS_BACKEND_SETTINGS": "force_tcg"} if accelerator == "tcg" else {}
    return {"LIBGUESTFS_BACKEND": "direct", **forced}


def search_path() -> str:
    """The PATH, and the folders of system programs, which a user's PATH often lacks."""
    folders = (os.environ.get("PATH"), "/usr/local/sbin", "/usr/sbin", "/sbin")
    return os.pathsep.join(filter(None, folders))
