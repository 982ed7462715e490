"""Runs a command with a root directory of its own, as the child of the first process in new
namespaces.

    isolate.py FOLDER COMMAND...        as FOLDER/plan.json and FOLDER/environment say
    isolate.py --as-mapped COMMAND...   with this host's files, as the root of a user namespace

FOLDER, which the command does not see, holds

    environment   `export` lines: all that the command gets of an environment
    plan.json     shown:   what the command sees of this host beside its system, folders before
                           what lies in them: ["read-only" | "writable", PATH], or
                           ["memory", PATH, MIB], an empty folder in memory
                  mapped:  whether its root is one of a user namespace, and not this host's
                  network: whether it has this host's network
                  secrets: files for /run/secrets, as isolated_first.sh wants them

The command finds the host's programs and libraries, read-only; of /etc what programs need and
nothing that is secret or tells which host this is; devices that are not hardware; and a `sudo` that
runs commands as they are.

A user's root is the user on this host, and its other users are those that /etc/subuid gives to the
user. Root's own is a range of users that nobody has; what root has to show of its files is shown by
mounts that map their owners (mount_setattr(2)), so that files keep the owners that they would have
without a user namespace.

Whatever the command mounts or starts ends with this process, and this process ends when its
standard input does: when whoever asked for it is gone, however it went.

Only the standard library is used, and nothing of this package: Python runs this without a path to
it, with sudo's rights where user namespaces are forbidden.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import json
import os
import shutil
import signal
import socket
import struct
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

IDS = 65536
"""How many users and groups a mapped root has."""
_LAST_BLOCK = 0x6FFF0000  # of what systemd leaves to containers ("Users, Groups, UIDs and GIDs")
_ROOT = "/mnt"  # where the root directory is made: there on every host, and nobody's in here
_PROGRAMS = "/phantom"

# <linux/sched.h>, <linux/mount.h>, <fcntl.h>, <sys/prctl.h>
_CLONE_NEWNS, _CLONE_NEWUTS, _CLONE_NEWIPC = 0x00020000, 0x04000000, 0x08000000
_CLONE_NEWUSER, _CLONE_NEWPID, _CLONE_NEWNET = 0x10000000, 0x20000000, 0x40000000
_MS_RDONLY, _MS_NOSUID, _MS_NOEXEC, _MS_REC, _MS_PRIVATE = 1, 2, 8, 0x4000, 1 << 18
_MNT_DETACH = 2
_OPEN_TREE, _MOVE_MOUNT, _MOUNT_SETATTR = 428, 429, 442  # system calls, on every architecture
_OPEN_TREE_CLONE, _AT_RECURSIVE, _AT_EMPTY_PATH = 1, 0x8000, 0x1000
_MOVE_MOUNT_F_EMPTY_PATH = 4
_MOUNT_ATTR_RDONLY, _MOUNT_ATTR_IDMAP = 1, 0x00100000
_AT_FDCWD = -100
_PR_SET_PDEATHSIG = 1
_SIOCGIFFLAGS, _SIOCSIFFLAGS, _IFF_UP = 0x8913, 0x8914, 1

# Read before anything else: a mapped root may not look where this lies.
_SUDO = Path(__file__).with_name("isolated_sudo.sh").read_text()
_FIRST = Path(__file__).with_name("isolated_first.sh").read_text()

_libc = ctypes.CDLL(None, use_errno=True)


class IsolationError(Exception):
    """This host does not let a namespace be made; the text says what was refused."""


def main(words: Sequence[str]) -> int:
    """Does what the arguments say; returns the command's exit status."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    if words[0] == "--as-mapped":
        return _run_mapped(words[1:])
    folder = Path(words[0])
    plan = json.loads((folder / "plan.json").read_text())
    environment = (folder / "environment").read_text()
    return _run(plan, environment, words[1:])


def _run_mapped(command: Sequence[str]) -> int:
    """Runs a command as the mapped root, on the files of this host."""
    namespace = _make_user_namespace()
    child = os.fork()
    if child == 0:
        with _ending():
            _enter_user_namespace(namespace)
            _die_with_parent()
            os.execvp(command[0], list(command))
    return _wait(child)


def _run(plan: dict[str, object], environment: str, command: Sequence[str]) -> int:
    mapped, shown = bool(plan["mapped"]), plan["shown"]
    assert isinstance(shown, list)
    namespace = _make_user_namespace() if mapped else None
    # Root's own files: after this, they can no longer be reached by their paths.
    trees = {}
    if namespace is not None and os.geteuid() == 0:
        for kind, path, *_ in shown:
            if kind != "memory":
                trees[path] = _clone_mapped(path, namespace, needed=kind == "writable")
    child = os.fork()
    if child == 0:
        with _ending():
            if namespace is not None:
                _enter_user_namespace(namespace)
            _die_with_parent()
            spaces = _CLONE_NEWNS | _CLONE_NEWPID | _CLONE_NEWUTS | _CLONE_NEWIPC
            _call(_libc.unshare, spaces | (0 if plan["network"] else _CLONE_NEWNET))
            first = os.fork()
            if first == 0:
                _die_with_parent()
                os.setsid()  # without the terminal of whoever asked for it
                _make_root(shown, trees, mapped=mapped, network=bool(plan["network"]))
                _leave_host(environment)
                os.closerange(3, 1 << 16)
                words = ["sh", "-c", _FIRST, "sh", str(plan["secrets"]), *command]
                os.execve("/bin/sh", words, {"PATH": _PATH})
            os._exit(_wait(first))
    return _wait(child)


_PATH = "/usr/sbin:/usr/bin:/sbin:/bin"


# ---- processes


@contextmanager
def _ending() -> Iterator[None]:
    """Ends a child process in which something fails, with a line that says what."""
    try:
        yield
    except (IsolationError, OSError) as error:
        sys.stderr.write(f"isolate: {error}\n")
        sys.stderr.flush()
    os._exit(1)


def _wait(child: int) -> int:
    """Waits for a child; returns its exit status as a shell tells it."""
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    return status if status >= 0 else 128 - status


def _die_with_parent() -> None:
    _call(_libc.prctl, _PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)


def _call(function: Callable[..., int], *words: object) -> int:
    """Calls a function of the C library. Raises OSError."""
    result = function(*words)
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{getattr(function, '__name__', 'call')}: {os.strerror(number)}")
    return result


# ---- the user namespace


def _make_user_namespace() -> int:
    """Makes a user namespace with 65,536 users and groups; returns a descriptor of it. Raises
    IsolationError."""
    ready, told = os.pipe()
    wait, go = os.pipe()
    holder = os.fork()
    if holder == 0:
        os.close(go)
        try:
            _call(_libc.unshare, _CLONE_NEWUSER)
            os.write(told, b"0")
        except OSError as error:
            os.write(told, str(error.errno).encode())
        os.read(wait, 1)
        os._exit(0)
    os.close(told)
    try:
        number = int(os.read(ready, 16) or b"1")
        if number:
            none_left = number == errno.ENOSPC  # how the kernel tells that its limit is reached
            reason = "no more are allowed" if none_left else os.strerror(number)
            raise IsolationError(f"a user namespace is refused: {reason}")
        _write_maps(holder)
        return os.open(f"/proc/{holder}/ns/user", os.O_RDONLY | os.O_CLOEXEC)
    finally:
        for descriptor in (ready, wait, go):
            os.close(descriptor)
        os.waitpid(holder, 0)


def _write_maps(holder: int) -> None:
    """Gives the user namespace of a process its users and groups."""
    for kind, own in (("uid", os.getuid()), ("gid", os.getgid())):
        start, count = find_range(kind)
        if os.geteuid() == 0:
            Path(f"/proc/{holder}/{kind}_map").write_text(f"0 {start} {IDS}\n")
            continue
        if count < IDS - 1:
            raise IsolationError(f"/etc/sub{kind} gives this user {count} of {IDS - 1} numbers")
        words = ["0", str(own), "1", "1", str(start), str(IDS - 1)]
        try:
            made = subprocess.run(
                [f"new{kind}map", str(holder), *words],
                check=False,
                capture_output=True,
                text=True,
            )
        except FileNotFoundError as error:
            raise IsolationError(f"new{kind}map is not installed") from error
        if made.returncode != 0:
            raise IsolationError(made.stderr.strip() or f"new{kind}map failed")


def find_range(kind: str) -> tuple[int, int]:
    """This user's first range of `uid` or `gid` numbers that is large enough, or else the largest:
    its start and its length. Root gets one that nobody has where it was given none."""
    names = {str(os.getuid()), own_name()}
    own = [(start, count) for name, start, count in _ranges(kind) if name in names]
    needed = IDS if os.geteuid() == 0 else IDS - 1
    enough = next(((start, count) for start, count in own if count >= needed), None)
    if enough is None and os.geteuid() == 0:
        return _find_free(_LAST_BLOCK, -IDS), IDS
    return enough or max(own, key=lambda each: each[1], default=(0, 0))


def find_free() -> int:
    """The start of 65,536 numbers that /etc/subuid and /etc/subgid give to nobody, among those that
    Debian gives to users."""
    return _find_free(100_000, IDS)


def _find_free(block: int, step: int) -> int:
    ranges = [*_ranges("uid"), *_ranges("gid")]
    while any(start < block + IDS and block < start + count for _, start, count in ranges):
        block += step
    return block


def _ranges(kind: str) -> Iterator[tuple[str, int, int]]:
    try:
        lines = Path(f"/etc/sub{kind}").read_text(errors="replace").splitlines()
    except OSError:
        return
    for line in lines:
        parts = line.split(":")
        if len(parts) == 3 and all(part.isascii() and part.isdigit() for part in parts[1:]):
            yield parts[0], int(parts[1][:12]), int(parts[2][:12])


def own_name() -> str:
    """The name of the user who runs this; empty if the number has none."""
    import pwd

    try:
        return pwd.getpwuid(os.getuid()).pw_name
    except KeyError:
        return ""


def _enter_user_namespace(namespace: int) -> None:
    """Makes this process the root of a user namespace. A user keeps the groups by which the user
    may read a store; root's groups go."""
    if os.geteuid() == 0:
        os.setgroups([])
    _call(_libc.setns, namespace, _CLONE_NEWUSER)
    os.setresgid(0, 0, 0)
    os.setresuid(0, 0, 0)


# ---- mounts


class _Attributes(ctypes.Structure):
    """struct mount_attr"""

    _fields_ = [
        (name, ctypes.c_uint64) for name in ("attr_set", "attr_clr", "propagation", "userns_fd")
    ]


def _clone(path: str) -> int:
    """A descriptor of a mount of what lies at a path, with all that is mounted below it."""
    flags = _OPEN_TREE_CLONE | _AT_RECURSIVE | os.O_CLOEXEC
    return _call(_libc.syscall, _OPEN_TREE, _AT_FDCWD, os.fsencode(path), flags)


def _clone_mapped(path: str, namespace: int, *, needed: bool) -> int:
    """As `_clone`, with the owners as those of a user namespace. Where the file system does not let
    them be mapped, and that is not `needed`, its files are seen as everybody sees them. Raises
    IsolationError."""
    tree = _clone(path)
    try:
        _set_attributes(tree, _MOUNT_ATTR_IDMAP, namespace)
    except OSError as error:
        if needed:
            raise IsolationError(
                f"the file system of {path} does not let owners be mapped: {error.strerror}"
            ) from error
    return tree


def _set_attributes(tree: int, attributes: int, namespace: int = 0) -> None:
    told = _Attributes(attributes, 0, 0, namespace)
    flags = _AT_EMPTY_PATH | _AT_RECURSIVE
    size = ctypes.sizeof(told)
    _call(_libc.syscall, _MOUNT_SETATTR, tree, b"", flags, ctypes.byref(told), size)


def _attach(tree: int, target: str, *, read_only: bool) -> None:
    if read_only:
        _set_attributes(tree, _MOUNT_ATTR_RDONLY)
    place = os.fsencode(target)
    flags = _MOVE_MOUNT_F_EMPTY_PATH
    _call(_libc.syscall, _MOVE_MOUNT, tree, b"", _AT_FDCWD, place, flags)
    os.close(tree)


def _show(path: str, tree: int | None = None, *, read_only: bool = True) -> None:
    """Shows the same files at the same path in the new root directory."""
    target = f"{_ROOT}{path}"
    tree = _clone(path) if tree is None else tree
    if os.path.isdir(f"/proc/self/fd/{tree}"):
        os.makedirs(target, exist_ok=True)
    else:
        os.makedirs(os.path.dirname(target), exist_ok=True)
        if not os.path.lexists(target):
            Path(target).touch()
    _attach(tree, target, read_only=read_only)


def _mount(kind: str, target: str, options: str = "", flags: int = 0) -> None:
    words = (b"phantom", os.fsencode(target), kind.encode(), ctypes.c_ulong(flags))
    try:
        _call(_libc.mount, *words, options.encode())
    except OSError as error:
        raise IsolationError(f"{kind} cannot be mounted: {error.strerror}") from error


# ---- the root directory


def _make_root(
    shown: Sequence[Sequence[str]], trees: dict[str, int], *, mapped: bool, network: bool
) -> None:
    """Makes the command's root directory in a mount namespace that is this process's own."""
    os.umask(0o022)  # the caller's must not decide what lies in the image
    socket.sethostname("localhost")
    if not network:
        _start_loopback()
    _call(_libc.mount, None, b"/", None, ctypes.c_ulong(_MS_REC | _MS_PRIVATE), None)
    paths = [path for kind, path, *_ in shown if kind != "memory"]
    trees = {path: trees.get(path) or _clone(path) for path in paths}  # some may lie below _ROOT
    _mount("tmpfs", _ROOT, "size=64m,mode=0755")
    for name in ("bin", "sbin", "lib", "lib32", "lib64", "libx32"):
        if os.path.islink(f"/{name}"):
            os.symlink(os.readlink(f"/{name}"), f"{_ROOT}/{name}")
        elif os.path.isdir(f"/{name}"):
            _show(f"/{name}")
    _show("/usr")
    _make_etc(network=network)
    _make_dev()
    os.mkdir(f"{_ROOT}{_PROGRAMS}")
    sudo = Path(f"{_ROOT}{_PROGRAMS}/sudo")
    sudo.write_text(_SUDO)
    sudo.chmod(0o755)
    if mapped:
        sudo.with_name("mapped").touch()
    for name in ("proc", "sys", "run/lock", "mnt", "var/lib", "var/cache", "var/log", "old"):
        os.makedirs(f"{_ROOT}/{name}", exist_ok=True)
    os.mkdir(f"{_ROOT}/root", 0o700)
    for name in ("tmp", "var/tmp"):
        os.mkdir(f"{_ROOT}/{name}")
    _mount("tmpfs", f"{_ROOT}/tmp", "mode=1777")
    _attach(_clone(f"{_ROOT}/tmp"), f"{_ROOT}/var/tmp", read_only=False)
    _mount("proc", f"{_ROOT}/proc")
    if not mapped:
        for name in ("sys", "sysrq-trigger"):  # the settings of the host's kernel
            place = f"{_ROOT}/proc/{name}"
            if os.path.exists(place):
                _attach(_clone(place), place, read_only=True)
    for kind, path, *size in shown:
        if kind == "memory":
            os.makedirs(f"{_ROOT}{path}", exist_ok=True)
            _mount("tmpfs", f"{_ROOT}{path}", f"size={size[0]}m,mode=0755")
        else:
            _show(path, trees[path], read_only=kind == "read-only")


def _start_loopback() -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as asking:
        request = struct.pack("16sH14x", b"lo", 0)
        (flags,) = struct.unpack_from("H", fcntl.ioctl(asking, _SIOCGIFFLAGS, request), 16)
        fcntl.ioctl(asking, _SIOCSIFFLAGS, struct.pack("16sH14x", b"lo", flags | _IFF_UP))


_ETC = (
    *("alternatives", "ca-certificates", "ca-certificates.conf", "debian_version", "ld.so.cache"),
    *("ld.so.conf", "ld.so.conf.d", "login.defs", "mke2fs.conf", "mtab", "os-release", "perl"),
    *("protocols", "services", "ssl/certs", "ssl/openssl.cnf"),
)
_EMPTY = ("apt/apt.conf.d", "apt/preferences.d", "apt/sources.list.d", "apt/trusted.gpg.d")


def _make_etc(*, network: bool) -> None:
    etc = Path(f"{_ROOT}/etc")
    for name in (*_EMPTY, "dpkg/dpkg.cfg.d", "ssl"):
        (etc / name).mkdir(parents=True)
    for name in _ETC:
        _copy(Path("/etc", name), etc / name)
    for name in ("passwd", "group"):  # not those of people
        lines = Path("/etc", name).read_text(errors="replace").splitlines(keepends=True)
        (etc / name).write_text("".join(filter(_is_of_the_system, lines)))
    # Its own name, and no domain of the host's in which names would be looked up.
    try:
        told = Path("/etc/resolv.conf").read_text(errors="replace").splitlines(keepends=True)
    except OSError:
        told = []
    kept = [line for line in told if network and line.startswith(("nameserver", "options"))]
    (etc / "resolv.conf").write_text("".join(kept))
    (etc / "hostname").write_text("localhost\n")
    (etc / "hosts").write_text("127.0.0.1 localhost\n::1 localhost\n")
    (etc / "nsswitch.conf").write_text(
        "passwd: files\ngroup: files\nshadow: files\nhosts: files dns\n"
    )


def _is_of_the_system(line: str) -> bool:
    parts = line.split(":")
    number = int(parts[2]) if len(parts) > 2 and parts[2].isdigit() else -1
    return 0 <= number < 1000 or number == 65534


def _copy(source: Path, target: Path) -> None:
    """Copies what everybody may read, links as they are; what is not there is left out."""
    if source.is_symlink():
        target.symlink_to(source.readlink())
    elif source.is_dir():
        target.mkdir()
        for entry in source.iterdir():
            _copy(entry, target / entry.name)
    elif source.is_file():
        try:
            shutil.copy(source, target)
        except PermissionError:
            return


def _make_dev() -> None:
    dev = f"{_ROOT}/dev"
    os.mkdir(dev)
    _mount("tmpfs", dev, "mode=0755", _MS_NOSUID | _MS_NOEXEC)
    for name in ("null", "zero", "full", "random", "urandom", "tty"):
        Path(dev, name).touch()
        _attach(_clone(f"/dev/{name}"), f"{dev}/{name}", read_only=False)
    for name, place in (
        ("fd", "/proc/self/fd"),
        ("stdin", "fd/0"),
        ("stdout", "fd/1"),
        ("stderr", "fd/2"),
        ("ptmx", "pts/ptmx"),
    ):
        os.symlink(place, f"{dev}/{name}")
    for name in ("pts", "shm"):
        os.mkdir(f"{dev}/{name}")
    _mount("devpts", f"{dev}/pts", "newinstance,mode=0620,ptmxmode=0666")
    _mount("tmpfs", f"{dev}/shm", "mode=1777")


def _leave_host(environment: str) -> None:
    """Takes the host's tree out of sight, and leaves the environment where the command finds it."""
    place = f"{_ROOT}/run/environment"
    with open(os.open(place, os.O_WRONLY | os.O_CREAT, 0o600), "w") as file:
        file.write(environment)
    os.chdir(_ROOT)
    _call(_libc.pivot_root, b".", b"old")
    os.chdir("/")
    _call(_libc.umount2, b"/old", _MNT_DETACH)
    os.rmdir("/old")


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:]))
    except (IsolationError, OSError) as error:
        sys.exit(f"isolate: {error}")
