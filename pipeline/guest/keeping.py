"""Keeps what the definition brings while the image is cleaned."""

from __future__ import annotations

import stat
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import PurePosixPath

from pipeline.errors import StageFailedError
from pipeline.guest import cleaning
from pipeline.guest.files import temporary_name
from pipeline.guest.image import Image

_AT_ONCE = 1000  # names: libguestfs's answers hold less than 4 MiB


@dataclass(frozen=True, kw_only=True)
class _State:
    """How a file is. Nothing runs while the image is cleaned, so size and time tell its content."""

    kind: int
    mode: int
    owner: tuple[int, int]
    content: tuple[object, ...]

    @property
    def is_empty(self) -> bool:
        return stat.S_ISREG(self.kind) and self.content[0] == 0


def clean(image: Image, brought: Sequence[PurePosixPath]) -> None:
    """Cleans an image, but leaves there what the definition brought, as its scripts left it.

    Raises StageFailedError if anything of it is not as it was afterwards.
    """
    before = _look(image, brought)
    with image.files.alone():
        aside = [path for path in cleaning.find_cleaned(image.files, brought) if before[path]]
    with _set_aside(image, aside, before) as folder:
        cleaning.clean(image, sparing=folder)
    after = _look(image, brought)
    changed = [
        f"{str(path)!r} ({differences})"
        for path in brought
        if (differences := _compare(before[path], after[path]))
    ]
    if changed:
        raise StageFailedError(
            "what the definition brings is not in the image as its scripts left it: "
            f"{', '.join(changed)}",
            todo="leave it out: each machine makes its own",
            log=image.guest.log,
        )


@contextmanager
def _set_aside(
    image: Image, paths: Sequence[PurePosixPath], states: dict[PurePosixPath, _State | None]
) -> Iterator[PurePosixPath | None]:
    """Gives files another place while the block lasts; yields the folder that holds them."""
    if not paths:
        yield None
        return
    files, folder = image.files, PurePosixPath("/", temporary_name())
    folders = sorted({parent for path in paths for parent in path.parents if parent.parts[1:]})
    above = {path: state for path, state in _look(image, folders).items() if state}
    files.make_folder(folder, 0o700)
    moved = []
    for number, path in enumerate(paths):
        state = states[path]
        assert state is not None
        if stat.S_ISDIR(state.kind):
            above[path] = state
        else:
            files.move(path, folder / str(number))
            moved.append((folder / str(number), path))
    yield folder
    for path in sorted(above):
        state = above[path]
        if stat.S_ISDIR(state.kind) and not files.exists(path):
            _make_folder(image, path, state)
    for place, path in moved:
        files.move(place, path)
    files.remove(folder)


def _make_folder(image: Image, path: PurePosixPath, state: _State) -> None:
    image.files.make_folder(path, state.mode)
    place = image.files.locate(path)
    assert place is not None
    image.guest.handle.chown(*state.owner, place)
    image.guest.handle.chmod(state.mode, place)  # which chown may have taken bits from


def _look(image: Image, paths: Sequence[PurePosixPath]) -> dict[PurePosixPath, _State | None]:
    """How the files at these paths are; None for those that are absent."""
    names: dict[PurePosixPath, list[str]] = {}
    for path in paths:
        names.setdefault(path.parent, []).append(path.name)
    found: dict[PurePosixPath, _State | None] = dict.fromkeys(paths)
    with image.files.alone():
        for folder, inside in names.items():
            for start in range(0, len(inside), _AT_ONCE):
                found.update(_look_into(image, folder, inside[start : start + _AT_ONCE]))
    return found


def _look_into(
    image: Image, folder: PurePosixPath, names: Sequence[str]
) -> Iterator[tuple[PurePosixPath, _State | None]]:
    place = image.files.locate_folder(folder)
    if place is None:
        return
    handle = image.guest.handle
    statuses, links = handle.lstatnslist(place, names), handle.readlinklist(place, names)
    for name, status, link in zip(names, statuses, links, strict=True):
        if status["st_ino"] == -1:
            continue
        kind = stat.S_IFMT(status["st_mode"])
        content: tuple[object, ...] = ()
        if kind == stat.S_IFREG:
            content = (status["st_size"], status["st_mtime_sec"], status["st_mtime_nsec"])
        elif kind == stat.S_IFLNK:
            content = (link,)
        yield (
            folder / name,
            _State(
                kind=kind,
                mode=stat.S_IMODE(status["st_mode"]),
                owner=(status["st_uid"], status["st_gid"]),
                content=content,
            ),
        )


def _compare(before: _State | None, after: _State | None) -> str:
    """In what two states differ; empty where they do not."""
    if before is None or before == after:
        return ""
    if after is None:
        return "it is gone"
    if before.is_empty and after.is_empty:  # as a machine-id has to be
        return ""
    names = ("kind", "mode", "owner", "content")
    return ", ".join(name for name in names if getattr(before, name) != getattr(after, name))
