"""The faults that the boot check finds in a guest's report."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from soak import examples

from pipeline.clouds.ec2.cloud import Ec2
from pipeline.clouds.ec2.metadata import Ec2Metadata
from pipeline.errors import GuestCheckError, PhantomError
from pipeline.layouts import LAYOUTS
from pipeline.machine.running_guest import HOPELESS
from pipeline.model import GIB, MIB, Sha256, Site
from pipeline.stages.base import LocalFile
from pipeline.stages.boot import BootCheck, _outcomes, _told
from pipeline.stages.guest_report import REPORT, parse_report, public_key_of
from pipeline.stages.userdata_cases import make_cases

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
    """Where root lies on a machine's disk, in bytes."""

    disk: int
    start: int = START
    end: int
    file_system: int

    @property
    def usable(self) -> int:
        """What is left beside the largest possible journal and tables."""
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
    """Root after it grew as it should, on a machine's disk for an image of `size` bytes."""
    disk = size + MACHINE.spare
    return Root(disk=disk, end=disk - TAIL, file_system=disk - TAIL - START)


def find_faults(facts: Mapping[str, list[str]]) -> list[str]:
    return list(CHECK._faults(facts, "nonce"))


REPORTED = (
    "nonce nonce\nrelease Debian GNU/Linux 12 (bookworm)\nkernel 6.1.0-1-amd64\nfirmware bios\n"
    "boot_seconds 12.34\nuser_data_by fetcher\nfetcher_tries 3\n"
)


@pytest.mark.parametrize(
    ("old", "new", "fault"),
    [
        ("kernel 6.1.0-1-amd64\n", "", "no kernel"),
        ("kernel 6.1.0-1-amd64\n", "kernel \n", "no kernel"),
        ("12.34", "soon", "boot_seconds 'soon'"),
        ("12.34", "inf", "boot_seconds 'inf'"),
        ("12.34", "9" * 5000, f"boot_seconds '{'9' * 40}'"),
        ("nonce nonce", "nonce nonce\ncheck_status \xb2", "check_status '\xb2'"),
        ("nonce nonce", "nonce nonce\nuser_data_status -1", "user_data_status '-1'"),
    ],
)
def test_a_report_that_is_damaged(tmp_path: Path, old: str, new: str, fault: str) -> None:
    CHECK._check_whole(parse_report(REPORTED.encode()), tmp_path)
    facts = parse_report(REPORTED.replace(old, new).encode())
    with pytest.raises(GuestCheckError) as caught:
        CHECK._check_whole(facts, tmp_path)
    assert caught.value.what == f"the guest's report is damaged: it has {fault}"


def test_a_check_that_tells_no_status_has_not_passed(tmp_path: Path) -> None:
    script = tmp_path / "check.sh"
    script.write_text("true\n")
    check = replace(CHECK, check=LocalFile(digest=Sha256(""), path=script))
    with pytest.raises(GuestCheckError) as caught:
        check._check_whole(parse_report(REPORTED.encode()), tmp_path)
    assert caught.value.what == "the guest's report is damaged: it has no check_status"


@settings(max_examples=examples(100), deadline=None)
@given(
    st.lists(
        st.sampled_from([*REPORTED.splitlines(), "ssh_host_key ", "ssh_host_key", "case gzip 0"])
        | st.builds(
            "{} {}".format,
            st.sampled_from(["check_status", "check_output", "root_bytes", "case", "ssh_host_key"]),
            st.text(max_size=9)
            | st.sampled_from(["9" * 5000, "\xb2", "inf", "====", "  ", "a b c"]),
        ),
        max_size=20,
    )
)
@example(lines=[*REPORTED.splitlines(), "ssh_host_key ", "check_output =", "case gzip 0"])
def test_any_report_is_judged(lines: list[str]) -> None:
    facts = parse_report("\n".join(lines).encode("utf-8", "surrogatepass"))
    cases = make_cases(Ec2Metadata, "nonce")
    with suppress(PhantomError):
        CHECK._check_whole(facts, Path("log"))
        json.dumps(_told(facts), allow_nan=False)
        _outcomes(facts, cases)
        CHECK._judge({**facts, "fetcher": ["there"]}, "nonce", cases, Path("log"))


def not_grown(root: Root) -> list[str]:
    return [f"root did not grow: {root.usable} bytes on a disk of {root.disk}"]


@sizes
def test_root_has_grown(size: int) -> None:
    root = make_grown(size)
    assert find_faults(root.facts) == []
    # resize2fs leaves out the last block group if it is too small.
    short = Root(disk=root.disk, end=root.end, file_system=root.file_system - 6 * MIB)
    assert find_faults(short.facts) == []


@sizes
def test_root_that_needs_no_table_behind_it(size: int) -> None:
    """Root ends with the disk where the table is an MBR, or where there is no table."""
    for start in (MIB, 0):
        root = Root(disk=size, start=start, end=size, file_system=size - start)
        assert find_faults(root.facts) == []


@sizes
def test_partition_did_not_grow(size: int) -> None:
    """An image without sfdisk: the file system only fills the image's partition."""
    end = size - TAIL
    root = Root(disk=size + MACHINE.spare, end=end, file_system=end - START)
    assert find_faults(root.facts) == not_grown(root)


@sizes
def test_file_system_did_not_grow(size: int) -> None:
    """An image without resize2fs: the file system keeps the size that it has in the image."""
    grown = make_grown(size)
    root = Root(disk=grown.disk, end=grown.end, file_system=size - TAIL - START)
    assert find_faults(root.facts) == not_grown(root)


@sizes
@pytest.mark.parametrize("missing", ["disk_bytes", "root_end", "file_system_bytes"])
def test_a_missing_size_counts_as_root_that_did_not_grow(size: int, missing: str) -> None:
    facts = {name: value for name, value in make_grown(size).facts.items() if name != missing}
    (fault,) = find_faults(facts)
    assert fault.startswith("root did not grow: ")


def test_file_system_is_measured_by_its_superblock(tmp_path: Path) -> None:
    """The report script's function alone reads the size of file systems, small and very large."""
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
    """A superblock with only its size, for a file system that is too large to make."""
    words = [0] * 256
    words[1], words[84] = blocks & 0xFFFFFFFF, blocks >> 32
    words[6] = (block // 1024).bit_length() - 1
    return bytes(1024) + b"".join(word.to_bytes(4, "little") for word in words)


@pytest.mark.parametrize("tries", ["1", ""])
def test_fetcher_that_met_no_late_service(tries: str) -> None:
    """Another program in the image made the requests that were refused."""
    facts = {
        **make_grown(2 * GIB).facts,
        "fetcher": ["/usr/lib/phantom/fetch-user-data"],
        "fetcher_tries": [tries],
    }
    assert find_faults(facts) == [
        "its user-data fetcher was not tried with a metadata service that is late: it had its "
        f"user-data at try {tries or 0}, though the first request was refused"
    ]


def test_fetcher_that_met_a_late_service() -> None:
    facts = {**make_grown(2 * GIB).facts, "fetcher": ["/f"], "fetcher_tries": ["2"]}
    assert find_faults(facts) == []
    # An image's own fetcher need not count its tries.
    assert find_faults(make_grown(2 * GIB).facts) == []


def test_runners_of_user_data() -> None:
    """cloud-init itself asks a late service again, and only one program may run user-data."""
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


def test_who_may_log_in() -> None:
    """Not asked of images without the fetcher, nor of what a node or cloud-init does."""
    key = public_key_of("nonce")
    facts = {**make_grown(2 * GIB).facts, "login_user": ["as told"]}
    ops = replace(CHECK, login_user="ops")
    lacks = "the launch's key is not in the authorized_keys of {}"
    for check, user in ((CHECK, "root"), (ops, "ops")):
        assert [*check._faults(facts, "nonce")] == [lacks.format(user)]
        assert [*check._faults({**facts, "login_key": ["another", key]}, "nonce")] == []
        assert [*check._faults({**facts, "login_key": [f"{key}x"]}, "nonce")] != []
    by_cloud_init = {**facts, "user_data_by": ["cloud-init"]}
    assert [*CHECK._faults(by_cloud_init, "nonce")] == []
    assert [*ops._faults(by_cloud_init, "nonce")] == [lacks.format("ops")]
    del facts["login_user"]
    assert [*CHECK._faults(facts, "nonce")] == []


def test_keys_that_sshd_does_not_take_are_not_told(tmp_path: Path) -> None:
    script = REPORT.read_text()
    begin = script.index("tell_login_keys() {")
    function = script[begin : script.index("\n}\n", begin) + 3]
    home = tmp_path / "home"
    (home / ".ssh").mkdir(parents=True, mode=0o700)
    home.chmod(0o755)
    file = home / ".ssh/authorized_keys"
    file.write_text("a key\n")
    awk = f'awk() {{ case $1 in -F) echo "{home}" ;; *) command awk "$@" ;; esac; }}\n'
    told = f'tell() {{ echo "$@"; }}\nlogin_user={os.geteuid()}\n{awk}{function}tell_login_keys\n'

    def report() -> str:
        ended = subprocess.run(["sh", "-uc", told], capture_output=True, text=True, check=True)
        return ended.stdout

    file.chmod(0o600)
    assert report() == "login_key a key\n"
    for place, bad, good in (
        (home, 0o775, 0o755),
        (home / ".ssh", 0o702, 0o700),
        (file, 0o620, 0o600),
    ):
        place.chmod(bad)
        assert report() == ""
        place.chmod(good)
    file.rename(home / "elsewhere")
    file.symlink_to(home / "elsewhere")
    assert report() == ""


def test_ssh_host_keys_are_asked_of_images_with_an_sshd() -> None:
    facts = {**make_grown(2 * GIB).facts, "ssh_host_key": []}
    assert find_faults(facts) == []
    assert find_faults({**facts, "sshd": ["/usr/sbin/sshd"]}) == ["it made no SSH host keys"]


def test_console_lines_that_end_a_boot_check() -> None:
    """GRUB continues without some of its files; only what stops the boot ends the check."""
    grub = "error: file `/boot/grub/{}' not found.\n"
    for name in ("i386-pc/cpuid.mod", "fonts/unicode.pf2", "i386-pc/fs.lst", "locale/en.mo"):
        assert not HOPELESS.search(grub.format(name))
    for text in (grub.format("../vmlinuz-6.1.0"), grub.format("grub.cfg"), "grub rescue> "):
        assert HOPELESS.search(text)
