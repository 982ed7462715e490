#!/usr/bin/env python3
"""Finds what packages made while they were installed and each machine has to have for itself.

    identities.py record TREE RECORD
    identities.py hide TREE RECORD ELEMENT ASIDE
    identities.py show TREE RECORD ASIDE
    identities.py settle TREE RECORD ELEMENT OUTPUT

`record`, after the packages' transaction, notes every file that no package holds, with a digest.
`hide`, before the initramfs is made, moves those that machines make for themselves to the folder
ASIDE: hooks of the initramfs would copy them into it. `show` moves them back. ASIDE is in the same
mount as TREE.
`settle`, when all hooks and scripts have run, removes those that a maker of ELEMENT/identities/
can make again, and adds the makers to the tree, with a service that runs them at boot. A file that
was changed since `record` stays: the definition wants it so. OUTPUT tells, as JSON, what is
`made_at_boot`, and what looks as if it should not be `shared` by all machines and stays.

Nothing outside TREE is touched, whatever links are in it.
"""

from __future__ import annotations

import fnmatch
import hashlib
import json
import math
import os
import re
import shlex
import stat
import sys
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

from arrange_files import owners

PLACES = ("etc", "home", "opt", "root", "srv", "usr/local", "var")
SKIPPED = (
    *("etc/alternatives", "var/cache", "var/lib/apt", "var/lib/dpkg", "var/lib/ucf", "var/log"),
    *("var/lib/systemd/deb-systemd-helper-*", "var/lib/systemd/catalog", "var/tmp"),
)
"""Folders of records and caches, all made from packages."""
PUBLIC = (
    *("etc/ssl/certs/*", "etc/passwd*", "etc/group*", "etc/shadow*", "etc/gshadow*"),
    *("etc/subuid*", "etc/subgid*", "etc/machine-id", "etc/ld.so.cache"),
    *("etc/ssh/ssh_host_*", "var/lib/systemd/random-seed", "var/lib/dbus/machine-id"),
)
"""Files that look random and are not, or that finalise.d takes care of."""
TOLD = {
    "var/lib/postgresql/*/*/global/pg_control": "a database, which has an id of its own",
    "var/lib/mysql/ibdata1": "a database, which has ids of its own",
    "var/lib/ldap/data.mdb": "a directory, which has ids and a password of its own",
}
"""Files that no rule below recognises."""
NAMES = {"etc/postfix/main.cf": r"(?m)^myhostname = localhost\b.*\n"}
"""What names the machine that it was made on and is better left out: the program then asks."""
LARGEST = 4 * 2**20
"""Bytes; what is larger is neither a key nor an id."""
UNITS = "etc/systemd/system"
SERVICE = "phantom-identities.service"
PROGRAMS = "usr/lib/phantom"


@dataclass(frozen=True, kw_only=True)
class Maker:
    """A file of `identities/`."""

    name: str
    text: str
    files: tuple[str, ...]
    """What it makes, below the tree."""


def main() -> None:
    """Reads the arguments and does what the module says."""
    command, tree, record = sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3])
    if command == "record":
        record.write_text(json.dumps(dict(list_unowned(tree))))
        return
    if command == "show":
        show(tree, Path(sys.argv[4]))
        return
    element, known = Path(sys.argv[4]), json.loads(record.read_text())
    if command == "hide":
        hide(tree, known, element, Path(sys.argv[5]))
        return
    output = Path(sys.argv[5])
    made = take_out(tree, known, element)
    forget_names(tree, known)
    shared = [{"file": f"/{path}", "what": what} for path, what in find_shared(tree, known)]
    output.write_text(json.dumps({"made_at_boot": made, "shared": shared}, indent=2) + "\n")


# ---- files that no package holds


def list_unowned(tree: Path) -> Iterator[tuple[str, str]]:
    """The files that no package holds, each with a digest."""
    owned = owners(tree)
    for place in PLACES:
        if all(is_folder(tree, parent) for parent in parents(place)):
            for path in walk(tree, place):
                if path not in owned:
                    yield path, digest(tree / path)


def walk(tree: Path, folder: str) -> Iterator[str]:
    """Files and links below a folder of the tree, in order; follows no link."""
    with os.scandir(tree / folder) as entries:
        ordered = sorted(entries, key=lambda entry: os.fsencode(entry.name))
    for entry in ordered:
        path = f"{folder}/{entry.name}"
        if any(fnmatch.fnmatchcase(path, skipped) for skipped in SKIPPED):
            continue
        if entry.is_dir(follow_symlinks=False):
            yield from walk(tree, path)
        elif entry.is_file(follow_symlinks=False) or entry.is_symlink():
            yield path


def digest(file: Path) -> str:
    """Of a file's content, or of what a link says."""
    if file.is_symlink():
        return f"-> {os.readlink(file)}"
    if file.stat().st_size > LARGEST:
        return f"{file.stat().st_size} {file.stat().st_mtime_ns}"
    return hashlib.sha256(file.read_bytes()).hexdigest()


def parents(path: str) -> Iterator[str]:
    """A path and the folders above it, the topmost first."""
    parts = path.split("/")
    return ("/".join(parts[:count]) for count in range(1, len(parts) + 1))


def is_folder(tree: Path, path: str) -> bool:
    """Whether a path of the tree is a folder and no link to one."""
    return os.path.lexists(tree / path) and stat.S_ISDIR(os.lstat(tree / path).st_mode)


def is_unchanged(tree: Path, path: str, known: Mapping[str, str]) -> bool:
    """Whether a file is as it was after the packages' transaction."""
    *above, _ = parents(path)
    return (
        path in known
        and all(is_folder(tree, parent) for parent in above)
        and os.path.lexists(tree / path)
        and digest(tree / path) == known[path]
    )


# ---- what is made again


def read_makers(folder: Path) -> Iterator[Maker]:
    """The makers that the element has."""
    for file in sorted(folder.iterdir()):
        text = file.read_text()
        listed = re.search(r'^files="([^"]*)"$', text, re.MULTILINE)
        if listed is None:
            raise SystemExit(f"phantom-debian: {file} does not say which `files` it makes")
        files = tuple(path.lstrip("/") for path in listed[1].split())
        yield Maker(name=file.name, text=text, files=files)


def find_unchanged(
    tree: Path, known: Mapping[str, str], element: Path
) -> Iterator[tuple[Maker, list[str]]]:
    """The makers whose files are as the packages made them, each with those that are there."""
    for maker in read_makers(element / "identities"):
        present = [path for path in maker.files if os.path.lexists(tree / path)]
        if present and all(is_unchanged(tree, path, known) for path in present):
            yield maker, present


def hide(tree: Path, known: Mapping[str, str], element: Path, aside: Path) -> None:
    """Moves aside what can be made again."""
    for _, present in find_unchanged(tree, known, element):
        for path in present:
            (aside / path).parent.mkdir(parents=True, exist_ok=True)
            os.rename(tree / path, aside / path)


def show(tree: Path, aside: Path) -> None:
    """Moves back what `hide` moved, where nothing has taken its place."""
    for file in sorted(aside.rglob("*")):
        if file.is_dir() and not file.is_symlink():
            continue
        path = str(file.relative_to(aside))
        *above, _ = parents(path)
        if all(is_folder(tree, each) for each in above) and not os.path.lexists(tree / path):
            os.rename(file, tree / path)


def take_out(tree: Path, known: Mapping[str, str], element: Path) -> list[dict[str, object]]:
    """Removes what can be made again, and adds what makes it. Returns what that is."""
    told: list[dict[str, object]] = []
    for maker, present in find_unchanged(tree, known, element):
        restore = [line for path in present for line in _restoring(tree, path)]
        text = "\n".join([maker.text.rstrip("\n"), "restore() {", *restore, "}", ""])
        for path in present:
            _remove(tree, path, known)
        _write(tree, f"{PROGRAMS}/identities/{maker.name}", text.encode(), 0o644)
        told.append({"package": maker.name, "files": [f"/{path}" for path in present]})
    if told:
        files = element / "first-boot"
        program = (files / "make-identities").read_bytes()
        _write(tree, f"{PROGRAMS}/make-identities", program, 0o755)
        _write(tree, f"{UNITS}/{SERVICE}", (files / SERVICE).read_bytes(), 0o644)
        _make_folders(tree, f"{UNITS}/basic.target.wants")
        os.symlink(f"/{UNITS}/{SERVICE}", tree / UNITS / "basic.target.wants" / SERVICE)
    return told


def forget_names(tree: Path, known: dict[str, str]) -> None:
    """Takes the host name of the build out of files that name it."""
    for path, pattern in NAMES.items():
        if is_unchanged(tree, path, known):
            text = (tree / path).read_text(errors="surrogateescape")
            (tree / path).write_text(re.sub(pattern, "", text), errors="surrogateescape")
            known[path] = digest(tree / path)


def _restoring(tree: Path, path: str) -> Iterator[str]:
    """Commands that give a file the owner and mode that it had."""
    status = os.lstat(tree / path)
    file = shlex.quote(f"/{path}")
    yield f"    chown {status.st_uid}:{status.st_gid} {file}"
    yield f"    chmod {stat.S_IMODE(status.st_mode):04o} {file}"


def _remove(tree: Path, path: str, known: Mapping[str, str]) -> None:
    """Removes a file, and links beside it that only lead there."""
    folder, _, name = path.rpartition("/")
    os.unlink(tree / path)
    for beside in os.listdir(tree / folder):
        link = f"{folder}/{beside}"
        if known.get(link) == f"-> {name}" and is_unchanged(tree, link, known):
            os.unlink(tree / link)


def _write(tree: Path, path: str, content: bytes, mode: int) -> None:
    """Writes a file that is not there yet."""
    _make_folders(tree, os.path.dirname(path))
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW
    with open(os.open(tree / path, flags, mode), "wb") as file:
        file.write(content)
    os.chmod(tree / path, mode)


def _make_folders(tree: Path, path: str) -> None:
    """Makes a folder and those above it; a link among them is refused."""
    for folder in parents(path):
        if not os.path.lexists(tree / folder):
            os.mkdir(tree / folder, 0o755)
        elif not is_folder(tree, folder):
            raise SystemExit(f"phantom-debian: /{folder} of the image is not a folder")


# ---- what stays and should perhaps not


A_KEY = "a private key"
PRIVATE_KEY = re.compile(
    rb"^(-----BEGIN [A-Z0-9 ]*PRIVATE KEY-----|PuTTY-User-Key-File-|AGE-SECRET-KEY-1)", re.MULTILINE
)
PUBLIC_BLOCK = re.compile(rb"-----BEGIN ([A-Z0-9 ]+)-----[^-]*-----END \1-----")
UUID = re.compile(rb"\b[0-9a-fA-F]{8}(?:-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}\b")
WORD = re.compile(rb"[A-Za-z0-9+/=_-]{12,}")
PACKED = (b"\x1f\x8b", b"BZh", b"\xfd7zXZ", b"(\xb5/\xfd", b"PK\x03\x04", b"\x89PNG", b"\x7fELF")
"""How files begin that look random because they are compressed."""


def find_shared(tree: Path, known: Mapping[str, str]) -> Iterator[tuple[str, str]]:
    """Files of no package that hold a key, an id, or what looks like one, and what it is.

    The definition's own files are its own affair. What a hook or a script made counts where it
    is a private key.
    """
    own = {*owners(tree), *_definition_files()}
    for path in (path for place in PLACES if is_folder(tree, place) for path in walk(tree, place)):
        file = tree / path
        public = any(fnmatch.fnmatchcase(path, name) for name in PUBLIC)
        if file.is_symlink() or public or path in own:
            continue
        if path in known and known[path] == digest(file):
            found = next((TOLD[name] for name in TOLD if fnmatch.fnmatchcase(path, name)), None)
            found = found or _judge_file(file)
        else:
            found = _judge_file(file)
            found = found if found == A_KEY else None
        if found is not None:
            yield path, found


def _definition_files() -> Iterator[str]:
    folder = Path(os.environ.get("PHANTOM_APPLIANCE", "/nonexistent"), "files")
    return (str(file.relative_to(folder)) for file in folder.rglob("*") if not file.is_dir())


def _judge_file(file: Path) -> str | None:
    status = file.stat()
    if status.st_size > LARGEST:
        return None
    return judge(file.read_bytes(), open_to_all=bool(status.st_mode & stat.S_IROTH))


def judge(content: bytes, *, open_to_all: bool) -> str | None:
    """What a file holds that each machine should have for itself; None where it seems to be none.
    In a file that not everybody may read, shorter words count."""
    if PRIVATE_KEY.search(content):
        return A_KEY
    content = PUBLIC_BLOCK.sub(b"", content)
    if UUID.search(content):
        return "an id"
    if looks_binary(content):
        return "random bytes" if is_random(content) else None
    least = 20 if open_to_all else 12
    words = (word for word in WORD.findall(content) if len(word) >= least)
    if any(is_random_word(word) for word in words):
        return "an id or a secret" if open_to_all else "a secret"
    return None


def looks_binary(content: bytes) -> bool:
    """Whether a file is not text."""
    head = content[:4096]
    return sum(byte < 9 or byte > 126 for byte in head) > len(head) // 8


def is_random(content: bytes) -> bool:
    """Whether all bytes are about equally frequent, in a file that is not compressed."""
    size = len(content)
    if size < 16 or content.startswith(PACKED):
        return False
    expected = 256 * (1 - (255 / 256) ** size)
    most = max(Counter(content).values())
    return len(set(content)) > 0.85 * expected and most < 4 + 4 * size / 256


def is_random_word(word: bytes) -> bool:
    """Whether a word looks as if it was drawn: long hexadecimal digits, or letters and digits that
    change their kind more often than names do."""
    if re.fullmatch(rb"[0-9a-f]{32,}|[0-9A-F]{32,}", word):
        return len(set(word)) >= 8
    kinds = [_kind(byte) for byte in word]
    changes = sum(first != second for first, second in pairwise(kinds) if first and second)
    counts = Counter(word)
    entropy = -sum(n / len(word) * math.log2(n / len(word)) for n in counts.values())
    mixed = {"A", "a"} <= set(kinds) and kinds.count("0") > 1
    return mixed and changes >= 0.4 * len(word) and entropy > 3.2


def _kind(byte: int) -> str:
    letter = chr(byte)
    return "A" if letter.isupper() else "a" if letter.islower() else "0" if letter.isdigit() else ""


if __name__ == "__main__":
    main()
