"""The lines of an /etc/fstab."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

_ESCAPED = re.compile(r"\\([0-7]{3})")


@dataclass(frozen=True, kw_only=True)
class Line:
    """A line that mounts something."""

    source: str
    mount: str
    type: str
    options: tuple[str, ...]


def parse(text: str) -> Iterator[Line]:
    """The lines that mount something, in their order."""
    for line in text.splitlines():
        parsed = parse_line(line)
        if parsed is not None:
            yield parsed


def parse_line(line: str) -> Line | None:
    """What a line mounts; None for a comment and what mounts nothing."""
    words = [_ESCAPED.sub(lambda found: chr(int(found[1], 8)), word) for word in line.split()]
    if len(words) < 3 or line.lstrip().startswith("#"):
        return None
    source, mount, kind = words[:3]
    options = words[3].split(",") if len(words) > 3 else ["defaults"]
    source = source.replace('"', "")  # mount takes UUID="..." too
    return Line(source=source, mount=mount, type=kind, options=tuple(options))


EFI_MOUNTS = ("/boot/efi", "/efi")
"""Where distributions mount the EFI system partition."""

_DEVICE = re.compile(
    r'"?(UUID|LABEL|PARTUUID|PARTLABEL|ID)=|/dev/(?!(zram[0-9]+|shm|pts|mqueue)\b)'
)
_ELSEWHERE = {"bind", "rbind", "_netdev"}  # options of what is on no disk of the image
_EXT = ("ext2", "ext3", "ext4")


def rewrite(text: str, *, uuid: str, type: str, keep_efi: bool) -> str:
    """An fstab for a disk with root alone.

    Root is found by UUID. Lines for other partitions of the image, which were moved into root or
    left behind, go, and so do those for removable media; all others stay as they are, comments
    too. With `keep_efi` the EFI system partition is mounted where the machine's disk has one.
    """
    kept: list[str] = []
    root, place = f"UUID={uuid} / {type} errors=remount-ro 0 1", None
    for raw in text.splitlines():
        line = parse_line(raw)
        if line is not None and line.mount == "/":
            if place is None:
                root, place = f"UUID={uuid} / {type} {_root_options(line)} 0 1", len(kept)
        elif line is not None and line.mount in EFI_MOUNTS:
            if keep_efi:
                kept.append(_optional(line))
        elif line is None or _stays(line):
            kept.append(raw)
    kept.insert(len(kept) if place is None else place, root)
    return "".join(f"{line}\n" for line in kept)


def _stays(line: Line) -> bool:
    if not _ELSEWHERE.isdisjoint(line.options):
        return True
    return _DEVICE.match(line.source) is None


def _root_options(line: Line) -> str:
    """Root's options, where they mean the same for what root is now."""
    if line.type not in (*_EXT, "auto"):
        return "errors=remount-ro"
    return ",".join(line.options) or "defaults"


def _optional(line: Line) -> str:
    """The mount of a partition that not every machine of the image has: no boot waits for it."""
    asked = ("nofail", "x-systemd.device-timeout=5s")
    options = [each for each in line.options if each.partition("=")[0] not in (*asked, "defaults")]
    return f"{line.source} {line.mount} {line.type} {','.join([*options, *asked])} 0 0"
