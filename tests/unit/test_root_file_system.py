"""The operating-system element's root file system: what is in it, and where that lies."""

from __future__ import annotations

import filecmp
import os
import random
import re
import shutil
import stat
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
    """A kernel, sixty small packages, and what an appliance has beside packages."""
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


# ---- what is in it


def add_oddities(tree: Path) -> None:
    """Names and kinds of files that need care."""
    write_file(tree / "usr/bin/perl", b"perl" * 3000)
    (tree / "usr/bin/perl5").hardlink_to(tree / "usr/bin/perl")
    (tree / "opt/perl").hardlink_to(tree / "usr/bin/perl")
    (tree / "bin").symlink_to("usr/bin")
    (tree / "usr/bin/long").symlink_to("/" + "x" * 200)
    (tree / "usr/bin/perl").chmod(0o4755)
    write_file(tree / "opt/zeros", b"a" + bytes(10 * BLOCK) + b"b" + bytes(3 * BLOCK + 5))
    for start in range(0, 40 * BLOCK, 2 * BLOCK):  # so many holes that the inode cannot hold all
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


# ---- where it lies


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
    """How many of EBS's blocks differ, and how many of the later file are not all zeros."""
    changed = used = 0
    assert before.stat().st_size == after.stat().st_size
    with before.open("rb") as one, after.open("rb") as other:
        while block := other.read(EBS_BLOCK):
            changed += block != one.read(EBS_BLOCK)
            used += block.count(0) < len(block)
    return changed, used
