"""The operating-system element's root file system: its files, and where they lie."""

from __future__ import annotations

import filecmp
import os
import random
import re
import shutil
import socket
import stat
import struct
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

PROGRAM = Path(__file__).parents[2] / "elements/phantom-debian/bin/write-root-file-system"
UUID = "8c1f5b2e-6a0d-4d3c-9a53-0d6f3d1f7c11"
OTHER_UUID = "5e0c2a4d-2f63-49a5-8d6c-7f1f6e7a9b22"
EPOCH = 1_700_000_000
BLOCK = 4096
EBS_BLOCK = 512 * 1024
needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root gives files away")
TOOLS = {**os.environ, "PATH": f"{os.environ['PATH']}:/usr/sbin:/sbin"}


def write(tree: Path, name: str, uuid: str = UUID) -> Path:
    output = tree.parent / name
    subprocess.run(
        [PROGRAM, tree, output, uuid], check=True, env={**TOOLS, "SOURCE_DATE_EPOCH": str(EPOCH)}
    )
    return output


def debugfs(image: Path, command: str) -> str:
    words = ["debugfs", "-R", command, str(image)]
    told = subprocess.run(words, check=True, capture_output=True, text=True, env=TOOLS)
    return told.stdout


# ---- a tree


def write_file(path: Path, content: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)


def add_package(tree: Path, name: str, sizes: list[int]) -> None:
    """Installs a package with one file of each size, as dpkg would."""
    drawn = random.Random(name)
    paths = [f"usr/lib/{name}/{number}" for number in range(len(sizes))]
    for path, size in zip(paths, sizes, strict=True):
        write_file(tree / path, drawn.randbytes(size))
    write_file(tree / f"usr/share/doc/{name}/copyright", name.encode())
    listed = [f"usr/lib/{name}", *paths, f"usr/share/doc/{name}/copyright"]
    info = tree / "var/lib/dpkg/info"
    write_file(info / f"{name}:amd64.list", "".join(f"/{each}\n" for each in listed).encode())
    write_file(info / f"{name}:amd64.md5sums", drawn.randbytes(200))
    with (tree / "var/lib/dpkg/status").open("a") as status:
        status.write(f"Package: {name}\nVersion: 1\n\n")


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A kernel, sixty small packages, and files of an appliance that belong to no package."""
    tree = tmp_path_factory.mktemp("base") / "tree"
    (tree / "var/lib/dpkg/info").mkdir(parents=True)
    drawn = random.Random(0)
    add_package(tree, "linux-image", [drawn.randrange(2**20) for _ in range(160)])
    add_package(tree, "libc6", [drawn.randrange(100_000) for _ in range(120)])
    for number in range(60):
        sizes = [drawn.randrange(40_000) for _ in range(drawn.randrange(1, 9))]
        add_package(tree, f"package-{number:02}", sizes)
    write_file(tree / "boot/initrd.img", drawn.randbytes(2**21))
    write_file(tree / "opt/app/program", drawn.randbytes(200_000))
    return tree


@pytest.fixture
def tree(base: Path, tmp_path: Path) -> Path:
    copy = tmp_path / "tree"
    shutil.copytree(base, copy, symlinks=True)
    for path in [copy, *copy.rglob("*")]:
        os.utime(path, (EPOCH, EPOCH), follow_symlinks=False)
    return copy


# ---- files


def add_oddities(tree: Path) -> None:
    """Names and kinds of files that need care."""
    write_file(tree / "usr/bin/perl", b"perl" * 3000)
    (tree / "usr/bin/perl5").hardlink_to(tree / "usr/bin/perl")
    (tree / "opt/perl").hardlink_to(tree / "usr/bin/perl")
    (tree / "bin").symlink_to("usr/bin")
    (tree / "usr/bin/long").symlink_to("/" + "x" * 200)
    (tree / "usr/bin/perl").chmod(0o4755)
    write_file(tree / "opt/zeros", b"a" + bytes(10 * BLOCK) + b"b" + bytes(3 * BLOCK + 5))
    for start in range(0, 40 * BLOCK, 2 * BLOCK):  # too many holes for the inode to hold
        with (tree / "opt/holes").open("ab") as file:
            file.truncate(start)
            file.seek(0, os.SEEK_END)
            file.write(b"data")
    write_file(tree / "opt/empty", b"")
    for name in (b'two words "quoted"', b"\xff\xfe latin", b"!", "ä".encode()):
        Path(os.fsdecode(bytes(tree / "opt") + b"/" + name)).write_bytes(name)
    os.mkfifo(tree / "opt/fifo")
    (tree / "lost+found").mkdir()
    (tree / "opt/nothing").mkdir(mode=0o700)


def names(tree: Path) -> Iterator[tuple[str, tuple[int, int, int]]]:
    for folder, folders, files in os.walk(tree):
        for name in folders + files:
            path = os.path.join(folder, name)
            status = os.lstat(path)
            size = 0 if stat.S_ISDIR(status.st_mode) else status.st_size
            mode = status.st_mode & ~stat.S_ISUID  # which rdump does not set
            yield os.path.relpath(path, tree), (mode, size, int(status.st_mtime))


def test_the_file_system_holds_the_tree(tree: Path, tmp_path: Path) -> None:
    add_oddities(tree)
    for path in tree.rglob("*"):
        os.utime(path, (EPOCH, EPOCH - 5), follow_symlinks=False)
    before = dict(names(tree))
    image = write(tree, "root.ext4")
    assert dict(names(tree)) == before
    assert (tree / "opt/app/program").stat().st_nlink == 1
    subprocess.run(["e2fsck", "-f", "-n", image], check=True, env=TOOLS)
    back = tmp_path / "back"
    back.mkdir()
    debugfs(image, f"rdump / {back}")
    before.pop("opt/fifo")  # rdump leaves it out
    found = {path: (mode, size) for path, (mode, size, _) in names(back)}
    found.pop("lost+found"), before.pop("lost+found")  # mke2fs's own
    assert found == {path: (mode, size) for path, (mode, size, _) in before.items()}
    files = [path for path in before if (tree / path).is_file()]
    assert filecmp.cmpfiles(tree, back, files, shallow=False) == (files, [], [])
    assert os.readlink(back / "usr/bin/long") == "/" + "x" * 200
    assert " FIFO " in debugfs(image, "stat /opt/fifo").replace("Type: FIFO", " FIFO ")


def test_inodes_are_as_if_there_had_been_no_links(tree: Path) -> None:
    add_oddities(tree)
    image = write(tree, "root.ext4")
    perl, perl5 = (debugfs(image, f"stat {path}") for path in ("/usr/bin/perl", "/opt/perl"))
    assert perl == perl5
    assert re.search(r"Mode: +04755.*Links: 3\b", perl, re.DOTALL)
    assert "Links: 1 " in debugfs(image, "stat /opt/app/program")
    times = re.findall(r"([acm])time: 0x([0-9a-f]+)", debugfs(image, "stat /opt/app/program"))
    assert times == [(which, f"{EPOCH:08x}") for which in "cam"]
    assert "phantom" not in debugfs(image, "ls /")


def stat_of(image: Path, path: str) -> str:
    return debugfs(image, f'stat "{path}"')


@needs_root
def test_nothing_of_a_file_is_lost(tree: Path) -> None:
    opt = tree / "opt"
    for name in ("able", "listed", "old", "far", "n" * 255, "line\nfeed", "blank "):
        write_file(opt / name, b"x")
    able = bytes.fromhex("0100000200200000000000000000000000000000")
    os.setxattr(opt / "able", "security.capability", able)  # cap_net_raw+ep
    os.setxattr(opt / "listed", "user.note", b"hello")
    entries = [(1, 6, -1), (2, 4, 1000), (4, 4, -1), (16, 4, -1), (32, 4, -1)]
    access = struct.pack("<I", 2) + b"".join(struct.pack("<HHi", *entry) for entry in entries)
    os.setxattr(opt / "listed", "system.posix_acl_access", access)
    os.mknod(opt / "disk", stat.S_IFBLK | 0o640, os.makedev(8, 300))
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(opt / "socket"))
    os.chown(opt / "far", 4_000_000_000, 70_000)
    os.utime(opt / "old", (-626_000_000, -626_000_000))  # 1950
    (opt / "sparse").touch()
    os.truncate(opt / "sparse", 50 << 30)
    (opt / "shared").mkdir()
    (opt / "shared").chmod(0o3770)
    os.chown(tree, 5, 6)
    tree.chmod(0o750)
    image = write(tree, "root.ext4")
    told = {path.name: stat_of(image, f"/opt/{path.name}") for path in opt.iterdir()}
    assert "security.capability (20) = 01 00 00 02 00 20 00 00" in told["able"]
    assert 'user.note (5) = "hello"' in told["listed"]
    # ext4's form of the list: 1,000 may read
    assert "posix_acl_access (28) = 01 00 00 00 01 00 06 00 02 00 04 00 e8 03" in told["listed"]
    assert "Type: block special" in told["disk"] and "08:300" in told["disk"]
    assert "Type: socket" in told["socket"]
    assert re.search(r"User: +-294967296 +Group: +70000 ", told["far"])  # debugfs has no sign
    assert f"mtime: 0x{2**32 - 626_000_000:08x}:00000000" in told["old"]
    assert f"Size: {50 << 30}" in told["sparse"] and "Blockcount: 0" in told["sparse"]
    assert "Mode:  03770" in told["shared"]
    assert re.search(r"Mode: +0750 .*User: +5 +Group: +6 ", stat_of(image, "/"), re.DOTALL)
    listed = debugfs(image, "ls -l /opt")
    assert all(f" {name}\n" in listed for name in ("n" * 255, "line\\x0afeed", "blank "))


def test_blocks_that_were_allocated_stay(tree: Path, tmp_path: Path) -> None:
    swap = tree / "swapfile"
    swap.write_bytes(bytes(300 * BLOCK))
    subprocess.run(["mkswap", "-q", swap], check=True, env=TOOLS)
    subprocess.run(["fallocate", "-l", str(100 * BLOCK), tree / "opt/ahead"], check=True)
    with (tree / "opt/holes").open("wb") as file:
        file.truncate(300 * BLOCK)
        file.write(b"x")
    write_file(tree / "opt/chance", b"x" + bytes(12 * BLOCK) + b"x")
    image = write(tree, "root.ext4")
    for name, count in (("/swapfile", 300), ("/opt/ahead", 100), ("/opt/holes", 1)):
        told = stat_of(image, name)
        assert f"Blockcount: {count * BLOCK // 512}\n" in told, told
    assert f"Blockcount: {2 * BLOCK // 512}\n" in stat_of(image, "/opt/chance")
    copy = tmp_path / "copy"
    debugfs(image, f"dump /swapfile {copy}")
    assert filecmp.cmp(copy, swap, shallow=False)


@needs_root
def test_what_cannot_be_changed_cannot_be_changed_in_the_image(tree: Path) -> None:
    kept, log, folder = tree / "etc/kept", tree / "opt/log", tree / 'opt/a "b" c'
    for path in (kept, log, folder / "below"):
        write_file(path, b"x")
    (tree / "opt/kept too").hardlink_to(kept)
    for attribute, path in (("+i", kept), ("+a", log), ("+i", folder)):
        if subprocess.run(["chattr", attribute, path], check=False).returncode:
            pytest.skip("the file system of temporary files has no such attributes")
    image = write(tree, "root.ext4")
    assert "Flags: 0x80010\n" in stat_of(image, "/etc/kept")
    assert "Links: 2 " in stat_of(image, "/opt/kept too")
    assert "Flags: 0x80020\n" in stat_of(image, "/opt/log")
    assert "Flags: 0x80010\n" in stat_of(image, '/opt/a ""b"" c')
    assert "Flags: 0x80000\n" in stat_of(image, '/opt/a ""b"" c/below')


def test_what_is_free_holds_zeros(tree: Path) -> None:
    image = write(tree, "root.ext4")
    told = subprocess.run(["dumpe2fs", image], check=True, capture_output=True, env=TOOLS).stdout
    free = re.findall(r"^  Free blocks: (.+)$", told.decode(), re.MULTILINE)
    spans = [span.split("-") for line in free for span in line.split(", ")]
    assert len(spans) > 5
    with image.open("rb") as file:
        for span in spans:
            first, last = int(span[0]), int(span[-1])
            content = os.pread(file.fileno(), (last + 1 - first) * BLOCK, first * BLOCK)
            assert content.count(0) == len(content), span


# ---- where they lie


def test_the_same_tree_gives_the_same_bytes(tree: Path, tmp_path: Path) -> None:
    add_oddities(tree)
    first = write(tree, "first")
    again = tmp_path / "again"  # other inodes, in another order, with other holes, used later
    subprocess.run(["cp", "-a", "--sparse=never", tree, again], check=True)
    before = {path: path.lstat() for path in again.rglob("*")}
    for path, times in sorted(before.items(), reverse=True):
        if stat.S_ISREG(times.st_mode) and times.st_nlink == 1:
            content = path.read_bytes()
            path.unlink()
            path.write_bytes(content)
            path.chmod(stat.S_IMODE(times.st_mode))
        os.utime(path, ns=(10**18, times.st_mtime_ns), follow_symlinks=False)
    assert filecmp.cmp(first, write(again, "second"), shallow=False)


def add_a_package(tree: Path) -> None:
    add_package(tree, "less", [198_960, 14_584, 24_200, 9_047])


def upgrade_a_package(tree: Path) -> None:
    for file in (tree / "usr/lib/package-31").iterdir():
        file.write_bytes(random.Random(31).randbytes(file.stat().st_size + 2 * BLOCK))


def edit_the_appliance(tree: Path) -> None:
    (tree / "opt/app/program").write_bytes(random.Random(1).randbytes(230_000))
    write_file(tree / "etc/app.conf", b"answer = 42\n")


@pytest.mark.parametrize("change", [add_a_package, upgrade_a_package, edit_the_appliance])
def test_a_small_change_moves_little(tree: Path, change: Callable[[Path], None]) -> None:
    before = write(tree, "before")
    change(tree)
    changed, used = compare(before, write(tree, "after", OTHER_UUID))
    assert used > 150
    assert 0 < changed <= used // 10


def compare(before: Path, after: Path) -> tuple[int, int]:
    """How many of EBS's blocks differ, and how many blocks of the later file are not all zeros."""
    changed = used = 0
    assert before.stat().st_size == after.stat().st_size
    with before.open("rb") as one, after.open("rb") as other:
        while block := other.read(EBS_BLOCK):
            changed += block != one.read(EBS_BLOCK)
            used += block.count(0) < len(block)
    return changed, used
