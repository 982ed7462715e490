"""What the boot check says of a guest's report."""

from __future__ import annotations

import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import pytest

from pipeline.clouds.ec2.cloud import Ec2
from pipeline.layouts import LAYOUTS
from pipeline.model import GIB, MIB, Sha256, Site
from pipeline.stages.base import LocalFile
from pipeline.stages.boot import HOPELESS, REPORT, BootCheck, parse_report

LAYOUT = LAYOUTS["hybrid"]
START, TAIL = LAYOUT.root_start, LAYOUT.tail
MACHINE = Ec2(Site(name="amazon", cloud="ec2", where="the test")).machines[0]
CHECK = BootCheck(
    machine=MACHINE,
    report=LocalFile(digest=Sha256(""), path=REPORT),
    user_data=None,
    check=None,
    seconds=None,
)
sizes = pytest.mark.parametrize("size", [2 * GIB, 20 * GIB, 2000 * GIB], ids=lambda n: n // GIB)


@dataclass(frozen=True, kw_only=True)
class Root:
    """How root lies on a machine's disk, in bytes."""

    disk: int
    start: int = START
    end: int
    file_system: int

    @property
    def usable(self) -> int:
        """Without a journal and tables as large as they get."""
        return self.file_system - self.file_system // 50 - 64 * MIB

    @property
    def facts(self) -> Mapping[str, list[str]]:
        lines = [
            "address 10.0.2.15/24",
            "ssh_host_key SHA256:x (ED25519)",
            f"root_bytes {self.usable}",
            f"file_system_bytes {self.file_system}",
            f"root_start {self.start}",
            f"root_end {self.end}",
            f"disk_bytes {self.disk}",
        ]
        return parse_report("\n".join(lines).encode())


def make_grown(size: int) -> Root:
    """Root as it should be, on the disk that a machine has for an image of so many bytes."""
    disk = size + MACHINE.spare
    return Root(disk=disk, end=disk - TAIL, file_system=disk - TAIL - START)


def find_faults(facts: Mapping[str, list[str]]) -> list[str]:
    return list(CHECK._faults(facts, "nonce"))


def not_grown(root: Root) -> list[str]:
    return [f"root did not grow: {root.usable} bytes on a disk of {root.disk}"]


@sizes
def test_root_has_grown(size: int) -> None:
    root = make_grown(size)
    assert find_faults(root.facts) == []
    # resize2fs leaves out a last group that is too small.
    short = Root(disk=root.disk, end=root.end, file_system=root.file_system - 6 * MIB)
    assert find_faults(short.facts) == []


@sizes
def test_root_that_needs_no_table_behind_it(size: int) -> None:
    """As in an MBR; and with no table at all."""
    for start in (MIB, 0):
        root = Root(disk=size, start=start, end=size, file_system=size - start)
        assert find_faults(root.facts) == []


@sizes
def test_partition_did_not_grow(size: int) -> None:
    """As where the image has no sfdisk: the file system fills the partition of the image."""
    end = size - TAIL
    root = Root(disk=size + MACHINE.spare, end=end, file_system=end - START)
    assert find_faults(root.facts) == not_grown(root)


@sizes
def test_file_system_did_not_grow(size: int) -> None:
    """As where the image has no resize2fs, and the file system has the image's size."""
    grown = make_grown(size)
    root = Root(disk=grown.disk, end=grown.end, file_system=size - TAIL - START)
    assert find_faults(root.facts) == not_grown(root)


@sizes
@pytest.mark.parametrize("missing", ["disk_bytes", "root_end", "file_system_bytes"])
def test_what_is_not_told_is_no_proof(size: int, missing: str) -> None:
    facts = {name: value for name, value in make_grown(size).facts.items() if name != missing}
    (fault,) = find_faults(facts)
    assert fault.startswith("root did not grow: ")


def test_file_system_is_measured_by_its_superblock(tmp_path: Path) -> None:
    """Of any size, without the rest of the report; mke2fs makes such a large one sparse."""
    script = REPORT.read_text()
    begin = script.index("tell_file_system_bytes() {")
    function = script[begin : script.index("\n}\n", begin) + 3]
    file = tmp_path / "root.ext4"
    for size, block in ((64 * MIB, 1024), (2 * GIB, 4096), (17_000 * GIB, 4096)):
        with file.open("wb") as made:
            made.truncate(size if size < 4 * GIB else 0)
        if size < 4 * GIB:
            words = ["mke2fs", "-q", "-F", "-t", "ext4", "-b", str(block), str(file)]
            subprocess.run(words, check=True)
        else:
            file.write_bytes(make_superblock(size // block, block))
        told = subprocess.run(
            [
                "sh",
                "-c",
                f'tell() {{ echo "$1 $2"; }}\n{function}tell_file_system_bytes "$0"',
                file,
            ],
            check=True,
            capture_output=True,
            text=True,
        )
        assert told.stdout == f"file_system_bytes {size}\n"
    file.unlink()


def make_superblock(blocks: int, block: int) -> bytes:
    """As much of it as tells the size, where a disk for the whole would be too large."""
    words = [0] * 256
    words[1], words[84] = blocks & 0xFFFFFFFF, blocks >> 32
    words[6] = (block // 1024).bit_length() - 1
    return bytes(1024) + b"".join(word.to_bytes(4, "little") for word in words)


@pytest.mark.parametrize("tries", ["1", "2", ""])
def test_fetcher_that_met_no_late_service(tries: str) -> None:
    """As where something else of the image had the refusals."""
    facts = {
        **make_grown(2 * GIB).facts,
        "fetcher": ["/usr/lib/phantom/fetch-user-data"],
        "fetcher_tries": [tries],
    }
    assert find_faults(facts) == [
        "its user-data fetcher was not tried with a metadata service that is late: it had its "
        f"user-data at try {tries or 0}, though 2 requests were refused"
    ]


def test_fetcher_that_met_a_late_service() -> None:
    facts = {**make_grown(2 * GIB).facts, "fetcher": ["/f"], "fetcher_tries": ["3"]}
    assert find_faults(facts) == []
    # An image's own fetcher need not count.
    assert find_faults(make_grown(2 * GIB).facts) == []


def test_runners_of_user_data() -> None:
    """cloud-init tries a late service again by itself, and nobody runs what another has run."""
    facts = {
        **make_grown(2 * GIB).facts,
        "fetcher": ["/f"],
        "fetcher_tries": [""],
        "user_data_by": ["cloud-init"],
    }
    assert find_faults(facts) == []
    assert find_faults({**facts, "run_again": ["fetcher"]}) == [
        "its user-data ran twice: by cloud-init, and by fetcher"
    ]
    taken_over = {**facts, "user_data_by": ["fetcher"], "cloud_init": ["found no source"]}
    assert find_faults(taken_over) == [
        "cloud-init is to run its user-data, and found none; the fetcher ran it"
    ]


def test_ssh_host_keys_are_asked_of_images_with_an_sshd() -> None:
    facts = {**make_grown(2 * GIB).facts, "ssh_host_key": []}
    assert find_faults(facts) == []
    assert find_faults({**facts, "sshd": ["/usr/sbin/sshd"]}) == ["it made no SSH host keys"]


def test_what_ends_a_boot_check_at_once() -> None:
    """GRUB goes on without what it can do without."""
    grub = "error: file `/boot/grub/{}' not found.\n"
    for name in ("i386-pc/cpuid.mod", "fonts/unicode.pf2", "i386-pc/fs.lst", "locale/en.mo"):
        assert not HOPELESS.search(grub.format(name))
    for text in (grub.format("../vmlinuz-6.1.0"), grub.format("grub.cfg"), "grub rescue> "):
        assert HOPELESS.search(text)
