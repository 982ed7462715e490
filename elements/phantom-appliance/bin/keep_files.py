#!/usr/bin/env python3
"""Keeps what a definition brings while the image is cleaned.

    keep_files.py remember APPLIANCE RESOLVER TREE FOLDER
    keep_files.py restore TREE FOLDER

An image is cleaned by path: logs, /tmp, keys, caches. What the definition brings to such a place is
to stay. So `remember` notes, after the definition's scripts, how each of its files is then, and
gives it a second name in FOLDER, which is on TREE's file system. `restore` puts back what was taken
away, and fails if anything is not as it was. What a script removed stays away.

APPLIANCE is a folder with `files`, a tree of what the definition brings, and `kept`, with the
absolute paths of what else is to stay. RESOLVER is the resolv.conf of the build, which the
image does not keep. Both work inside TREE, whose links may lead anywhere.
"""

from __future__ import annotations

import hashlib
import json
import os
import stat
import sys
from collections.abc import Iterator, Sequence
from typing import Any

NOTES = "notes.json"
RESOLVER = "etc/resolv.conf"
"""diskimage-builder puts the build host's in its place, and keeps the image's beside it."""
RESOLVER_OF_THE_IMAGE = "etc/resolv.conf.ORIG"
KINDS = {stat.S_IFREG: "file", stat.S_IFLNK: "link", stat.S_IFDIR: "folder"}

State = dict[str, Any]
"""Kind, mode, owner and content of a file."""


def main(words: Sequence[str]) -> None:
    """Does what the arguments say."""
    if words[0] == "remember":
        appliance, resolver, tree, folder = words[1:]
        paths = {*brought(f"{appliance}/files"), *kept(f"{appliance}/kept")}
        remember(sorted(paths), read_resolver(resolver), tree, folder)
        return
    tree, folder = words[1:]
    changed = list(restore(tree, folder))
    if changed:
        raise SystemExit(
            "phantom-appliance: what the definition brings is not in the image as its scripts left "
            f"it: {', '.join(changed)}"
        )


def brought(files: str) -> Iterator[str]:
    """The paths that a definition brings: files, links and empty folders."""
    for folder, folders, names in os.walk(files):
        here = os.path.relpath(folder, files)
        links = [name for name in folders if os.path.islink(os.path.join(folder, name))]
        for name in (*names, *links):
            yield os.path.normpath(os.path.join(here, name))
        if not folders and not names and here != ".":
            yield here


def kept(file: str) -> Iterator[str]:
    """The paths that a file names, relative to the root directory."""
    with open(file) as lines:
        for line in lines:
            yield line.rstrip("\n").lstrip("/")


def remember(paths: Sequence[str], of_build: bytes, tree: str, folder: str) -> None:
    """Notes how the files at these paths of a tree are, and gives them second names."""
    os.makedirs(folder)
    kept = enter(tree, folder)
    places = {path: path for path in paths}
    places.pop(RESOLVER, None)
    resolver = find_resolver(of_build, brought=RESOLVER in paths)
    if resolver is not None:
        places[RESOLVER] = resolver
    notes = []
    for number, (path, place) in enumerate(places.items()):
        if place == RESOLVER and not os.path.islink(place):
            os.chmod(place, 0o644)  # diskimage-builder lets everybody write to its own
        state = look(place)
        if state is None:
            continue
        notes.append({"path": path, "name": str(number), "state": state, "above": above(path)})
        if state["kind"] != "folder":
            os.link(place, str(number), dst_dir_fd=kept, follow_symlinks=False)
    with open(os.open(NOTES, os.O_WRONLY | os.O_CREAT, 0o600, dir_fd=kept), "w") as file:
        json.dump(notes, file)


def restore(tree: str, folder: str) -> Iterator[str]:
    """Puts back what is missing in a tree; yields what is not as it was, and in what it differs."""
    kept = enter(tree, folder)
    with open(os.open(NOTES, os.O_RDONLY, dir_fd=kept)) as file:
        notes = json.load(file)
    for note in notes:
        path, wanted = note["path"], note["state"]
        now = look(path)
        if now is None or (now["kind"] != wanted["kind"] and now["kind"] != "folder"):
            try:
                put_back(note, kept)
            except OSError as error:
                yield f"{'/' + path!r} ({error.strerror})"
                continue
            now = look(path)
        if now != wanted:
            differs = [key for key in wanted if now is None or now[key] != wanted[key]]
            yield f"{'/' + path!r} ({', '.join(differs)})"


def put_back(note: dict[str, Any], kept: int) -> None:
    """Gives a file that is gone its place again, in folders as they were."""
    for parent, state in note["above"]:
        make_folder(parent, state)
    if note["state"]["kind"] == "folder":
        make_folder(note["path"], note["state"])
    else:
        os.rename(note["name"], note["path"], src_dir_fd=kept)


def enter(tree: str, folder: str) -> int:
    """Makes the tree this process's root, so that no link leads out of it. Returns a descriptor of
    the folder, which lies outside."""
    kept = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    os.chroot(tree)
    os.chdir("/")
    return kept


def find_resolver(of_build: bytes, *, brought: bool) -> str | None:
    """Which file is the image's own resolv.conf; None if only the build's is there, or one with
    more at its end. What a script put in its place comes before what the definition brings."""
    content = read_resolver(RESOLVER)
    ours = content == of_build or (of_build != b"" and content.startswith(of_build))
    if os.path.islink(RESOLVER) or (os.path.isfile(RESOLVER) and not ours):
        return RESOLVER
    return RESOLVER_OF_THE_IMAGE if brought else None


def read_resolver(path: str) -> bytes:
    """The content of a resolv.conf; empty where there is none."""
    try:
        with open(path, "rb") as file:
            return file.read()
    except OSError:
        return b""


def look(path: str) -> State | None:
    """How a file is; None if there is none."""
    try:
        status = os.lstat(path)
    except (FileNotFoundError, NotADirectoryError):
        return None
    kind = KINDS.get(stat.S_IFMT(status.st_mode), "other")
    content = ""
    if kind == "link":
        content = os.readlink(path)
    elif kind == "file":
        with open(path, "rb") as file:
            content = hashlib.file_digest(file, "sha256").hexdigest()
    return {
        "kind": kind,
        "content": content,
        "mode": stat.S_IMODE(status.st_mode),
        "owner": [status.st_uid, status.st_gid],
    }


def above(path: str) -> list[tuple[str, State]]:
    """The folders above a path, the highest first."""
    parts = path.split("/")[:-1]
    parents = ["/".join(parts[: number + 1]) for number in range(len(parts))]
    states = [(parent, look(parent)) for parent in parents]
    return [(parent, state) for parent, state in states if state and state["kind"] == "folder"]


def make_folder(path: str, state: State) -> None:
    """Makes a folder where nothing is."""
    if not os.path.lexists(path):
        os.mkdir(path)
        os.chown(path, *state["owner"])
        os.chmod(path, state["mode"])


if __name__ == "__main__":
    main(sys.argv[1:])
