"""The readers of an image's files and headers on this host: whatever the input holds, each reader
soon gives an answer or its documented error."""

from __future__ import annotations

import struct
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from soak import examples

from pipeline.disk import (
    boot_entries,
    decompress,
    foreign_kernel,
    formats,
    fstab,
    initramfs,
    kernel,
    os_release,
    partitions,
    superblock,
    system,
)
from pipeline.disk.untrusted import lines_of, to_number, to_printable, version_order
from pipeline.errors import ImageFormatError, KernelError
from pipeline.guest import kernel_options
from pipeline.model import KIB, MIB

FSTAB = (
    "# a comment\n/dev/sda1 / ext3,ext4 defaults,errors=remount-ro 0 1\n"
    'UUID="6e2a-5ac1"\t//boot/\text4\tnofail\t0 2 # what boots\n'
    "LABEL=a\\040b /srv/a\\040b xfs\ntmpfs /tmp tmpfs size=1g\n/swapfile none swap sw 0 0\n"
)
OS_RELEASE = (
    'PRETTY_NAME="Rocky Linux 9.3 (Blue Onyx)"\nNAME=\'Rocky Linux\'\nVERSION_ID="9.3"\n'
    'ID="rocky"\nID_LIKE="rhel centos fedora"\nANSI_COLOR="0;32"\n# a comment\n'
)
GRUB = (
    "set default_kernelopts=\"ro quiet\"\nset timeout=1\nblscfg\nmenuentry 'Linux' {\n"
    "\tlinux\t(hd0,msdos1)//boot/vmlinuz-5.10 root=UUID=1-2 ${default_kernelopts} $x\n"
    "\tinitrd\t$prefix/boot/microcode /boot/initrd.img-5.10\n}\n"
    "title Linux\nkernel --type=linux --no-mem-option /vmlinuz root=/dev/sda1\ninitrd /initrd.img\n"
)
ENTRY = (
    "title Fedora\nversion 6.1\nlinux /vmlinuz-6.1\ninitrd /initramfs-6.1.img $tuned_initrd\n"
    "options $kernelopts\noptions quiet\n"
)
DEPENDENCIES = "kernel/fs/ext4/ext4.ko.xz: kernel/fs/mbcache.ko kernel/fs/jbd2/jbd2.ko\n"

AWKWARD = "\n\r\t \\\"'#=$(){}/-.,:;²٣0sk\0\x0b\x85\u2028\ufffd\udcff"


@dataclass(frozen=True)
class MemoryTree:
    """An image's files, by their paths."""

    files: Mapping[str, str]

    def names(self, folder: PurePosixPath) -> list[str]:
        paths = map(PurePosixPath, self.files)
        return [path.name for path in paths if path.parent == folder]

    def exists(self, path: PurePosixPath) -> bool:
        return str(path) in self.files

    def read(self, path: PurePosixPath) -> str:
        return self.files.get(str(path), "")

    def read_link(self, path: PurePosixPath) -> PurePosixPath | None:
        return None

    def copy_out(self, path: PurePosixPath, copy: Path) -> bool:
        return False


def read_entry(text: str) -> object:
    """Reads all files that decide which kernel boots."""
    files = {
        "/boot/grub/grub.cfg": text,
        "/boot/grub2/grubenv": text,
        "/boot/loader/entries/1.conf": text,
    }
    path, entry = boot_entries.find_entry(MemoryTree(files))
    assert str(path) in files
    return [*filter(None, [entry])]


def find_foreign_faults(text: str) -> object:
    unit = "/usr/lib/systemd/system/systemd-modules-load.service"
    files = {"/etc/fstab": text, "/etc/modules-load.d/a.conf": text, unit: ""}
    return foreign_kernel.find_faults(MemoryTree(files))


def rewrite(text: str) -> object:
    """The rewritten fstab has one root, which is the new one."""
    written = fstab.rewrite(text, uuid="6e2a", type="ext4", keep_efi=True)
    lines = filter(None, map(fstab.parse_line, lines_of(written)))  # `parse` reads some lines only
    roots = [line for line in lines if line.mount == "/"]
    assert [(root.source, root.type) for root in roots] == [("UUID=6e2a", "ext4")]
    return [written]


TEXT_READERS: Mapping[str, tuple[Callable[[str], object], type]] = {
    "fstab": (lambda text: list(fstab.parse(text)), fstab.Line),
    "fstab, rewritten": (rewrite, str),
    "os-release": (
        lambda text: [*filter(None, [os_release.parse_os_release(text)])],
        os_release.Release,
    ),
    "boot entry": (read_entry, boot_entries.Entry),
    "fields": (lambda text: list(boot_entries.parse_entry(text).values()), str),
    "modules": (lambda text: list(kernel.dependencies_of(text)), str),
    "foreign kernel": (find_foreign_faults, kernel.Fault),
    "GRUB's options": (
        lambda text: [kernel_options.follow_lines(text, kernel_options.GRUB_LINE, "u")],
        str,
    ),
    "GRUB 1's options": (
        lambda text: [kernel_options.follow_lines(text, kernel_options.LEGACY_LINE, "u")],
        str,
    ),
    "extlinux's options": (
        lambda text: [kernel_options.follow_lines(text, kernel_options.EXTLINUX_LINE, "u")],
        str,
    ),
    "printable": (lambda text: [to_printable(text)], str),
}


@st.composite
def mutated(draw: st.DrawFn, examples: tuple[str, ...]) -> str:
    """An example with changes in some places."""
    text = draw(st.sampled_from(examples))
    pieces = st.text(AWKWARD, max_size=4) | st.text(max_size=4)
    for _ in range(draw(st.integers(0, 6))):
        at = draw(st.integers(0, len(text)))
        text = text[:at] + draw(pieces) + text[at + draw(st.integers(0, 8)) :]
    return text


texts = (
    st.text(max_size=200)
    | st.text(AWKWARD, max_size=60)
    | mutated((FSTAB, OS_RELEASE, GRUB, ENTRY, DEPENDENCIES))
)


@pytest.mark.parametrize("reader", TEXT_READERS)
@settings(max_examples=examples(60), deadline=None)
@given(text=texts)
@example(text=FSTAB)
@example(text=OS_RELEASE)
@example(text=GRUB)
@example(text="linux\noptions x\n")
@example(text="blscfg\nlinux //vmlinuz\n")
@example(text=ENTRY)
def test_random_text_gives_no_crash(reader: str, text: str) -> None:
    read, kind = TEXT_READERS[reader]
    values = read(text)
    assert isinstance(values, list) and all(isinstance(value, kind) for value in values)


def test_results_for_the_examples() -> None:
    """The readers understand the examples, so the test above changes meaningful texts."""
    lines = [(line.source, line.mount, line.type, line.optional) for line in fstab.parse(FSTAB)]
    assert lines == [
        ("/dev/sda1", "/", "ext3,ext4", False),
        ("UUID=6e2a-5ac1", "/boot", "ext4", True),
        ("LABEL=a b", "/srv/a b", "xfs", False),
        ("tmpfs", "/tmp", "tmpfs", False),
        ("/swapfile", "none", "swap", False),
    ]
    release = os_release.parse_os_release(OS_RELEASE)
    assert release == os_release.Release(
        id="rocky",
        like=("rhel", "centos", "fedora"),
        version="9.3",
        product="Rocky Linux 9.3 (Blue Onyx)",
    )
    assert release.family == "redhat"
    assert boot_entries.parse_configuration(GRUB) == boot_entries.Entry(
        kernel=PurePosixPath("/boot/vmlinuz-5.10"),
        initramfs=(PurePosixPath("/boot/microcode"), PurePosixPath("/boot/initrd.img-5.10")),
        command_line=("root=UUID=1-2", "${default_kernelopts}", "$x"),
    )
    _, entry = boot_entries.find_entry(MemoryTree({"/boot/grub/grub.cfg": GRUB}))
    assert entry is not None and entry.command_line == ("root=UUID=1-2", "ro", "quiet")
    legacy = boot_entries.parse_configuration(GRUB[GRUB.index("title") :])
    assert legacy == boot_entries.Entry(
        kernel=PurePosixPath("/vmlinuz"),
        initramfs=(PurePosixPath("/initrd.img"),),
        command_line=("root=/dev/sda1",),
    )
    files = {"/boot/loader/entries/a.conf": ENTRY, "/boot/grub2/grubenv": "kernelopts=ro a=b\n###"}
    assert boot_entries.find_entry(MemoryTree(files)) == (
        PurePosixPath("/boot/loader/entries/a.conf"),
        boot_entries.Entry(
            kernel=PurePosixPath("/vmlinuz-6.1"),
            initramfs=(PurePosixPath("/initramfs-6.1.img"),),
            command_line=("ro", "a=b", "quiet"),
        ),
    )


# ---- time

PLAIN = "a word and another=one\n"


def measure(read: Callable[[str], object], text: str) -> float:
    """Seconds of processor time."""
    started = time.process_time()
    read(text)
    return time.process_time() - started


@pytest.fixture(scope="module")
def plain_seconds() -> float:
    """What the slowest reader takes for a megabyte of plain text."""
    text = PLAIN * (MIB // len(PLAIN))
    return max(measure(read, text) for read, _ in TEXT_READERS.values())


@pytest.mark.parametrize("reader", TEXT_READERS)
def test_a_megabyte_of_anything_is_read_soon(reader: str, plain_seconds: float) -> None:
    """A smaller text comes first: it is enough to show time that grows with the square."""
    for size in (64 * KIB, MIB):
        for piece in (*AWKWARD, "linux ", "options x\n", "set x=$x\n"):
            seconds = measure(TEXT_READERS[reader][0], piece * (size // len(piece)))
            assert seconds < 20 * plain_seconds, repr(piece)


def test_variables_that_multiply() -> None:
    """Whatever its variables hold, a command line is at most as long as Linux takes."""
    text = f"set a={'x' * MIB}\nmenuentry x {{\nlinux /vmlinuz {'$a' * MIB}\n}}\n"
    _, entry = boot_entries.find_entry(MemoryTree({"/boot/grub/grub.cfg": text}))
    assert entry is not None and sum(map(len, entry.command_line)) <= 4 * KIB


# ---- numbers and versions


@given(text=st.text(max_size=30) | st.text("0123456789+-_ ²٣", max_size=30))
@example(text="5" * 5000)
@example(text="²")
@example(text="")
def test_to_number_takes_only_short_decimal_numbers(text: str) -> None:
    number = to_number(text)
    assert (number is not None) == (0 < len(text) <= 18 and set(text) <= set("0123456789"))
    assert number is None or number == int(text)


@given(names=st.lists(st.text(max_size=20) | st.text("0123456789.-²٣", max_size=9), max_size=6))
@example(names=["vmlinuz-5²", "vmlinuz-5", "vmlinuz-", "", f"vmlinuz-{'9' * 5000}"])
def test_random_names_are_ordered(names: list[str]) -> None:
    ordered = sorted(names, key=version_order)
    backwards = [*reversed(ordered)]
    assert sorted(backwards, key=version_order) == ordered


def test_the_order_of_versions() -> None:
    ordered = ["5.9", "5.10-rc1", "5.10.0", "5.10.0-9-amd64", "5.10.0-10-amd64", "5.0100", "6.1"]
    backwards = [*reversed(ordered)]
    assert sorted(backwards, key=version_order) == ordered
    assert boot_entries.order_entries(["a-5.9.conf", "a-5.10.conf", "a-0-rescue.conf", "a"]) == [
        "a-5.10.conf",
        "a-5.9.conf",
    ]


# ---- headers


@pytest.fixture(scope="module")
def heads(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """The first bytes of real disk images, file systems and archives."""
    folder = tmp_path_factory.mktemp("heads")
    made = {"ext4": ["mke2fs", "-q", "-F", "-t", "ext4"], "ext2": ["mke2fs", "-q", "-F"]}
    for name, words in made.items():
        subprocess.run([*words, folder / name, "8M"], check=True)
    for name in ("qcow2", "vmdk", "vpc", "vdi"):
        words = ["qemu-img", "create", "-q", "-f", name, str(folder / name), "8M"]
        subprocess.run(words, check=True)
    initramfs.write(folder / "cpio", [initramfs.Entry("lib/modules/6.1/a.ko", b"module")])
    return {path.name: path.read_bytes()[: 128 * KIB] for path in folder.iterdir()}


def read_image(file: Path) -> Iterator[object]:
    """Calls every reader of a file's first bytes."""
    head = file.read_bytes()[: partitions.HEAD]
    yield superblock.read_superblock(head)
    yield superblock.superblock_at(file, 0)
    superblock.is_ext_at(file, 0)
    yield partitions.recognise(head)
    partitions.file_system_bytes(head)
    decompress.detect(head)
    formats.is_web_page(head)
    for name in formats.FORMATS:
        formats.peek_size(name, head)
    with suppress(ImageFormatError):
        yield formats.read_format(file, "IMAGE")
    with suppress(ImageFormatError):
        yield partitions.read_geometry(file)
    with suppress(KernelError):
        assert all(isinstance(name, str) for name in initramfs.list_files(file, file.parent))


KINDS = (
    superblock.Superblock,
    partitions.Found,
    formats.DiskFormat,
    system.Geometry,
    type(None),
)


@settings(
    max_examples=examples(150),
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(
    name=st.sampled_from(["ext4", "ext2", "qcow2", "vmdk", "vpc", "vdi", "cpio", ""]),
    changes=st.lists(
        st.tuples(
            st.integers(0, 512) | st.integers(1024, 1424) | st.integers(0, 128 * KIB),
            st.binary(min_size=1, max_size=8)
            | st.sampled_from([b"\xff" * 8, bytes(8), b"-0000001"]),
        ),
        max_size=8,
    ),
    size=st.integers(0, 4 * KIB) | st.just(128 * KIB),
)
@example(name="cpio", changes=[(94, b"-0000001")], size=128 * KIB)
@example(name="ext4", changes=[(1024 + 24, b"\xff\xff\xff\xff")], size=128 * KIB)
def test_mutated_headers_give_no_crash(
    heads: dict[str, bytes],
    tmp_path: Path,
    name: str,
    changes: list[tuple[int, bytes]],
    size: int,
) -> None:
    head = bytearray(heads.get(name, b""))
    for at, change in changes:
        head[at : at + len(change)] = change
    file = tmp_path / "file"
    file.write_bytes(head[:size])
    assert all(isinstance(value, KINDS) for value in read_image(file))


def test_a_superblock_that_is_damaged(heads: dict[str, bytes]) -> None:
    """Type and UUID are still read; the size, which cannot be right, is not."""
    head = bytearray(heads["ext4"])
    sound = superblock.read_superblock(bytes(head))
    assert sound is not None and (sound.type, sound.bytes, sound.clean) == ("ext4", 8 * MIB, True)
    struct.pack_into("<I", head, 1024 + 24, 0xFFFFFFFF)
    damaged = superblock.read_superblock(bytes(head))
    assert damaged is not None and (damaged.uuid, damaged.bytes) == (sound.uuid, 0)
    assert partitions.recognise(bytes(head)) == partitions.Found("ext4", sound.uuid, "")
    assert partitions.file_system_bytes(bytes(head)) is None


def test_numbers_of_an_archive_are_hexadecimal_digits(tmp_path: Path) -> None:
    """`int` takes signs, too: a name of -1 bytes would be read to the end of the file."""
    file = tmp_path / "cpio"
    initramfs.write(file, [initramfs.Entry("a", b"")])
    content = bytearray(file.read_bytes())
    content[94:102] = b"-0000001"
    file.write_bytes(content)
    with pytest.raises(KernelError) as caught:
        initramfs.list_files(file, tmp_path)
    assert str(caught.value) == (
        "the initramfs cannot be read: an archive in it is cut off or damaged\n"
        "  do: have the image's own tool make it anew (update-initramfs, dracut)"
    )
