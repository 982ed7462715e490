"""Programs of the image, run inside libguestfs's appliance as root, in a chroot.

Each run has process and mount namespaces of its own: whatever it leaves running ends with it, and
its mounts are gone. What it prints is heard live over the appliance's console.
"""

from __future__ import annotations

import re
import shlex
import signal
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import PurePosixPath

from pipeline.errors import ApplianceError, ScriptError
from pipeline.guest import certificates
from pipeline.guest.appliance import Guest
from pipeline.guest.files import ImageFiles
from pipeline.guest.image import Image
from pipeline.tools.tails import is_noise

_LAST_LINES = 20
_ENVIRONMENT = {
    "HOME": "/root",
    "LC_ALL": "C.UTF-8",
    "LOGNAME": "root",
    "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
    "SHELL": "/bin/sh",
    "SYSTEMD_OFFLINE": "1",  # systemctl leaves out what needs a running systemd
    "TERM": "dumb",
    "USER": "root",
}
# Run by the appliance's shell. The image's shell becomes the first process of a process namespace:
# when it ends, the kernel kills all that is left there, and what reboot(2) does in there is to kill
# it. It must be the image's, so that a systemd's `reboot -f` does not see that it is in a chroot.
_OUTER = """
answer=$(mktemp) && {
    {
        (exec unshare --mount --pid --fork --kill-child sh -c %s sh %s 3>>"$answer" </dev/null 2>&1)
        echo "left $?" >>"$answer"
    } 2>/dev/null | cat >/dev/ttyS0
    cat "$answer"
    rm -f "$answer"
}
"""
_INNER = """
mount -t proc proc /sysroot/proc &&
    mount --rbind /sys /sysroot/sys &&
    mount --rbind /dev /sysroot/dev &&
    { ! test -d /sysroot/run || mount -t tmpfs -o mode=0755 tmpfs /sysroot/run; } &&
    SHOW_SECRETS || exit 1
SHOW_CERTIFICATES
echo started >&3
exec env -i "$@"
"""
_IN_IMAGE = """
"$@" 3>&-
echo "ended $?" >&3
"""
_ESCAPES = re.compile(r"\x1b(\[[0-?]*[ -/]*[@-~]|\][^\x07\x1b]*(\x07|\x1b\\)?|[ -/]*[0-~])")
_NOT_TEXT = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")
_ENDED = re.compile(r"^ended ([0-9]{1,3})$", re.MULTILINE)
_LEFT = re.compile(r"^left ([0-9]{1,3})$", re.MULTILINE)
_REBOOTED = {128 + signal.SIGHUP, 128 + signal.SIGINT}
"""How a process namespace ends that reboot(2) was called in (its manual page: "Behavior inside PID
namespaces")."""
_HERE = re.compile(r"(?<=//)(localhost|127\.0\.0\.1|\[::1\])(?=[:/]|$)")
_HOST = "169.254.2.2"  # this host's loopback interface, as libguestfs's appliance reaches it
_RESOLVER = PurePosixPath("/etc/resolv.conf")


@dataclass(frozen=True, kw_only=True)
class Ended:
    """How a program ended."""

    status: int | None
    """As a shell counts it; None: it shut down the machine that it ran in."""
    output: str
    """The last lines that it printed."""


def run_program(
    image: Image,
    words: Sequence[str],
    *,
    seconds: float,
    environment: Mapping[str, str] | None = None,
    secrets: PurePosixPath | None = None,
) -> Ended:
    """Runs a program of the image as root, in `/`, with nothing to read. What it prints goes to the
    log and to the progress line by line. What `environment` says of localhost means this host. The
    folder `secrets`, a mount in the image, is moved to /run/secrets for it.

    The image must be of the appliance's architecture. Raises TimeoutError when it takes longer than
    `seconds`; the appliance is killed then.
    """
    guest = image.guest
    _check_places(image)
    lines: deque[str] = deque(maxlen=_LAST_LINES)

    def listen(line: str) -> None:
        text = printable(line)
        if not is_noise(text):
            lines.append(text)
        guest.progress.output(text)

    variables = {**_ENVIRONMENT, **(environment or {})}
    inner = [f"{name}={reachable(value)}" for name, value in variables.items()]
    inner += ["chroot", "/sysroot", "/bin/sh", "-c", _IN_IMAGE, "sh", *words]
    script = _INNER.replace("SHOW_CERTIFICATES", certificates.SHOW)
    script = script.replace("SHOW_SECRETS", "true" if secrets is None else _show(secrets))
    command = _OUTER % (shlex.quote(script), shlex.join(inner))
    try:
        with guest.console.heard(listen), guest.limited(seconds):
            answer = guest.shell(command)
    except RuntimeError:
        if guest.stopped or not guest.ended:
            raise
        answer = "started"
    output = "\n".join(lines)
    if "started" not in answer.split():
        raise ApplianceError(
            "libguestfs's appliance cannot run programs of the image", log=guest.log, detail=output
        )
    return Ended(status=_status(guest, answer, output), output=output)


def _show(secrets: PurePosixPath) -> str:
    """Moves a mount to /run/secrets, in the mount namespace of one program."""
    place = shlex.quote(f"/sysroot{secrets}")
    return f"mkdir /sysroot/run/secrets && mount --move {place} /sysroot/run/secrets"


def _status(guest: Guest, answer: str, output: str) -> int | None:
    """The status that the appliance's shell prints; None for a reboot. Raises ScriptError."""
    ended, left = _ENDED.search(answer), _LEFT.search(answer)
    if ended is not None:
        return int(ended[1])
    if left is None or int(left[1]) in _REBOOTED:
        return None
    if int(left[1]) > 128:  # something killed the image's shell
        return int(left[1])
    raise ScriptError(
        "programs cannot be run in the image: its /bin/sh does not work",
        todo="leave packages and scripts out, or take a base image with a shell that works",
        log=guest.log,
        detail=output,
    )


def _check_places(image: Image) -> None:
    """Makes the mount points of the kernel's file systems, and checks that there is a shell."""
    files = image.files
    for folder in ("/proc", "/sys", "/dev"):
        files.make_folder(PurePosixPath(folder))
    if files.read_link(PurePosixPath("/run")) is not None:
        files.make_folder(PurePosixPath("/run"))  # whose error says what is wrong
    if not image.guest.handle.is_file("/bin/sh", followsymlinks=True):
        raise ScriptError(
            "programs cannot be run in the image: it has no /bin/sh",
            todo="leave packages and scripts out, or take a base image with a shell",
        )


def printable(line: str) -> str:
    """A line without what would move a terminal's cursor or change its colours."""
    return _NOT_TEXT.sub("", _ESCAPES.sub("", line.rstrip("\r").rpartition("\r")[2]))


def reachable(text: str) -> str:
    """Addresses with this host's own name, as the appliance reaches them."""
    return _HERE.sub(_HOST, text)


@contextmanager
def resolving(image: Image) -> Iterator[None]:
    """Lets programs of the image resolve names while the block lasts. Afterwards the image's
    resolv.conf is what it was, unless a program has put something else in its place."""
    guest, files = image.guest, image.files
    ours = guest.shell("cat /etc/resolv.conf").strip().encode() + b"\n"
    aside = files.set_aside(_RESOLVER)
    files.write(_RESOLVER, ours)
    try:
        yield
    finally:
        if not guest.ended:
            _restore(files, ours, aside)


def _restore(files: ImageFiles, ours: bytes, aside: PurePosixPath | None) -> None:
    """A package that manages resolv.conf may have kept copies of ours, or replaced it."""
    replaced = files.read_bytes(_RESOLVER) != ours and files.exists(_RESOLVER)
    for name in files.names(_RESOLVER.parent):
        if "resolv.conf" in name and files.read_bytes(_RESOLVER.parent / name) == ours:
            files.remove(_RESOLVER.parent / name)
    if aside is None:
        return
    if replaced:
        files.remove(aside)
    else:
        files.move(aside, _RESOLVER)
