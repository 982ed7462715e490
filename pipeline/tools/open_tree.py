"""Unpacks an ext4 file system into a folder and runs a command in that tree, for whoever asked.

    open_tree.py terminal|files IMAGE FOLDER [COMMAND...]

It runs as root in namespaces of its own (isolate.py). FOLDER has the socket of whoever asked, and
gets the tree. With `terminal`, the command gets a pseudo-terminal, whose other side goes through
that socket; with `files`, it gets what comes through it as standard input, output and error. At the
end its status goes there, as a number. Without a COMMAND, the tree's own shell runs.

Contents, owners, modes, links and extended attributes are those of the file system, or it fails.
Not kept are the times of folders and of symbolic links, attributes by chattr(1), and device nodes,
which only root of the host may make: `/dev` is that of the namespace.

Only the standard library is used, and nothing of this package.
"""

from __future__ import annotations

import fcntl
import os
import pty
import resource
import signal
import socket
import stat
import subprocess
import sys
import termios
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

SOCKET, TREE = "socket", "tree"
_SUDO = "/phantom/sudo"  # mounts as the namespace allows it
_IGNORED = (signal.SIGINT, signal.SIGQUIT, signal.SIGPIPE, signal.SIGXFSZ)
"""What Python and a shell's background commands ignore, and the command would go on to."""
_ENVIRONMENT = {
    "HOME": "/root",
    "LC_ALL": "C.UTF-8",
    "LOGNAME": "root",
    "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
    "USER": "root",
}


class UnpackError(Exception):
    """The tree is not what the file system holds; the text says where."""


@dataclass(frozen=True)
class Entry:
    """What the file system says of one path."""

    path: bytes
    """Below the root of the file system, without a leading slash; empty for the root itself."""
    inode: int
    mode: int
    owner: int
    group: int
    size: int
    """Bytes; 0 where the listing tells none."""


def main(words: Sequence[str]) -> None:
    """Does what the arguments say."""
    how, image, folder, *command = words
    os.umask(0o022)
    os.chdir(folder)
    os.mkdir(TREE)
    unpack(image, TREE)
    tree = os.path.abspath(TREE)
    _mount(tree)
    with socket.socket(socket.AF_UNIX) as asking:
        asking.connect(SOCKET)
        if how == "terminal":
            main_side, side = pty.openpty()
            socket.send_fds(asking, [b"."], [main_side])
            os.close(main_side)
            files = [side] * 3
        else:
            _, files, _, _ = socket.recv_fds(asking, 1, 3)
        status = _run(command, tree, files, leads=how == "terminal")
        asking.sendall(str(status).encode())


def unpack(image: str, tree: str) -> None:
    """Unpacks a file system into an empty folder. Raises UnpackError."""
    _limit_files(image)
    complaints = _debugfs(image, [b'rdump / "%s"' % os.fsencode(tree)])[1]
    entries = list(_list(image, tree))
    _join_links(tree, entries)
    for entry in entries:
        _settle(tree, entry, complaints)
    _set_attributes(image, tree, entries)
    for entry in entries:
        if not stat.S_ISLNK(entry.mode):  # what came before took these bits away
            path = _place(tree, entry)
            if os.path.lexists(path):
                os.chmod(path, stat.S_IMODE(entry.mode))


def _limit_files(image: str) -> None:
    """No file may become larger than the file system: one that is nearly all hole could."""
    size, (_, most) = os.stat(image).st_size, resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, most))


def _list(image: str, tree: str) -> Iterator[Entry]:
    """Every path of the file system, folders before what lies in them."""
    folders = [b""]
    while folders:
        commands = [b"ls -p " + _quote(folder) for folder in folders]
        found = _debugfs(image, commands)[0]
        next_folders = []
        for folder, command in zip(folders, commands, strict=True):
            for line in found[command]:
                parts = line.split(b"/")
                if len(parts) != 8:
                    raise UnpackError(f"a name in /{os.fsdecode(folder)} has a line feed")
                if parts[5] == b"..":
                    continue
                _, inode, mode, owner, group, name, size, _ = parts
                if int(inode) == 0:  # a name that was removed
                    continue
                if name == b"." and folder:
                    continue
                path = b"" if name == b"." else (folder + b"/" + name).lstrip(b"/")
                kind = int(mode, 8)
                yield Entry(path, int(inode), kind, int(owner), int(group), int(size or b"0"))
                if path and stat.S_ISDIR(kind):
                    next_folders.append(path)
        folders = next_folders


def _quote(path: bytes) -> bytes:
    if any(byte in b"\n\r\0" for byte in path):
        raise UnpackError(f"a name has a line feed: {path!r}")  # which ends a command
    return b'"/%s"' % path.replace(b'"', b'""')


def _debugfs(image: str, commands: Sequence[bytes]) -> tuple[dict[bytes, list[bytes]], str]:
    """What each debugfs command printed, and the complaints of all of them."""
    done = subprocess.run(
        ["debugfs", "-f", "-", image],
        input=b"".join(command + b"\n" for command in commands),
        capture_output=True,
        restore_signals=False,  # a file that gets too large is an error, and no signal
        check=False,
    )
    printed: dict[bytes, list[bytes]] = defaultdict(list)
    expected, at = list(commands), -1
    for line in done.stdout.split(b"\n"):  # each command is printed before what it prints
        if at + 1 < len(expected) and line == b"debugfs: " + expected[at + 1]:
            at += 1
        elif at >= 0 and line:
            printed[expected[at]].append(line)
    _, _, complaints = done.stderr.decode(errors="replace").partition("\n")  # its version
    if done.returncode != 0:
        raise UnpackError(f"debugfs ended with status {done.returncode}: {complaints.strip()}")
    return printed, complaints.strip()


def _place(tree: str, entry: Entry) -> bytes:
    return os.path.join(os.fsencode(tree), entry.path)


def _join_links(tree: str, entries: Sequence[Entry]) -> None:
    """Makes the paths of one file links of each other again."""
    first: dict[int, bytes] = {}
    for entry in entries:
        if stat.S_ISREG(entry.mode):
            path = _place(tree, entry)
            same = first.setdefault(entry.inode, path)
            if same != path:
                os.unlink(path)
                os.link(same, path)


def _settle(tree: str, entry: Entry, complaints: str) -> None:
    """Gives a path its owner, and checks its kind and size."""
    path = _place(tree, entry)
    kind = stat.S_IFMT(entry.mode)
    if kind in (stat.S_IFCHR, stat.S_IFBLK, stat.S_IFSOCK):
        return
    if kind == stat.S_IFIFO and not os.path.lexists(path):
        os.mkfifo(path)
    try:
        found = os.lstat(path)
    except OSError as error:
        raise _unlike(entry, complaints) from error
    wrong_size = kind == stat.S_IFREG and found.st_size != entry.size
    if stat.S_IFMT(found.st_mode) != kind or wrong_size:
        raise _unlike(entry, complaints)
    os.chown(path, entry.owner, entry.group, follow_symlinks=False)


def _unlike(entry: Entry, complaints: str) -> UnpackError:
    name = os.fsdecode(entry.path)
    lines = complaints.splitlines()[:1] or ["it is not as the file system has it"]
    return UnpackError(f"/{name} cannot be unpacked: {lines[0]}")


def _set_attributes(image: str, tree: str, entries: Sequence[Entry]) -> None:
    """Sets extended attributes, such as capabilities."""
    asked = {
        b"ea_list " + _quote(entry.path): entry
        for entry in entries
        if stat.S_ISREG(entry.mode) or stat.S_ISDIR(entry.mode)
    }
    wanted = {}
    for command, lines in _debugfs(image, list(asked))[0].items():
        entry = asked[command]
        for line in lines:
            name = line.strip().split(b" (")[0]
            if line.startswith(b"  ") and name.startswith(
                (b"security.", b"system.posix", b"user.")
            ):
                wanted[b"ea_get -x " + _quote(entry.path) + b" " + name] = entry, name
    for command, lines in (_debugfs(image, list(wanted))[0] if wanted else {}).items():
        entry, name = wanted[command]
        value = bytes.fromhex(b"".join(lines).partition(b" = ")[2].decode())
        try:
            os.setxattr(_place(tree, entry), name, value)
        except OSError as error:
            told = f"{os.fsdecode(name)}: {error.strerror}"
            raise _unlike(entry, told) from error


def _mount(tree: str) -> None:
    """Shows processes and devices in the tree."""
    for name, words in (("proc", ["-t", "proc", "proc"]), ("dev", ["--bind", "/dev"])):
        place = Path(tree, name)
        if not place.is_symlink():
            place.mkdir(exist_ok=True)
            subprocess.run([_SUDO, "mount", *words, str(place)], check=True)


def _run(command: Sequence[str], tree: str, files: Sequence[int], *, leads: bool) -> int:
    """Runs a command in the tree with these files; returns its status as a shell tells it. Whether
    it `leads` a session decides whether the first of them becomes its terminal."""
    child = os.fork()
    if child == 0:
        for ignored in _IGNORED:
            signal.signal(ignored, signal.SIG_DFL)
        os.chroot(tree)
        os.chdir("/root" if os.path.isdir("/root") else "/")
        if leads:
            os.setsid()
            fcntl.ioctl(files[0], termios.TIOCSCTTY, 0)
        for number, file in enumerate(files):
            os.dup2(file, number)
        os.closerange(3, 1 << 16)
        shell = "/bin/bash" if os.access("/bin/bash", os.X_OK) else "/bin/sh"
        words = list(command) or [shell, "-l"]
        environment = {**_ENVIRONMENT, "TERM": os.environ.get("TERM", "dumb")}
        _, most = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (most, most))
        try:
            os.execvpe(words[0], words, environment)
        except OSError as error:
            os.write(2, f"{words[0]}: {error.strerror}\n".encode())
            os._exit(127 if isinstance(error, FileNotFoundError) else 126)
    for file in set(files):
        os.close(file)
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    return status if status >= 0 else 128 - status


if __name__ == "__main__":
    try:
        main(sys.argv[1:])
    except (UnpackError, OSError, subprocess.CalledProcessError) as error:
        sys.exit(f"open_tree: {error}")
