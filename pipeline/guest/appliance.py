"""libguestfs's appliance: a small machine of its own that opens images in our place."""

from __future__ import annotations

import os
import shutil
import signal
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pipeline import host
from pipeline.errors import ApplianceError, PhantomError
from pipeline.model import MIB, Progress
from pipeline.tools import run


@dataclass(frozen=True, kw_only=True)
class Drive:
    """A raw file that the appliance gets as a disk."""

    file: Path
    name: str = "disk"
    """Letters; the drive is /dev/disk/guestfs/NAME, and its partitions have their numbers behind
    it. The kernel's own names depend on which drive it happens to see first."""
    writable: bool = False

    @property
    def device(self) -> str:
        """What the appliance calls it."""
        return f"/dev/disk/guestfs/{self.name}"


MEMORY = 1280 * MIB
"""What an appliance takes of the host's memory, at most."""

CPUS = 2
"""Of an appliance: with two it starts in five sixths of the time (measured without KVM)."""

_MEMORY_NEEDED = 512 * MIB  # with less, libguestfs itself does not start
_END_SECONDS = 20.0  # a hundred times what it takes
_HYPERVISOR = Path(__file__).with_name("hypervisor.sh")
_GUARD = Path(__file__).with_name("guard.sh")
_SEE_DOCTOR = "`phantom-image doctor` looks for the reason"


@dataclass
class Guest:
    """A launched appliance. `handle` is libguestfs's own; its calls raise RuntimeError."""

    handle: Any = field(repr=False)
    log: Path
    progress: Progress
    _process: int | None = None
    """A descriptor of QEMU's process: its number may be another's once libguestfs has seen it end.
    """
    _listeners: list[Callable[[str], None]] = field(default_factory=list)
    _line: str = ""

    @property
    def ended(self) -> bool:
        """Whether the appliance is gone: killed, crashed, or shut down from inside."""
        try:
            self.handle.ping_daemon()
        except RuntimeError:
            return True
        return False

    def kill(self) -> None:
        """Ends the appliance at once; whoever waits for it gets a RuntimeError."""
        with suppress(ProcessLookupError):
            if self._process is not None:
                signal.pidfd_send_signal(self._process, signal.SIGKILL)

    @contextmanager
    def heard(self, listener: Callable[[str], None]) -> Iterator[None]:
        """Passes each line of the appliance's console on, without its line end, as it comes. What a
        program in the image writes to /dev/ttyS0 is heard here while it runs."""
        self._listeners.append(listener)
        try:
            yield
        finally:
            self._listeners.remove(listener)

    @contextmanager
    def limited(self, seconds: float) -> Iterator[None]:
        """Kills the appliance if the block takes longer; raises TimeoutError then."""
        late = threading.Event()

        def kill() -> None:
            late.set()
            self.kill()

        timer = threading.Timer(seconds, kill)
        timer.daemon = True
        timer.start()
        try:
            yield
        except RuntimeError:
            if late.is_set():
                raise TimeoutError(f"it took longer than {seconds:g} s") from None
            raise
        finally:
            timer.cancel()

    def know(self, pid: int) -> None:
        """Takes QEMU's process, once it runs."""
        self._process = os.pidfd_open(pid)

    def forget(self) -> None:
        """Lets go of it."""
        if self._process is not None:
            os.close(self._process)
            self._process = None

    def listen(self, text: str) -> None:
        """Takes what the console printed."""
        *lines, self._line = (self._line + text).split("\n")
        with self.log.open("a", encoding="utf-8", errors="replace") as log:
            for line in lines:
                log.write(f"{line.rstrip()}\n")
                for listener in list(self._listeners):
                    listener(line.rstrip())


@contextmanager
def launched(
    drives: Sequence[Drive],
    *,
    store: Path,
    log: Path,
    progress: Progress,
    network: bool = False,
) -> Iterator[Guest]:
    """A launched appliance, for as long as the block lasts.

    `store` is the folder where what was found out about this host is kept. What is written to a
    writable drive is on the host's disk when the block has ended well. Raises ApplianceError where
    it does not start or ends in the middle; a RuntimeError of libguestfs that nobody translated
    becomes one too. `run.stop_all` ends it, even while it starts, and nothing of it stays behind
    when this process is killed.
    """
    with _guarded() as folder, _opened(folder) as handle:
        guest = Guest(handle=handle, log=log, progress=progress)
        try:
            _set_up(guest, drives, store, folder, network=network)
            progress.step("starting libguestfs")
            _launch(guest)
            yield guest
            handle.umount_all()
            handle.shutdown()
        except RuntimeError as error:
            raise _explain(guest, error) from error
        finally:
            # libguestfs itself would only ask it to end, and wait for as long as that takes.
            guest.kill()
            guest.forget()


@contextmanager
def _guarded() -> Iterator[Path]:
    """A folder for an appliance, with a process beside us that ends the appliance and removes the
    folder when the block is left, when all programs are to stop, or when this process is killed."""
    folder = Path(tempfile.mkdtemp(prefix="phantom-appliance-"))
    try:
        with run.start(["sh", str(_GUARD), str(folder)], lifeline=True, outlives=True):
            yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def _opened(folder: Path) -> Iterator[Any]:
    """A handle of libguestfs, for an appliance with that folder. What the user's environment says
    to libguestfs does not count, but for where its parts are: `_set_up` takes these."""
    try:
        import guestfs
    except ImportError as error:
        raise ApplianceError(
            "libguestfs's Python module is not installed", todo=_SEE_DOCTOR
        ) from error
    handle = guestfs.GuestFS(python_return_dict=True, environment=False, close_on_exit=True)
    try:
        yield handle
    finally:
        handle.close()
        _wait_for_end(folder)


def _wait_for_end(folder: Path) -> None:
    """Waits until QEMU, which was asked to end, has ended: libguestfs does not where it has no
    process of its own that watches it."""
    noted = folder / "pid"
    with suppress(OSError, ValueError):  # not started; or seen to end by libguestfs
        pid, started = int(noted.read_text()), time.monotonic()
        while os.waitpid(pid, os.WNOHANG) == (0, 0):
            if time.monotonic() - started > _END_SECONDS:
                os.kill(pid, signal.SIGKILL)
            time.sleep(0.01)
    noted.unlink(missing_ok=True)


def _set_up(
    guest: Guest, drives: Sequence[Drive], store: Path, folder: Path, *, network: bool
) -> None:
    import guestfs

    handle = guest.handle
    try:
        handle.set_backend("direct")
        if host.find_accelerator(store) == "tcg":
            handle.set_backend_setting("force_tcg", "1")
        handle.set_memsize(appliance_memory(host.available_memory()) // MIB)
        handle.set_smp(CPUS)
        handle.set_network(network)
        handle.set_tmpdir(str(folder))
        handle.set_recovery_proc(False)  # our guard is quicker, and removes files too
        handle.set_pgroup(True)  # a terminal's control-c is for us; we end the appliance
        handle.set_event_callback(
            lambda _event, _handle, text, _array: guest.listen(_decode(text)),
            guestfs.EVENT_APPLIANCE,
        )
        if os.environ.get("LIBGUESTFS_PATH"):
            handle.set_path(os.environ["LIBGUESTFS_PATH"])
        qemu = Path(os.environ.get("LIBGUESTFS_HV") or handle.get_hv())
        if not os.access(qemu, os.X_OK):
            raise OSError(f"there is no QEMU at {qemu}")
        handle.set_hv(str(_write_hypervisor(folder, qemu)))
        for drive in drives:
            writable = {"discard": "enable", "cachemode": "unsafe"} if drive.writable else {}
            handle.add_drive_opts(
                str(drive.file),
                format="raw",
                readonly=not drive.writable,
                label=drive.name,
                **writable,
            )
    except (OSError, RuntimeError) as error:
        raise _not_started(guest, error) from error


def _write_hypervisor(folder: Path, qemu: Path) -> Path:
    """What libguestfs runs in QEMU's place. It gets QEMU's time: libguestfs keeps what it finds out
    about a QEMU under that."""
    (folder / "qemu").write_text(f"{qemu}\n")
    copy = folder / _HYPERVISOR.name
    copy.write_bytes(_HYPERVISOR.read_bytes())
    copy.chmod(0o755)
    changed = qemu.stat().st_mtime_ns
    os.utime(copy, ns=(changed, changed))
    return copy


def appliance_memory(available: int) -> int:
    """Bytes of memory for an appliance on a host that could give so many: what libguestfs gives by
    itself, which package managers have enough of, but at most half of it."""
    return max(_MEMORY_NEEDED, min(MEMORY, available // 2))


def _launch(guest: Guest) -> None:
    try:
        guest.handle.launch()
        guest.know(guest.handle.get_pid())
    except (OSError, RuntimeError) as error:
        raise _not_started(guest, error) from error


def _not_started(guest: Guest, error: Exception) -> PhantomError:
    # libguestfs ends its messages with advice for those who call it.
    reason = str(error).splitlines()[0].rstrip(".")
    return ApplianceError(
        f"libguestfs does not start: {reason}",
        todo=_SEE_DOCTOR,
        log=guest.log if guest.log.exists() else None,
    )


def _explain(guest: Guest, error: RuntimeError) -> PhantomError:
    if guest.ended:
        return ApplianceError(
            "libguestfs's appliance ended while it worked",
            todo="run the same command again; the log has what it said last",
            log=guest.log,
        )
    return ApplianceError(f"libguestfs cannot go on: {error}", log=guest.log)


def _decode(text: bytes | str) -> str:
    return text.decode("utf-8", "replace") if isinstance(text, bytes) else text
