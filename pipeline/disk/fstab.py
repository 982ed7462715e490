"""Reads fstab, and rewrites it for a disk that holds only the root file system."""

from __future__ import annotations

import posixpath
import re
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice, takewhile
from pathlib import PurePosixPath

from pipeline.disk.untrusted import lines_of

FSTAB = PurePosixPath("/etc/fstab")

EFI_MOUNTS = ("/boot/efi", "/efi")
"""Where distributions mount the EFI system partition."""

SUBVOLUMES = ("", "@rootfs", "@", "root", "@root", "@/.snapshots/1/snapshot")
"""Where distributions keep root on btrfs, as paths below the default subvolume: @rootfs in Debian,
@ in Ubuntu and SUSE, root in Fedora. SUSE's root is also the default subvolume."""

OF_ROOT = ("etc/fstab", "etc/os-release")
"""A subvolume that has one of these files is root."""

_ESCAPED = re.compile(r"\\([0-7]{3})")
_TO_ESCAPE = re.compile(r"[\s\\#]")
_WAITS_FOR_NOTHING = {"noauto", "nofail", "_netdev", "bind", "rbind"}
_DEVICE = re.compile(
    r'"?(UUID|LABEL|PARTUUID|PARTLABEL|ID)=|/dev/(?!(zram[0-9]+|shm|pts|mqueue)\b)'
)
_ELSEWHERE = {"bind", "rbind", "_netdev"}  # options of mounts that use no disk of the image
_MOST_LINES = 10_000  # an untrusted image may have any number
_EXT = ("ext2", "ext3", "ext4")


@dataclass(frozen=True, kw_only=True)
class Line:
    """One mount in an fstab."""

    source: str
    mount: str
    """The normalised mount point: `/` for `//`, `/boot` for `/boot/`."""
    type: str
    options: tuple[str, ...]

    @property
    def optional(self) -> bool:
        """Whether the system boots without the source."""
        return not _WAITS_FOR_NOTHING.isdisjoint(self.options)


def parse(text: str) -> Iterator[Line]:
    """The mounts in an fstab, in order, of its first `_MOST_LINES` lines."""
    return filter(None, map(parse_line, islice(lines_of(text), _MOST_LINES)))


def parse_line(line: str) -> Line | None:
    """The mount in a line; None if there is none, as in a comment."""
    words = [*takewhile(lambda word: not word.startswith("#"), line.split())]
    if len(words) < 3:
        return None
    source, mount, kind, *others = (
        _ESCAPED.sub(lambda match: chr(int(match[1], 8)), word) for word in words[:4]
    )
    return Line(
        source=source.replace('"', ""),  # mount takes UUID="..." too
        mount=normal(mount),
        type=kind,
        options=tuple(others[0].split(",") if others else ["defaults"]),
    )


def normal(mount: str) -> str:
    """Normalises a mount point, unless it is relative or contains `..`."""
    if not mount.startswith("/") or ".." in mount.split("/"):
        return mount
    return "/" + posixpath.normpath(mount).lstrip("/")


def rewrite(text: str, *, uuid: str, type: str, keep_efi: bool) -> str:
    """Rewrites an fstab for a disk that holds only root, which it mounts by UUID.

    It drops the image's other partitions, which were moved into root or left out, and removable
    media, and keeps all other lines, comments too. With `keep_efi` it mounts the EFI system
    partition if the machine has one.
    """
    kept: list[str] = []
    root, place = f"UUID={uuid} / {type} errors=remount-ro 0 1", None
    for raw in lines_of(text):
        line = parse_line(raw)
        if line is not None and line.mount == "/":
            if place is None:
                root, place = f"UUID={uuid} / {type} {_root_options(line)} 0 1", len(kept)
        elif line is not None and line.mount in EFI_MOUNTS:
            if keep_efi:
                kept.append(_optional(line))
        elif (
            line is None
            or not _ELSEWHERE.isdisjoint(line.options)
            or not _DEVICE.match(line.source)
        ):
            kept.append(raw)
    kept.insert(len(kept) if place is None else place, root)
    return "".join(f"{line}\n" for line in kept)


def _root_options(line: Line) -> str:
    """Root's options if it was an ext file system before, as it is now."""
    if line.type not in (*_EXT, "auto"):
        return "errors=remount-ro"
    return _escape(",".join(line.options)) or "defaults"


def _optional(line: Line) -> str:
    """The line of a partition that some machines lack: the boot does not wait for it."""
    asked = ("nofail", "x-systemd.device-timeout=5s")
    dropped = (*asked, "defaults")
    options = [option for option in line.options if option.partition("=")[0] not in dropped]
    words = (line.source, line.mount, line.type, ",".join([*options, *asked]))
    return f"{' '.join(map(_escape, words))} 0 0"


def _escape(word: str) -> str:
    return _TO_ESCAPE.sub(lambda match: f"\\{ord(match[0]):03o}", word)
