"""libguestfs's appliance: a small virtual machine that opens images, so that this host does not."""

from __future__ import annotations

import os
import posixpath
import re
import select
import shlex
import shutil
import signal
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pipeline.errors import (
    ApplianceError,
    FileSystemError,
    NoSpaceError,
    PhantomError,
    StageFailedError,
)
from pipeline.machine import accelerator
from pipeline.machine.full_disk import FullDiskWatch
from pipeline.model import KIB, MIB, Progress
from pipeline.tools import run


@dataclass(frozen=True, kw_only=True)
class Drive:
    """A raw file that the appliance gets as a disk."""

    file: Path
    name: str
    """Letters; the drive is /dev/disk/guestfs/NAME, and its partitions have their numbers behind
    it. The kernel's own names depend on which drive it happens to see first."""
    writable: bool = False

    @property
    def device(self) -> str:
        """Its name in the appliance."""
        return f"/dev/disk/guestfs/{self.name}"


MEMORY = 1280 * MIB
"""The most that an appliance takes of the host's memory: libguestfs's own default, which is enough
for package managers."""

CPUS = 2
"""With two, an appliance starts in five sixths of the time of one (measured without KVM)."""

_MEMORY_NEEDED = 512 * MIB  # with less, libguestfs itself does not start
_END_SECONDS = 20.0  # a hundred times what it takes
_HYPERVISOR = Path(__file__).with_name("hypervisor.sh")
_GUARD = Path(__file__).with_name("guard.sh")
_SEE_DOCTOR = "`phantom-image doctor` looks for the reason"
_LONGEST_LINE = 64 * KIB
_LARGEST_LOG = 64 * MIB
_LOOK_MILLISECONDS = 200  # between looks whether the reader is to end while QEMU still runs
_ABSENT = ("No such file or directory", "Not a directory")
_ESCAPED = re.compile(rb"\\([0-7]{3}|.)")
_SIMPLE_ESCAPES = dict(zip(b"abfnrtv", b"\a\b\f\n\r\t\v", strict=True))


class NotTextError(RuntimeError):
    """An answer of libguestfs has a name or text of the image that is not UTF-8."""


class _Handle:
    """libguestfs's handle with no other errors than RuntimeErrors. Names in an image are bytes, and
    libguestfs's binding for Python takes all of them for UTF-8."""

    def __init__(self, handle: Any) -> None:
        self._handle = handle

    def __getattr__(self, name: str) -> Any:
        call = getattr(self._handle, name)

        def called(*words: Any, **options: Any) -> Any:
            try:
                return call(*words, **options)
            except UnicodeDecodeError as error:
                raise NotTextError(f"{name}: a name or text in the image is not UTF-8") from error

        return called


@dataclass
class Guest:
    """A launched appliance. `handle` is libguestfs's own; its calls raise RuntimeError."""

    handle: Any = field(repr=False)
    console: Console
    log: Path
    progress: Progress
    drives: Sequence[Drive]
    watch: FullDiskWatch = field(repr=False)
    stopped: bool = False
    """Whether the appliance was ended because the whole command is ending."""
    process: int | None = None
    """A descriptor of QEMU's process: its number may be reused once libguestfs has seen it end."""

    @property
    def full(self) -> NoSpaceError | None:
        """The error to raise where the appliance was ended because this host's disk is full."""
        return None if self.watch.full is None else _full(self, self.watch.full)

    @property
    def ended(self) -> bool:
        """Whether the appliance is gone: killed, crashed, or shut down from inside."""
        try:
            self.handle.ping_daemon()
        except RuntimeError:
            return True
        return False

    def kill(self) -> None:
        """Ends the appliance at once. A call that waits for it raises RuntimeError."""
        with suppress(ProcessLookupError):
            if self.process is not None:
                signal.pidfd_send_signal(self.process, signal.SIGKILL)

    def shell(self, script: str) -> str:
        """Runs a script in the appliance's shell, and returns what it prints. Raises RuntimeError
        with all of its output if it fails."""
        return str(self.handle.debug("sh", [script]))

    @contextmanager
    def explained(self, explain: Callable[[RuntimeError], PhantomError]) -> Iterator[None]:
        """Replaces an error of libguestfs by what `explain` makes of it, unless the appliance has
        ended: `launched` explains that."""
        try:
            yield
        except RuntimeError as error:
            if self.ended:
                raise
            raise explain(error) from error

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

    def stop(self) -> None:
        """Ends the appliance because the whole command is ending."""
        self.stopped = True
        self.kill()

    def names(self, folder: str) -> list[str]:
        """What lies in a folder of the image, whose path must lead through no link. A name that is
        not UTF-8 is left out. Raises RuntimeError."""
        try:
            return list(self.handle.ls(folder))
        except NotTextError:
            place = shlex.quote(f"/sysroot{folder}")
            listed = self.shell(f"LC_ALL=C ls -1Ab -- {place}").encode()
            return sorted(filter(None, map(_unescape, listed.split(b"\n"))))

    def status(self, path: str, *, follow: bool = False) -> dict[str, int] | None:
        """What stat says of a path in the image, or of a link itself; None where nothing is. Far
        quicker than `is_file` and its like (0.5 ms for 10, without KVM). Raises RuntimeError."""
        call = self.handle.statns if follow else self.handle.lstatns
        try:
            status: dict[str, int] = call(path)
        except RuntimeError as error:  # a damaged file system says something else
            if str(error).endswith(_ABSENT):
                return None
            raise
        return status

    def read_link(self, path: str) -> str:
        """The target of a symbolic link in the image, as it is written. A target that is not UTF-8
        becomes a single U+FFFD. Raises RuntimeError."""
        folder, name = posixpath.split(path)
        try:
            # What `readlink` says too, in a tenth of its time.
            (target,) = self.handle.readlinklist(folder, [name])
        except NotTextError:
            return "\N{REPLACEMENT CHARACTER}"
        if not target:
            raise RuntimeError(f"readlink: {path}: Invalid argument")
        return str(target)


class Console:
    """Reads what the appliance prints from a named pipe, on a thread of its own, and writes it to a
    log, up to a limit. It reads bytes: an image may print anything, and libguestfs's binding for
    Python crashes on what is not UTF-8."""

    def __init__(self, pipe: Path, log: Path) -> None:
        os.mkfifo(pipe)
        self._read = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
        # While this descriptor is open, the reader sees no end of file.
        self._write = os.open(pipe, os.O_WRONLY)
        self._log = log
        self._logged: int | None = 0
        self._lock = threading.RLock()
        self._listeners: list[Callable[[str], None]] = []
        self.hidden = re.compile("(?!)")
        """In place of what matches, asterisks are written and passed on."""
        self._line = b""
        self._closing = False
        self._thread = threading.Thread(target=self._follow, daemon=True)
        self._thread.start()

    @contextmanager
    def heard(self, listener: Callable[[str], None]) -> Iterator[None]:
        """Passes on each line without its line end while the block lasts, all that came until its
        end: so what a program in the image writes to /dev/ttyS0 is heard while it runs."""
        with self._lock:
            self._listeners.append(listener)
        try:
            yield
        finally:
            with self._lock:
                self._take_all()
                self._listeners.remove(listener)

    def close(self) -> None:
        """Reads what is left, and ends. QEMU must have ended before."""
        self._closing = True
        os.close(self._write)
        self._thread.join()
        if self._line:
            self._pass_on(self._line)
        os.close(self._read)

    def _follow(self) -> None:
        waiting = select.poll()
        waiting.register(self._read, select.POLLIN)
        while not self._closing:
            waiting.poll(_LOOK_MILLISECONDS)
            if not self._take_all():
                return

    def _take_all(self) -> bool:
        """Reads what the pipe holds. Returns whether more may come."""
        with self._lock:
            while True:
                try:
                    taken = os.read(self._read, _LONGEST_LINE)
                except BlockingIOError:
                    return True
                if not taken:
                    return False
                *lines, self._line = (self._line + taken).split(b"\n")
                if len(self._line) >= _LONGEST_LINE:
                    lines, self._line = [*lines, self._line], b""
                for line in lines:
                    self._pass_on(line)

    def _pass_on(self, line: bytes) -> None:
        text = line[:_LONGEST_LINE].decode("utf-8", "replace").rstrip()
        text = self.hidden.sub("***", text)
        self._write_down(f"{text}\n")
        for listener in self._listeners:
            # An error would end this thread, and QEMU stops when its console is not read.
            with suppress(Exception):
                listener(text)

    def _write_down(self, line: str) -> None:
        if self._logged is None:
            return
        self._logged += len(line)
        if self._logged > _LARGEST_LOG:
            self._logged, line = None, "(what came after this is left out: the log is too large)\n"
        try:
            with run.open_log(self._log) as log:
                log.write(line)
        except OSError:  # such as a full disk: writing the artifact reports that
            self._logged = None


@contextmanager
def launched(
    drives: Sequence[Drive], *, store: Path, log: Path, progress: Progress, network: bool = False
) -> Iterator[Guest]:
    """A launched appliance, for as long as the block lasts.

    `store` is the folder that keeps what is known about this host. What is written to a writable
    drive is on the host's disk once the block has ended without an error. Raises ApplianceError
    if the appliance does not start or ends early, NoSpaceError if a drive cannot grow because the
    host's disk is full; a RuntimeError of libguestfs that the block does not handle becomes an
    ApplianceError too. `run.stop_all` ends the appliance, even while it starts, and nothing of it
    is left behind when this process is killed.
    """
    with (
        _guarded() as folder,
        _opened(folder) as handle,
        closing(Console(folder / "console", log)) as console,
        FullDiskWatch() as watch,
    ):
        guest = Guest(
            handle=_Handle(handle),
            console=console,
            log=log,
            progress=progress,
            drives=drives,
            watch=watch,
        )
        with run.stopped_by(guest.stop):
            try:
                _start(guest, store, folder, network=network)
                yield guest
                guest.handle.umount_all()
                guest.handle.shutdown()  # which reports a QEMU that failed
            except RuntimeError as error:
                raise _explain(guest, error) from error
            finally:
                # libguestfs itself would only ask it to end, and wait for as long as that takes.
                guest.kill()
                process, guest.process = guest.process, None
                if process is not None:
                    os.close(process)


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
    """A handle of libguestfs, for an appliance with that folder. It ignores the user's environment;
    `_start` reads from there only where the parts of libguestfs are."""
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


def _start(guest: Guest, store: Path, folder: Path, *, network: bool) -> None:
    handle = guest.handle
    try:
        handle.set_backend("direct")
        if accelerator.find_accelerator(store) == "tcg":
            handle.set_backend_setting("force_tcg", "1")
        memory = min(MEMORY, accelerator.available_memory() // 2)
        handle.set_memsize(max(_MEMORY_NEEDED, memory) // MIB)
        handle.set_smp(CPUS)
        handle.set_network(network)
        handle.set_tmpdir(str(folder))
        handle.set_autosync(False)  # unmounting writes all
        handle.set_recovery_proc(False)  # our guard is quicker, and removes files too
        handle.set_pgroup(True)  # a terminal's control-c is for us; we end the appliance
        if os.environ.get("LIBGUESTFS_PATH"):
            handle.set_path(os.environ["LIBGUESTFS_PATH"])
        qemu = Path(os.environ.get("LIBGUESTFS_HV") or handle.get_hv())
        if not os.access(qemu, os.X_OK):
            raise OSError(f"there is no QEMU at {qemu}")
        handle.set_hv(str(_write_hypervisor(folder, qemu)))
        for option, value in guest.watch.options:
            handle.config(option, value)
        for drive in guest.drives:
            writable = {"discard": "enable", "cachemode": "unsafe"} if drive.writable else {}
            handle.add_drive_opts(
                str(drive.file),
                format="raw",
                readonly=not drive.writable,
                label=drive.name,
                **writable,
            )
        guest.progress.step("starting libguestfs")
        handle.launch()
        guest.process = os.pidfd_open(handle.get_pid())
    except (OSError, RuntimeError) as error:
        raise _not_started(guest, error) from error


def _write_hypervisor(folder: Path, qemu: Path) -> Path:
    """Writes the script that libguestfs runs in place of QEMU. It has QEMU's modification time,
    under which libguestfs caches what it knows about a QEMU."""
    (folder / "qemu").write_text(f"{qemu}\n")
    copy = folder / _HYPERVISOR.name
    copy.write_bytes(_HYPERVISOR.read_bytes())
    copy.chmod(0o755)
    changed = qemu.stat().st_mtime_ns
    os.utime(copy, ns=(changed, changed))
    return copy


def _not_started(guest: Guest, error: Exception) -> PhantomError:
    if guest.stopped:
        return _interrupted()
    if guest.full is not None:
        return guest.full
    # libguestfs ends its messages with advice for those who call it.
    reason = str(error).splitlines()[0].rstrip(".")
    return ApplianceError(
        f"libguestfs does not start: {reason}",
        todo=_SEE_DOCTOR,
        log=guest.log if guest.log.exists() else None,
    )


def _explain(guest: Guest, error: RuntimeError) -> PhantomError:
    if guest.stopped:
        return _interrupted()
    if guest.full is not None:
        return guest.full
    if isinstance(error, NotTextError):
        return FileSystemError(
            "a name or text in the image is not UTF-8, where it matters",
            todo="rename it in the base image, or choose another",
            detail=str(error),
        )
    if guest.ended:
        return ApplianceError(
            "libguestfs's appliance ended while it worked",
            todo="run the same command again; the log has what it said last",
            log=guest.log,
        )
    return ApplianceError(f"libguestfs cannot go on: {error}", log=guest.log)


def _full(guest: Guest, drive: str) -> NoSpaceError:
    """The error for a disk of this host without space for what a drive of QEMU's holds; libguestfs
    names those that it was given `hd0`, `hd1` and so on."""
    writable = {f"hd{number}": each for number, each in enumerate(guest.drives) if each.writable}
    # Beside an image that is only read, and libguestfs's own root, QEMU writes to temporary files.
    folder = writable[drive].file.parent if drive in writable else Path(tempfile.gettempdir())
    return NoSpaceError(
        "no space is left for what libguestfs's appliance writes",
        where=str(folder),
        todo="free some space there (`phantom-image gc` evicts old artifacts), then run the same "
        "command again",
        log=guest.log if guest.log.exists() else None,
    )


def _interrupted() -> PhantomError:
    return StageFailedError("was interrupted", todo="run the same command again")


def _unescape(listed: bytes) -> str | None:
    """A name as `ls -b` prints it; None where it is not UTF-8."""

    def byte(escape: re.Match[bytes]) -> bytes:
        code = escape[1]
        if len(code) == 3:
            return bytes([int(code, 8) & 0xFF])
        return bytes([_SIMPLE_ESCAPES.get(code[0], code[0])])

    try:
        return _ESCAPED.sub(byte, listed).decode()
    except UnicodeDecodeError:
        return None
