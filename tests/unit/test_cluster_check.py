"""What a cluster check makes of its guests' reports and consoles, with programs in the place of
machines."""

from __future__ import annotations

from base64 import b64encode
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import pytest

from pipeline.clouds.nimbus.cloud import Nimbus
from pipeline.clouds.nimbus.metadata import NimbusMetadata
from pipeline.errors import ClusterCheckError
from pipeline.machine import qemu
from pipeline.machine.fleet import Fleet, Member
from pipeline.machine.metadata import MetadataServer
from pipeline.machine.running_guest import RunningGuest
from pipeline.model import MIB, NoProgress, Sha256, Site
from pipeline.stages.base import Context, LocalFile
from pipeline.stages.cluster import ClusterCheck, GuestFiles, _Console, _Guests
from pipeline.stages.guest_report import REPORT
from pipeline.store import Store
from pipeline.tools import run

MACHINE = Nimbus(Site(name="hotel", cloud="nimbus", where="the test")).machines[0]
NONCE = "0f" * 16


def check(folder: Path) -> ClusterCheck:
    """A check of a head and two workers."""
    files = {}
    for name in ("head.sh", "worker.sh", "check.sh"):
        (folder / name).write_text("#!/bin/sh\necho @cluster_secret@ @address:worker@\n")
        files[name] = LocalFile(digest=Sha256(name), path=folder / name)
    return ClusterCheck(
        machine=MACHINE,
        report=LocalFile(digest=Sha256(""), path=REPORT),
        guests={
            "head": GuestFiles(count=1, user_data=files["head.sh"], script=files["check.sh"]),
            "worker": GuestFiles(count=2, user_data=files["worker.sh"], script=None),
        },
        phantom=False,
        seconds=None,
    )


class Watched(_Guests):
    """The guests of a check, of which the head is a program that prints this console."""

    def __init__(self, folder: Path, stack: ExitStack, script: str) -> None:
        made, log = check(folder), folder / "cluster-0123.log"
        for name in ("out", "work"):
            (folder / name).mkdir()
        self.context = Context(
            out=folder / "out",
            work=folder / "work",
            log=log,
            store=Store(folder / "store"),
            progress=NoProgress(),
        )
        console = stack.enter_context(_Console(self.context))
        fleet = Fleet(MACHINE, folder / "disk.raw", folder / "guests", "tcg")
        super().__init__(made, fleet, console, NONCE)
        self.addresses = fleet.reserve(())
        self.server = MetadataServer(NimbusMetadata(), private=True, takes_reports=True)
        stack.enter_context(self.server)
        process = stack.enter_context(run.start(["sh", "-c", script]))
        log = console.find_log("head")
        self._members["head"] = Member(
            name="head",
            log=log,
            heard=RunningGuest(process, log, lambda line: console.note("head", line)),
            server=self.server,
            process=process,
            stack=ExitStack(),
        )
        stack.callback(self._members["head"].heard.end)

    def judge(self, *lines: str) -> str | None:
        return self._judge("head", "\n".join((f"nonce {NONCE}", *lines)).encode())

    @property
    def secret(self) -> str:
        return self._values["cluster_secret"]


@pytest.fixture
def stack() -> Iterator[ExitStack]:
    with ExitStack() as stack:
        yield stack


def packed(text: str) -> str:
    return b64encode(text.encode()).decode()


def test_each_guest_has_a_name_and_an_address_beforehand(tmp_path: Path, stack: ExitStack) -> None:
    guests = Watched(tmp_path, stack, "exec sleep 60")
    assert list(guests._files) == ["head", "worker.1", "worker.2"]
    assert guests.addresses == {"head": "10.99.0.2", "worker.1": "10.99.0.3"}
    assert guests._values["address:worker"] == "10.99.0.3"
    assert len(bytes.fromhex(guests.secret)) == 32


def test_a_report_that_says_that_all_is_well(tmp_path: Path, stack: ExitStack) -> None:
    """What the script printed last is kept, but no secret."""
    guests = Watched(tmp_path, stack, "exec sleep 60")
    lines = "".join(f"line {number}\n" for number in range(8)) + f"\x1b[1m{guests.secret}"
    told = ("user_data_status 0", "check_status 0", f"check_output {packed(lines)}")
    assert guests.judge(*told) == "line 4\nline 5\nline 6\nline 7\n?[1m***"


@pytest.mark.parametrize(
    ("lines", "what", "todo", "printed"),
    [
        (
            ["user_data_status 3", f"user_data_output {packed('no disk')}"],
            "its user-data head.sh ended with status 3",
            "correct it, or the image",
            ["no disk"],
        ),
        (
            ["user_data_status 0", "check_status 1", "check_output b25lCnR3bw=="],
            "its check script check.sh ended with status 1",
            "correct it, or the image",
            ["one", "two"],
        ),
        (
            ["user_data_status 0"],
            "its report is damaged: it has no check_status",
            "see in the log what disturbs the script that reports, the user-data",
            [],
        ),
        (
            ["nonce other"],
            "the report is of another machine",
            "see its console",
            [],
        ),
    ],
    ids=["user-data", "script", "damaged", "other"],
)
def test_a_report_that_fails_the_check(
    tmp_path: Path,
    stack: ExitStack,
    lines: Sequence[str],
    what: str,
    todo: str,
    printed: Sequence[str],
) -> None:
    guests = Watched(tmp_path, stack, "echo login:; exec sleep 60")
    log = tmp_path / "cluster-0123-head.log"
    while "login:" not in guests._members["head"].heard.last_lines:
        pass
    with pytest.raises(ClusterCheckError) as error:
        guests.judge(*lines)
    shown = "".join(f"  | {line}\n" for line in (*printed, "the end of its console:", "login:"))
    assert str(error.value) == f"guest head: {what}\n{shown}  do: {todo}\n  log: {log}"
    assert error.value.exit_code == 67


def test_a_guest_that_stops(tmp_path: Path, stack: ExitStack) -> None:
    guests = Watched(tmp_path, stack, "echo Booting; exit 1")
    with pytest.raises(ClusterCheckError) as error:
        guests.wait(600, guests.context)
    assert str(error.value) == (
        "guest head: the guest did not boot: the machine stopped before it reported\n"
        "  | Booting\n"
        "  do: look at the end of the console; `phantom-image boot` starts the same machine\n"
        f"  log: {tmp_path}/cluster-0123-head.log"
    )
    assert (tmp_path / "cluster-0123-head.log").read_text() == "Booting\n"
    assert (tmp_path / "cluster-0123.log").read_text() == "head | Booting\n"


def test_a_guest_that_is_late(tmp_path: Path, stack: ExitStack) -> None:
    guests = Watched(tmp_path, stack, "echo 'hello login: '; exec sleep 60")
    while "login:" not in guests._members["head"].heard.last_lines:
        pass
    with pytest.raises(ClusterCheckError) as error:
        guests.wait(0, guests.context)
    assert error.value.what == (
        "guest head: the guest booted without reaching the metadata service: the machine did not "
        "report within 0 s"
    )


def test_logs_of_an_earlier_run_are_removed(tmp_path: Path, stack: ExitStack) -> None:
    old = tmp_path / "cluster-0123-worker.9.log"
    other = tmp_path / "cluster-4567-head.log"
    for log in (old, other):
        log.write_text("earlier\n")
    Watched(tmp_path, stack, "exec sleep 60")
    assert not old.exists()
    assert other.exists()


def test_the_host_has_memory_for_all_guests(tmp_path: Path) -> None:
    made = check(tmp_path)
    each = 512 * MIB + qemu.OVERHEAD
    assert made.memory == 3 * each
    assert replace(made, phantom=True).memory == 5 * each
    assert made.requires == ("boot", "boot from an overlay")
