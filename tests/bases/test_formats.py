from __future__ import annotations

import bz2
import gzip
import hashlib
import lzma
import os
import random
import shutil
import struct
import subprocess
import time
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
from http_files import HttpFile, serving

from pipeline.build.builder import Builder
from pipeline.disk import formats
from pipeline.errors import DiskTooSmallError, ImageFormatError, PhantomError, StageFailedError
from pipeline.model import GIB, MIB, NoProgress, Sha256, format_size
from pipeline.sources import base_disk
from pipeline.sources.base_disk import BASE, BaseDisk, look, stamp_of
from pipeline.sources.download import FILE, Download
from pipeline.stages.base import Context, LocalFile
from pipeline.store import Store

SIZE = 64 * MIB
_CONVERT = "convert it with a program that its publisher trusts, to raw or to a qcow2 of its own"
_AGAIN = "fetch it again: a part of it is missing, or was changed"


@pytest.fixture(scope="module")
def disk(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A disk with data here and there, and in its last sectors."""
    path, some = tmp_path_factory.mktemp("disk") / "disk.raw", random.Random(1)
    with path.open("wb") as file:
        file.truncate(SIZE)
        for _ in range(12):
            os.pwrite(file.fileno(), some.randbytes(100_000), some.randrange(0, SIZE - 200_000))
        os.pwrite(file.fileno(), some.randbytes(70_000), SIZE - 70_000)
    return path


def convert(disk: Path, target: Path, format: str, *options: str) -> Path:
    words = ["qemu-img", "convert", "-f", "raw", "-O", format, *options, str(disk), str(target)]
    subprocess.run(words, check=True)
    return target


def create(target: Path, format: str, *options: str, size: str | None = "64M") -> Path:
    words = ["qemu-img", "create", "-q", "-f", format, *options, str(target)]
    subprocess.run([*words, *([size] if size else [])], check=True)
    return target


def unpack(file: Path, folder: Path, *, most: int = SIZE, **fields: str) -> tuple[Path, object]:
    """The disk that the stage makes of a file, and its facts; the file must not change."""
    shutil.rmtree(folder, ignore_errors=True)
    for name in ("out", "work"):
        (folder / name).mkdir(parents=True)
    context = Context(
        out=folder / "out",
        work=folder / "work",
        log=folder / "log",
        store=Store(folder),
        progress=NoProgress(),
    )
    local = LocalFile(digest=Sha256(""), path=file)
    before = stamp_of(file)
    stage = BaseDisk(
        file=local,
        most_bytes=most,
        location="IMAGE",
        stamp=before,
        **fields,  # type: ignore[arg-type]
    )
    try:
        facts = stage.run([], context)
    finally:
        assert stamp_of(file) == before
    return folder / "out" / BASE, facts


def refused(file: Path, folder: Path, *, most: int = SIZE, **fields: str) -> str:
    with pytest.raises(PhantomError) as caught:
        unpack(file, folder, most=most, **fields)
    assert isinstance(caught.value, ImageFormatError | DiskTooSmallError)
    assert not (folder / "out" / BASE).exists()
    return str(caught.value).removeprefix("IMAGE: ")


def said(what: str, todo: str) -> str:
    return f"{what}\n  do: {todo}"


def same(first: Path, second: Path, size: int = SIZE) -> bool:
    return subprocess.run(["cmp", "-n", str(size), first, second], check=False).returncode == 0


CONTAINERS = [
    ("qcow2", ["qcow2"]),
    ("qcow2 compressed", ["qcow2", "-c"]),
    ("qcow2 zstd", ["qcow2", "-c", "-o", "compression_type=zstd"]),
    ("qcow2 0.10", ["qcow2", "-o", "compat=0.10"]),
    ("qcow2 extended", ["qcow2", "-o", "extended_l2=on"]),
    ("vmdk", ["vmdk"]),
    ("vmdk stream", ["vmdk", "-o", "subformat=streamOptimized"]),
    ("vpc", ["vpc", "-o", "force_size=on"]),
    ("vpc fixed", ["vpc", "-o", "subformat=fixed,force_size=on"]),
    ("vdi", ["vdi"]),
    ("vdi static", ["vdi", "-o", "static=on"]),
]


@pytest.mark.parametrize(
    "words", [words for _, words in CONTAINERS], ids=[n for n, _ in CONTAINERS]
)
def test_a_container_becomes_the_disk_that_is_in_it(
    disk: Path, tmp_path: Path, words: list[str]
) -> None:
    kind, *options = words
    image = convert(disk, tmp_path / "an image, a=b.img", kind, *options)
    made, facts = unpack(image, tmp_path / "made")
    assert facts == {"format": kind, "compression": None, "bytes": SIZE}
    assert made.stat().st_size == SIZE and same(made, disk)
    assert made.stat().st_blocks * 512 < 4 * MIB
    assert unpack(image, tmp_path / "made", format=kind)[1] == facts

    # A file that is cut is refused, unless the cut lost nothing of the disk.
    content = image.read_bytes()
    cut = tmp_path / "cut"
    for size in (len(content) - 600, len(content) - 70_000, len(content) // 2, 100_000, 3000, 50):
        cut.write_bytes(content[:size])
        try:
            made, _ = unpack(cut, tmp_path / "made", format=kind)
        except ImageFormatError:
            continue
        assert same(made, disk), size


PACKERS: dict[str, Callable[[Path, Path], object]] = {
    "gzip": lambda disk, to: to.write_bytes(gzip.compress(disk.read_bytes(), 1)),
    "xz": lambda disk, to: to.write_bytes(lzma.compress(disk.read_bytes(), preset=0)),
    "bzip2": lambda disk, to: to.write_bytes(bz2.compress(disk.read_bytes(), 1)),
    "zstd": lambda disk, to: subprocess.run(["zstd", "-q", str(disk), "-o", str(to)], check=True),
    "zip": lambda disk, to: _zip(to, disk),
}


def _zip(to: Path, *files: Path) -> None:
    with zipfile.ZipFile(to, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
        archive.mkdir("folder")
        for file in files:
            archive.write(file, f"folder/../../{file.name}")


@pytest.mark.parametrize("packer", PACKERS)
def test_every_compression_is_unpacked(disk: Path, tmp_path: Path, packer: str) -> None:
    packed = tmp_path / "packed"
    PACKERS[packer](disk, packed)
    made, facts = unpack(packed, tmp_path / "made")
    assert facts == {"format": "raw", "compression": packer, "bytes": SIZE}
    assert same(made, disk) and made.stat().st_size == SIZE
    assert made.stat().st_blocks * 512 < 4 * MIB
    assert look(packed, "IMAGE").compression == packer

    # too large for the disk, by a little and by far
    todo = f"set disk_size to {SIZE // MIB} MiB or more"
    for most in (SIZE - MIB, 8 * MIB):
        found = refused(packed, tmp_path / "made", most=most)
        size = format_size(most)
        what = f"the disk in the base image has 64 MiB, and disk_size is {size}"
        assert found == said(what, todo)

    # cut, and damaged
    content = packed.read_bytes()
    damaged = bytearray(content)
    damaged[len(content) // 2] ^= 0xFF
    for number, bad in enumerate((content[:-100], content[: len(content) // 2], bytes(damaged))):
        packed.write_bytes(bad)
        found = refused(packed, tmp_path / "made")
        assert found.startswith(f"cannot be unpacked by {packer}: "), (number, found)
        assert found.endswith("\n  do: fetch it again: it is damaged or cut")


def test_containers_that_are_packed(disk: Path, tmp_path: Path) -> None:
    image = convert(disk, tmp_path / "disk.qcow2", "qcow2")
    _zip(tmp_path / "one.zip", image)
    made, facts = unpack(tmp_path / "one.zip", tmp_path / "made")
    assert facts == {"format": "qcow2", "compression": "zip", "bytes": SIZE} and same(made, disk)
    found = refused(tmp_path / "one.zip", tmp_path / "made", most=48 * MIB)
    assert found.startswith("the disk in the base image has 64 MiB, and disk_size is 48 MiB")
    _zip(tmp_path / "two.zip", image, disk)
    assert refused(tmp_path / "two.zip", tmp_path / "made") == said(
        "is a zip archive of 2 files, not one",
        "unpack it, and name the disk image that is in it",
    )
    twice = tmp_path / "twice.gz"
    twice.write_bytes(gzip.compress(gzip.compress(image.read_bytes(), 1), 1))
    assert refused(twice, tmp_path / "made") == said(
        "is packed twice: what was unpacked is gzip", "unpack it once, and name what comes out"
    )
    # several members in a row, as pigz and dd make them, and zeros after them
    content = disk.read_bytes()
    parts = [gzip.compress(content[: SIZE // 2], 1), gzip.compress(content[SIZE // 2 :], 1)]
    twice.write_bytes(b"".join(parts) + bytes(1000))
    assert same(unpack(twice, tmp_path / "made")[0], disk)


def test_a_bomb_is_stopped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(base_disk, "_COUNTED", GIB)
    bomb = tmp_path / "bomb"
    bomb.write_bytes(65 * gzip.compress(bytes(16 * MIB), 1))
    unknown = said(
        "the disk in the base image is larger than disk_size (64 MiB), and was not unpacked to "
        "its end",
        "set disk_size to what its publisher says that it needs",
    )
    assert refused(bomb, tmp_path / "made") == unknown
    assert sum(each.stat().st_blocks for each in tmp_path.rglob("unpacked")) < 1000
    words = f"head -c {65 * 16 * MIB} /dev/zero | zstd -q -o {tmp_path}/bomb.zst"
    subprocess.run(["sh", "-c", words], check=True)
    assert refused(tmp_path / "bomb.zst", tmp_path / "made") == unknown


@pytest.mark.parametrize("packer", [gzip.compress, bz2.compress, lzma.compress])
def test_members_in_which_nothing_is(tmp_path: Path, packer: Callable[[bytes], bytes]) -> None:
    """A few empty members are accepted, but not so many that unpacking makes no progress."""
    packed, content, empty = tmp_path / "packed", random.Random(2).randbytes(MIB), packer(b"")
    packed.write_bytes(packer(content) + 1000 * empty + packer(content))
    assert unpack(packed, tmp_path / "made")[0].read_bytes() == 2 * content
    packed.write_bytes(packer(content) + 300_000 * empty)
    began = time.process_time()
    assert "it has many parts in which nothing is" in refused(packed, tmp_path / "made")
    packed.write_bytes(300_000 * empty)
    assert "it has many parts in which nothing is" in refused(packed, tmp_path / "made")
    assert time.process_time() - began < 20


def test_tables_that_would_be_read_without_end(tmp_path: Path) -> None:
    image, made = tmp_path / "image", tmp_path / "made"
    damaged = said("is damaged: it has one table in several places", _AGAIN)
    content = bytearray(create(image, "qcow2", size="8G").read_bytes())
    (l1,) = struct.unpack_from(">Q", content, 40)
    table = len(content) // 65_536 + 1
    content += bytes(table * 65_536 - len(content)) + bytes(65_536)
    struct.pack_into(">2Q", content, l1, table * 65_536, table * 65_536)
    image.write_bytes(content)
    assert refused(image, made, most=8 * GIB) == damaged
    struct.pack_into(">2Q", content, l1, table * 65_536, 0)
    image.write_bytes(content)
    formats.read_format(image, "IMAGE")
    struct.pack_into(">I", content, 36, 5_000_000)  # an L1 table of 40 MB
    image.write_bytes(content)
    assert refused(image, made, most=8 * GIB) == said("has an invalid qcow2 header", _AGAIN)

    content = bytearray(create(image, "vmdk").read_bytes())
    (directory,) = struct.unpack_from("<Q", content, 56)
    (table,) = struct.unpack_from("<I", content, directory * 512)
    struct.pack_into("<I", content, directory * 512 + 4, table)
    image.write_bytes(content)
    assert refused(image, made) == damaged

    content = bytearray(create(image, "vdi").read_bytes())
    struct.pack_into("<II", content, 376, 512, 0)
    struct.pack_into("<I", content, 384, SIZE // 512)
    image.write_bytes(content)
    assert refused(image, made) == said("has an invalid VDI header", _AGAIN)


def test_reading_tables_is_stopped_at_once(disk: Path, tmp_path: Path) -> None:
    class Stopped(Exception): ...

    def stop(*_: object) -> None:
        raise Stopped

    for kind in ("qcow2", "vmdk", "vpc", "vdi"):
        image = convert(disk, tmp_path / kind, kind)
        for words in ({"check": stop}, {"check_size": stop}):
            with pytest.raises(Stopped):
                formats.read_format(image, "IMAGE", **words)  # type: ignore[arg-type]


# ---- references to other files


def test_images_that_name_other_files_are_refused(disk: Path, tmp_path: Path) -> None:
    def names(what: str) -> str:
        return said(f"names {what}: only an image that is whole in one file is taken", _CONVERT)

    image, made = tmp_path / "image", tmp_path / "made"
    backing = ("-u", "-F", "raw", "-b", "/etc/passwd")
    create(image, "qcow2", *backing)
    assert refused(image, made) == names("a backing file")
    create(image, "qcow2", "-o", "compat=0.10", *backing)
    assert refused(image, made) == names("a backing file")
    data = tmp_path / "data"
    create(image, "qcow2", "-o", f"data_file={data},data_file_raw=on")
    assert refused(image, made) == names("an external data file")
    create(image, "vmdk", *("-o", "subformat=monolithicFlat"))
    assert refused(image, made) == said(
        "is the descriptor of a VMDK disk, whose data lies in other files",
        "convert the disk to one file (monolithicSparse or streamOptimized)",
    )
    parent = create(tmp_path / "parent.vmdk", "vmdk")
    create(image, "vmdk", "-F", "vmdk", "-b", str(parent))
    assert refused(image, made) == names("a parent")

    # made by hand: none of our programs would write them
    good = bytearray(create(image, "qcow2").read_bytes())
    name = b"\x44\x41\x54\x41" + struct.pack(">I", 11) + b"/etc/shadow".ljust(16, b"\0")
    image.write_bytes(good[:104] + name + good[128:])
    (length,) = struct.unpack_from(">I", good, 100)
    image.write_bytes(good[:length] + name + good[length + len(name) :])
    assert refused(image, made) == names("an external data file")
    good[79] |= 1 << 7
    image.write_bytes(good)
    assert refused(image, made) == said("has unknown qcow2 features", _CONVERT)

    sparse = bytearray(convert(disk, image, "vmdk").read_bytes())
    text = b'# Disk DescriptorFile\nversion=1\nCID=1\nparentCID=ffffffff\ncreateType="%s"\n%s\n'
    for kind, extents in (
        (b"monolithicFlat", b'RW 131072 FLAT "/etc/shadow" 0'),
        (b"monolithicSparse", b'RW 131072 FLAT "/etc/shadow" 0'),
        (b"monolithicSparse", b'RW 9 SPARSE "a"\nRW 9 SPARSE "/etc/shadow"'),
        (b"twoGbMaxExtentSparse", b'RW 131072 SPARSE "a"'),
    ):
        sparse[512 : 512 + 20 * 512] = (text % (kind, extents)).ljust(20 * 512, b"\0")
        image.write_bytes(sparse)
        assert refused(image, made) == names("other files as its extents")
    sparse[512 : 512 + 20 * 512] = (
        text % (b"monolithicSparse", b'parentFileNameHint="/etc/shadow"')
    ).ljust(20 * 512, b"\0")
    image.write_bytes(sparse)
    assert refused(image, made) == names("a parent")
    sparse[12:20] = bytes(8)  # no capacity: QEMU would follow the descriptor
    image.write_bytes(sparse)
    assert refused(image, made) == names("other files by its descriptor")

    vhd = bytearray(create(image, "vpc").read_bytes())
    vhd[63] = 4
    image.write_bytes(vhd)
    assert refused(image, made) == names("a parent, as a differencing disk,")
    vdi = bytearray(create(image, "vdi").read_bytes())
    for place in (76, 430, 450):
        bad = bytearray(vdi)
        bad[place] = 4
        image.write_bytes(bad)
        assert refused(image, made) == names("a parent, as a differencing disk,")


def test_the_format_is_never_guessed_otherwise(disk: Path, tmp_path: Path) -> None:
    image, made = tmp_path / "image", tmp_path / "made"
    convert(disk, image, "qcow2")
    assert refused(image, made, format="raw") == said(
        "is declared as raw, and is qcow2",
        "write `format: qcow2` if that is what you trust it to be",
    )
    packed = tmp_path / "packed.gz"
    packed.write_bytes(gzip.compress(image.read_bytes(), 1))
    for wrong, called in (("raw", "raw"), ("vmdk", "vmdk"), ("vpc", "vhd")):
        found = refused(packed, made, format=wrong)
        assert found.startswith(f"is declared as {called}, and is qcow2")
    assert refused(disk, made, format="vdi").startswith("is declared as vdi, and is raw")


def test_files_that_are_not_disk_images_are_refused(tmp_path: Path) -> None:
    made, file = tmp_path / "made", tmp_path / "file"
    unpacked = "unpack it, and name the disk that is in it"
    for content, expected in (
        (b"", said("the file is empty", "fetch it again")),
        (
            b"\n <!DOCTYPE html><html>",
            said(
                "is a web page and not a disk image",
                "name the location of the image itself, not of the page that links to it",
            ),
        ),
        (
            "Größe: 10\n".encode() * 9000,
            said(
                "is a text and not a disk image",
                "name a disk image: raw, qcow2, vmdk, vhd, vdi, alone or packed",
            ),
        ),
        (
            bytes(257) + b"ustar" + bytes(99_999),
            said("is a tar archive, as an OVA is", unpacked),
        ),
        (b"vhdxfile" + bytes(99_992), said("is a VHDX disk", _CONVERT)),
        (bytes(512), said("is too small for a disk: 512 B", _AGAIN)),
        (
            bytes(99_999),
            said("is truncated: 99,999 bytes are not a whole number of sectors", _AGAIN),
        ),
    ):
        file.write_bytes(content)
        assert refused(file, made) == expected
        if content:
            packed = tmp_path / "packed.gz"
            packed.write_bytes(gzip.compress(content))
            assert refused(packed, made) == expected


def test_sizes_that_nobody_can_mean(tmp_path: Path) -> None:
    made = tmp_path / "made"
    for kind in ("qcow2", "vmdk", "vdi"):
        image = bytearray(create(tmp_path / "image", kind).read_bytes())
        place, form = {"qcow2": (24, ">Q"), "vmdk": (12, "<Q"), "vdi": (368, "<Q")}[kind]
        struct.pack_into(form, image, place, 1 << 55)
        if kind == "vdi":
            struct.pack_into("<I", image, 376, 1 << 27)
        (tmp_path / "image").write_bytes(image)
        found = refused(tmp_path / "image", made)
        assert "claims to be a disk of" in found or "has an invalid" in found
    create(tmp_path / "image", "qcow2", size="10T")
    assert refused(tmp_path / "image", made) == said(
        "the disk in the base image has 10 TiB, and disk_size is 64 MiB",
        "set disk_size to 10485760 MiB or more",
    )


def test_a_file_that_changes_after_the_plan(disk: Path, tmp_path: Path) -> None:
    image = tmp_path / "disk.raw"
    subprocess.run(["cp", "--sparse=always", disk, image], check=True)
    context = Context(
        out=tmp_path / "out",
        work=tmp_path / "work",
        log=tmp_path / "log",
        store=Store(tmp_path),
        progress=NoProgress(),
    )
    context.out.mkdir()
    digest = Sha256(hashlib.sha256(image.read_bytes()).hexdigest())
    for stamp in (None, stamp_of(image)):
        local = LocalFile(digest=digest, path=image)
        stage = BaseDisk(file=local, most_bytes=SIZE, location=str(image), stamp=stamp)
        image.write_bytes(disk.read_bytes())
        os.utime(image, ns=(0, int((stamp or "0 0 0").split()[2])))
        stage.run([], context)
        assert same(context.out / BASE, disk)
        with image.open("r+b") as file:
            file.write(b"changed")
        with pytest.raises(StageFailedError) as caught:
            stage.run([], context)
        assert str(caught.value) == (
            f"{image} was changed after the plan was made\n  do: run the same command again"
        )
    image.unlink()
    with pytest.raises(StageFailedError) as caught:
        stage.run([], context)
    assert str(caught.value) == (
        f"{image}: the base image cannot be read: No such file or directory\n"
        "  do: run the same command again, when it is there"
    )


def test_a_container_whose_data_is_damaged(disk: Path, tmp_path: Path) -> None:
    image = convert(disk, tmp_path / "image", "qcow2", "-c", "-o", "compression_type=zstd")
    content = bytearray(image.read_bytes())
    middle = len(content) // 2
    content[middle : middle + 200_000] = bytes(200_000)
    image.write_bytes(content)
    found = refused(image, tmp_path / "made")
    assert found.startswith("cannot be read as qcow2: error while reading at byte ")
    assert found.endswith(f"\n  log: {tmp_path}/made/log")


def test_a_download_becomes_a_disk_and_is_not_copied(disk: Path, tmp_path: Path) -> None:
    store, content = Store(tmp_path / "store"), disk.read_bytes()
    packed = gzip.compress(content, 1)
    for each, compression in ((content, None), (packed, "gzip")):
        with serving(HttpFile(each)) as file:
            digest = Sha256(hashlib.sha256(each).hexdigest())
            fetched = Download(sha256=digest, url=file.url)
            stage = BaseDisk(inputs=(fetched,), most_bytes=SIZE, location=file.url)
            built = Builder(store, lambda _: NoProgress()).build([fetched, stage])
            download, base = (each.artifact for each in built)
            assert base.facts == {"format": "raw", "compression": compression, "bytes": SIZE}
            assert same(base.file(BASE), disk) and base.check()
            assert base.file(BASE).samefile(download.file(FILE)) == (compression is None)
            assert len(file.requests) == 1
