"""What our readers of disk images accept, QEMU reads in the same way: as the same format, of the
same size, and without any other file."""

from __future__ import annotations

import json
import struct
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from soak import examples

from pipeline.disk import convert, formats
from pipeline.disk.formats import DiskFormat
from pipeline.errors import EncryptedError, ImageFormatError
from pipeline.model import KIB, MIB

SECTOR, SIZE = 512, MIB
HEADER = 16 * KIB
DESCRIPTOR = (
    b'# Disk DescriptorFile\nversion=1\nCID=1\nparentCID=%s\ncreateType="monolithicSparse"\n%s\n'
    b'RW 2048 SPARSE "image"\n'
)
PARENT = DESCRIPTOR % (b"2", b'parentFileNameHint="/etc/hostname"')

CREATED = {
    "qcow2": ("qcow2",),
    "qcow2 0.10": ("qcow2", "-o", "compat=0.10"),
    "qcow2 extended": ("qcow2", "-o", "extended_l2=on"),
    "qcow2 backed": ("qcow2", "-u", "-F", "raw", "-b", "/etc/hostname"),
    "qcow": ("qcow",),
    "qed": ("qed",),
    "vmdk": ("vmdk",),
    "vmdk flat": ("vmdk", "-o", "subformat=monolithicFlat"),
    "vpc": ("vpc", "-o", "force_size=on"),
    "vpc fixed": ("vpc", "-o", "subformat=fixed,force_size=on"),
    "vdi": ("vdi",),
    "vhdx": ("vhdx",),
    "parallels": ("parallels",),
    "raw": ("raw",),
}
CONVERTED = {
    "qcow2 packed": ("qcow2", "-c"),
    "vmdk stream": ("vmdk", "-o", "subformat=streamOptimized"),
}
NAMES = (*CREATED, *CONVERTED, "luks")


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """A small image of each kind."""
    folder = tmp_path_factory.mktemp("images")
    for name, (kind, *options) in CREATED.items():
        words = ["qemu-img", "create", "-q", "-f", kind, *options, str(folder / name), str(SIZE)]
        subprocess.run(words, check=True)
    disk = folder / "raw"
    disk.write_bytes(b"\0U\xff\1" * 25 * KIB + bytes(SIZE - 100 * KIB))
    for name, (kind, *options) in CONVERTED.items():
        words = [
            "qemu-img",
            "convert",
            "-f",
            "raw",
            "-O",
            kind,
            *options,
            str(disk),
            str(folder / name),
        ]
        subprocess.run(words, check=True)
    (folder / "vmdk flat-flat").unlink(missing_ok=True)
    (folder / "luks").write_bytes((b"LUKS\xba\xbe\0\1aes" + bytes(SIZE))[:SIZE])
    return {name: (folder / name).read_bytes() for name in NAMES}


def ask_qemu(*image: str) -> dict[str, Any] | None:
    """What `qemu-img info` says; None where it refuses the image."""
    words = ["qemu-img", "info", "--output=json", *image]
    told = subprocess.run(words, check=False, capture_output=True)
    return json.loads(told.stdout) if told.returncode == 0 else None


def other_files(told: dict[str, Any], file: Path) -> Iterator[str]:
    """The files that an image names, beside itself."""
    for key in ("backing-filename", "full-backing-filename"):
        if key in told:
            yield told[key]
    specific = told.get("format-specific", {}).get("data", {})
    if "data-file" in specific:
        yield specific["data-file"]
    yield from (
        each["filename"] for each in specific.get("extents", ()) if each["filename"] != str(file)
    )


def check(file: Path) -> DiskFormat | None:
    """Compares our verdict with QEMU's; returns what we accept."""
    try:
        disk = formats.read_format(file, "IMAGE")
    except (ImageFormatError, EncryptedError):
        return None
    told = ask_qemu(str(file))
    footer = disk.name == "vpc" and not file.read_bytes().startswith(b"conectix")
    if told is not None:
        assert [*other_files(told, file)] == []
        assert told["format"] == ("raw" if footer else disk.name)
        if disk.name != "vpc":
            assert told["virtual-size"] == disk.bytes
    told = ask_qemu(convert.source_options(file, disk))  # as it is converted
    assert told is None or (told["virtual-size"], told["format"]) == (disk.bytes, disk.name)
    assert told is None or [*other_files(told, file)] == []
    return disk


def sealed(content: bytes) -> bytes:
    """The same, with the checksums of VHD's footers corrected: else QEMU refuses it."""
    changed = bytearray(content)
    for at in (0, len(content) - SECTOR):
        if changed[max(at, 0) : max(at, 0) + 8] == b"conectix":
            changed[at + 64 : at + 68] = bytes(4)
            total = ~sum(changed[at : at + SECTOR]) & 0xFFFFFFFF
            changed[at + 64 : at + 68] = struct.pack(">I", total)
    return bytes(changed)


def test_what_is_whole_is_accepted(images: dict[str, bytes], tmp_path: Path) -> None:
    accepted = {}
    for name in NAMES:
        file = tmp_path / "image"
        file.write_bytes(images[name])
        disk = check(file)
        if disk is not None:
            accepted[name] = disk.name
            assert disk.bytes == SIZE
            assert sealed(images[name]) == images[name]
    assert accepted == {
        **dict.fromkeys(("qcow2", "qcow2 0.10", "qcow2 extended", "qcow2 packed"), "qcow2"),
        **dict.fromkeys(("vmdk", "vmdk stream"), "vmdk"),
        **dict.fromkeys(("vpc", "vpc fixed"), "vpc"),
        "vdi": "vdi",
        "raw": "raw",
    }


PLACES = (
    st.integers(0, 128)  # where the fields of most headers are
    | st.integers(0, 512)
    | st.integers(0, 2 * KIB)
    | st.integers(-2 * KIB, -1)
    | st.integers(0, HEADER)
)
VALUES = (
    st.binary(min_size=1, max_size=8)
    | st.sampled_from([bytes(8), b"\xff" * 8, bytes(4), b"\0\0\0\1", b"\1\0\0\0", b"\4", b"\2"])
    | st.sampled_from([PARENT, b"parentFileNameHint=", DESCRIPTOR % (b"ffffffff", b"")])
    | st.sampled_from([b"version=1\n", b"QFI\xfb", b"KDMV", b"conectix", b"\x7f\x10\xda\xbe"])
    | st.sampled_from([b"DATA\0\0\0\x0d/etc/hostname\0\0\0", b"\xe2\x79\x2a\xca\0\0\0\3raw"])
)


@settings(
    max_examples=examples(100),
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(
    name=st.sampled_from(NAMES),
    changes=st.lists(st.tuples(PLACES, VALUES), max_size=4),
    other=st.none() | st.tuples(st.sampled_from(NAMES), st.sampled_from([0, 64, 512]), PLACES),
)
@example(name="vmdk", changes=[(28, bytes(8)), (SECTOR, PARENT)], other=None)
@example(name="vmdk", changes=[(28, b"\x10"), (SECTOR, PARENT)], other=None)
@example(name="vmdk stream", changes=[(28, bytes(8)), (SECTOR, PARENT)], other=None)
@example(name="vmdk", changes=[(12, bytes(8))], other=None)
@example(name="raw", changes=[(0, b"# a comment\n \n\r\nversion=2\r\n\0\1")], other=None)
@example(name="raw", changes=[(0, b"#\0\nversion=1\n\0")], other=None)
@example(name="qcow2", changes=[(24, (SIZE + 1).to_bytes(8, "big"))], other=None)
@example(name="vdi", changes=[(368, (SIZE - 1).to_bytes(8, "little"))], other=None)
@example(name="qcow2", changes=[(64, b"\x7f\x10\xda\xbe")], other=None)
@example(name="vpc", changes=[(64, b"\x7f\x10\xda\xbe")], other=None)
@example(name="raw", changes=[(64, b"\x7f\x10\xda\xbe")], other=("vdi", 0, 2048))
@example(name="vpc fixed", changes=[(-512 + 48, (SIZE - 1).to_bytes(8, "big"))], other=None)
@example(name="raw", changes=[], other=("luks", 0, 0))
def test_what_is_accepted_is_what_qemu_reads(
    images: dict[str, bytes],
    tmp_path: Path,
    name: str,
    changes: list[tuple[int, bytes]],
    other: tuple[str, int, int] | None,
) -> None:
    content = bytearray(images[name])
    if other is not None:  # a piece of another format's header
        kind, start, at = other
        changes = [(at, images[kind][start : start + SECTOR]), *changes]
    for at, value in changes:
        at = at if at >= 0 else max(0, len(content) + at)
        content[at : at + len(value)] = value
    file = tmp_path / "image"
    file.write_bytes(sealed(bytes(content)))
    check(file)
