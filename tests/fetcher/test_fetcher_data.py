"""What the fetcher does with user-data: it keeps it, and runs it or says why not."""

from __future__ import annotations

import base64
import gzip
import json
import os
import stat
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from faulty_metadata import Ec2Version1
from fetcher_guest import INIT_SCRIPT, TOOL_SETS, Guest, Outcome, Platform

from pipeline.clouds.nimbus.metadata import NimbusMetadata
from pipeline.machine.metadata import MetadataServer

REFUSED = 65


@contextmanager
def serve_ec2(guest: Guest, data: bytes | None, **meta_data: str) -> Iterator[MetadataServer]:
    """Serve `data` as EC2 does: any bytes, and BusyBox's wget needs no token."""
    values = {name.replace("_", "-"): value for name, value in meta_data.items()}
    service = Ec2Version1(user_data=data, meta_data=values)
    with MetadataServer(service) as server:
        guest.use_ec2(server.url)
        yield server


def encode(data: bytes) -> bytes:
    """As the program base64 does it: lines of 76 letters."""
    return base64.encodebytes(data)


def get_lines(outcome: Outcome) -> list[str]:
    """The lines of the output without the one that always comes with BusyBox's wget on EC2."""
    lines = outcome.output.splitlines()
    return [line for line in lines if not line.endswith("using version 1")]


def get_mode(path: os.PathLike[str]) -> int:
    return stat.S_IMODE(os.lstat(path).st_mode)


@pytest.mark.parametrize("platform", TOOL_SETS, ids=str)
@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (b"echo $0 plain", "plain"),
        (b"#!/bin/sh\necho named", "named"),
        (b"#! /bin/sh -e\nfalse\necho not reached", "ended with status 1"),
        (b"#!\necho no interpreter named", "no interpreter named"),
        (b"#!/usr/bin/env cat\nenv took one argument", "env took one argument"),
        (b"#!/bin/echo  two  words \n", "two  words "),
        (b"\n\necho after blank lines", "after blank lines"),
        (b"\n#!/bin/sed 1q\nonly one\n", "\n#!/bin/sed 1q\n"),
        (b" \n\t\n  #!/bin/sh -e\nfalse\necho not reached", "ended with status 1"),
        (b"\n" * 9_000 + b"#!/usr/bin/env cat\nfar down", "\n#!/usr/bin/env cat\nfar down"),
        (b"Subject: no message\necho but text", "but text"),
        (b"cat <<end\nMIME-Version: 1.0\nend\n", "MIME-Version: 1.0\n"),
        (b"#included in sh: a comment\necho comment", "comment"),
        (b"#!/bin/sh\necho an archive follows; exit\n\0\0\0", "an archive follows"),
        (b"echo \xc3\xa9t\xc3\xa9", "\u00e9t\u00e9"),
    ],
)
def test_data_is_run(guest: Guest, data: bytes, expected: str) -> None:
    with serve_ec2(guest, data):
        outcome = guest.run()
    assert expected in outcome.output
    assert outcome.status == (1 if b"-e" in data else 0)
    assert guest.data.read_bytes() == data
    assert "not reached" not in outcome.output


LONG = b"#!/bin/sh\n# " + b"a comment of some length " * 20 + b"\necho a long script\n"
HIGH = b"# " + b"\xff\xfe\xfb" * 9  # what differs in the alphabet for URLs
TEXT = b"echo plain text\nexit 0\n"


@pytest.mark.parametrize("platform", TOOL_SETS, ids=str)
@pytest.mark.parametrize(
    ("data", "held"),
    [
        (base64.b64encode(LONG), LONG),
        (encode(LONG), LONG),
        (encode(LONG).replace(b"\n", b"\r\n"), LONG),
        (b"\n  " + encode(LONG) + b"\n\n", LONG),
        (base64.b64encode(LONG).rstrip(b"="), LONG),
        (base64.urlsafe_b64encode(LONG + HIGH), LONG + HIGH),
        (encode(encode(LONG)), LONG),
        (encode(gzip.compress(LONG, mtime=0)), LONG),
        (gzip.compress(encode(LONG), mtime=0), LONG),
        (encode(b"#!/bin/sh\n:"), b"#!/bin/sh\n:"),
        (encode(b"\n#!/bin/sh\n:"), b"\n#!/bin/sh\n:"),
        (encode(TEXT), TEXT),
    ],
)
def test_base64_is_decoded_and_run(guest: Guest, data: bytes, held: bytes) -> None:
    with serve_ec2(guest, data):
        outcome = guest.run()
    assert outcome.status == 0
    assert guest.data.read_bytes() == held
    assert "phantom-user-data: the user-data is base64: decoded\n" in outcome.output
    for word in ("a long script", "plain text"):
        assert (f"\n{word}\n" in outcome.output) == (word.encode() in held)


@pytest.mark.parametrize("platform", TOOL_SETS, ids=str)
@pytest.mark.parametrize("data", [b"true\n", b"/bin/true", b"A=bcd\n", b"true\ntrue\n", b":\n"])
def test_words_of_the_letters_of_base64_are_run_as_they_are(guest: Guest, data: bytes) -> None:
    with serve_ec2(guest, data):
        outcome = guest.run()
    assert outcome.status == 0
    assert guest.data.read_bytes() == data
    assert "base64" not in outcome.output


def test_base64_where_nothing_decodes_it(guest: Guest) -> None:
    (guest.path / "base64").unlink()
    with serve_ec2(guest, encode(b"#!/bin/sh\necho a\n")):
        outcome = guest.run()
    if not busybox_decodes(guest):
        assert outcome.status == REFUSED
        assert "is base64 and there is no base64 to decode it" in outcome.output


def busybox_decodes(guest: Guest) -> bool:
    """Whether BusyBox's shell runs its own base64 rather than one on the PATH."""
    command = [*guest.make_command()[:-1], "-c", "command -v base64"]
    environment = guest.make_environment()
    return subprocess.run(command, env=environment, check=False).returncode == 0


@pytest.mark.parametrize("status", [1, 75, 255])
def test_status_of_the_data_is_the_services(guest: Guest, status: int) -> None:
    with serve_ec2(guest, b"exit %d" % status):
        outcome = guest.run()
    assert outcome.status == status
    assert outcome.output.endswith(f"phantom-user-data: the user-data ended with status {status}\n")


def test_data_that_a_signal_ends(guest: Guest) -> None:
    with serve_ec2(guest, b"kill -KILL $$"):
        assert guest.run().status == 128 + 9


def test_environment_of_the_data(guest: Guest) -> None:
    data = b"pwd; umask; env; cat; echo end of input"
    guest.environment["HOME"] = "/nonexistent"
    with serve_ec2(guest, data) as server:
        lines = guest.run().output.splitlines()
    assert "/" in lines
    assert "0022" in lines
    assert "HOME=/root" in lines
    assert "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin" in lines
    assert "LANG=C.UTF-8" in lines
    assert not [line for line in lines if line.startswith("LC_ALL=")]
    assert "end of input" in lines
    for fact in guest.facts.read_text().splitlines():
        assert fact in lines
    assert f"PHANTOM_METADATA_URL={server.url}" in lines
    assert "PHANTOM_USER_DATA_TRIES=1" in lines


def test_files_have_private_or_public_modes(guest: Guest) -> None:
    with serve_ec2(guest, b"exit 0"):
        guest.run()
    assert get_mode(guest.data) == 0o600
    assert get_mode(guest.data.parent) == 0o700
    assert get_mode(guest.log) == 0o600
    assert get_mode(guest.facts) == 0o644
    assert get_mode(guest.facts.parent) == 0o755
    assert sorted(path.name for path in guest.data.parent.iterdir()) == ["user-data"]


def test_open_state_directory_is_closed(guest: Guest) -> None:
    guest.data.parent.mkdir(mode=0o755)
    with serve_ec2(guest, b"exit 0"):
        assert guest.run().status == 0
    assert get_mode(guest.data.parent) == 0o700


@pytest.mark.parametrize("to_directory", [False, True])
def test_planted_links_are_not_followed(guest: Guest, to_directory: bool) -> None:
    victim = guest.root / "victim"
    if to_directory:
        victim.mkdir()
    else:
        victim.write_text("precious")
    guest.data.parent.mkdir()
    ours = (guest.data, guest.log, guest.facts)
    guest.facts.parent.mkdir()
    for path in (*ours, guest.facts.with_name(f"{guest.facts.name}.new")):
        path.symlink_to(victim)
    for name in ("work", "trimmed", "lock", "lock.old", "instance"):
        (guest.data.parent / name).symlink_to(victim)
    guest.set_options(FREQUENCY="instance")
    with serve_ec2(guest, b"echo mine", instance_id="i-1"):
        assert guest.run().status == 0
    assert guest.data.read_bytes() == b"echo mine"
    assert not guest.data.is_symlink()
    assert "mine" in guest.log.read_text()
    for path in (*ours, guest.mark):
        assert not path.is_symlink()
    if to_directory:
        assert list(victim.iterdir()) == []
    else:
        assert victim.read_text() == "precious"


def test_rotated_log_takes_the_place_of_what_lies_there(guest: Guest) -> None:
    """A directory as much as a link to one, into which it would be moved."""
    victim, rotated = guest.root / "victim", guest.log.with_name(f"{guest.log.name}.1")
    victim.mkdir()
    for kind in ("link", "directory", "pipe"):
        guest.log.write_text("the boot before\n")
        if kind == "link":
            rotated.symlink_to(victim)
        elif kind == "directory":
            rotated.mkdir()
        else:
            os.mkfifo(rotated)
        with serve_ec2(guest, b"echo mine"):
            assert guest.run().status == 0
        assert not rotated.is_symlink()
        assert rotated.read_text() == "the boot before\n"
        rotated.unlink()
    assert list(victim.iterdir()) == []


def test_dangling_log_link_is_not_followed(guest: Guest) -> None:
    guest.log.symlink_to(guest.root / "victim")
    with serve_ec2(guest, b"echo mine"):
        assert guest.run().status == 0
    assert not (guest.root / "victim").exists()
    assert "mine" in guest.log.read_text()


def test_state_directory_that_is_a_link_is_refused(guest: Guest) -> None:
    (guest.root / "elsewhere").mkdir()
    guest.data.parent.symlink_to(guest.root / "elsewhere")
    with serve_ec2(guest, b"echo mine"):
        outcome = guest.run()
    assert outcome.status == 73
    assert "error: " in outcome.output
    assert "is a symbolic link" in outcome.output
    assert list((guest.root / "elsewhere").iterdir()) == []


def test_state_directory_that_cannot_be_made(guest: Guest) -> None:
    guest.data.parent.write_text("a file in the way")
    outcome = guest.run()
    assert outcome.status == 73
    assert "error: cannot make" in outcome.output


def test_data_that_was_a_directory_is_replaced(guest: Guest) -> None:
    guest.data.mkdir(parents=True)
    with serve_ec2(guest, b"echo mine"):
        assert guest.run().status == 0
    assert guest.data.read_bytes() == b"echo mine"


def test_data_of_an_earlier_boot_does_not_stay(guest: Guest) -> None:
    with serve_ec2(guest, b"echo old"):
        guest.run()
    with serve_ec2(guest, None):
        guest.run()
    assert guest.data.read_bytes() == b""


def test_data_and_token_are_not_printed(guest: Guest) -> None:
    with serve_ec2(guest, b"#!/bin/sh\n: secret-word\n"):
        outcome = guest.run()
    assert "secret-word" not in outcome.output + guest.log.read_text()
    assert not [line for line in get_lines(outcome) if "token" in line]


@pytest.mark.parametrize("platform", TOOL_SETS, ids=str)
@pytest.mark.parametrize(
    "data",
    [
        b"#cloud-config\npackages: []\n",
        b"#cloud-config",
        b"#Cloud-Config\r\npackages: []\r\n",
        b"#cloud-config-archive\n- a\n",
        b"#cloud-boothook\necho boothook",
        b"#include\nhttp://example.org/\n",
        b"#include http://example.org/\n",
        b"#include-once\nhttp://example.org/\n",
        b"#upstart-job\n",
        b"#part-handler\n",
        b"## template: jinja\n#cloud-config\n",
        b'Content-Type: multipart/mixed; boundary="b"\nMIME-Version: 1.0\n\n--b--\n',
        b'content-type: MULTIPART/MIXED; boundary="b"\r\n\r\n',
        b"MIME-Version: 1.0\nContent-Type: multipart/mixed\n",
        b"\nmime-version: 1.0\n",
        b"\n \n#cloud-config\n{}\n",
        b"From nobody Mon Jan  1 00:00:00 2024\nContent-Type: multipart/mixed; boundary=b\n\n--b",
        b'Subject: data\nContent-Type: multipart/mixed;\n\tboundary="b"\n\n--b--\n',
        b"Content-Disposition: attachment\r\nNumber-Attachments: 1\r\nMIME-Version: 1.0\r\n\r\n",
        b"X: " + b"a" * 76 + b"\n a" * 5_000 + b"\nMime-Version:1.0\n",
        encode(b"MIME-Version: 1.0\nContent-Type: multipart/mixed; boundary=b\n\n"),
        encode(b"#cloud-config\n{}\n"),
        gzip.compress(b"#cloud-config\n{}\n", mtime=0),
    ],
)
def test_user_data_for_cloud_init_is_not_run(guest: Guest, data: bytes) -> None:
    with serve_ec2(guest, data):
        outcome = guest.run()
    assert outcome.status == 0
    assert "the user-data is for cloud-init" in outcome.output
    assert "left to it (which is not in this image), nothing run" in outcome.output
    assert "running" not in outcome.output


@pytest.mark.parametrize("platform", TOOL_SETS, ids=str)
@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"\x7fELF\x02\x01\x01\0\0\0", "is binary and no script"),
        (b"PK\x03\x04\0\0", "is binary and no script"),
        ("echo a\n".encode("utf-16-le"), "is binary and no script"),
        (b"\x1f\x8b\x08 broken", "begins as gzip but cannot be unpacked"),
        (gzip.compress(b"echo cut " * 50, mtime=0)[:-9], "begins as gzip but cannot be unpacked"),
        (gzip.compress(bytes(17 << 20), mtime=0)[:16_384], "cannot be unpacked"),
        (gzip.compress(gzip.compress(b"echo a", mtime=0), mtime=0), "is binary and no script"),
        (gzip.compress(b"<html></html>", mtime=0), "is an HTML page"),
        (b"#!/bin/sh\r\necho a\r\n", "has Windows line ends"),
        (b"echo a\r\necho b\r\n", "has Windows line ends"),
        (b"\r\n#!/bin/sh\necho a\n", "has Windows line ends"),
        (b"\n#!/bin/sh\r\necho a\r\n", "has Windows line ends"),
        (b"#!/bin/sh\recho a\r", "has Windows line ends"),
        (b"\n\xef\xbb\xbf#!/bin/sh\necho a\n", "byte order mark"),
        (b"\xff\xfe" + "#!/bin/sh\n".encode("utf-16-le"), "byte order mark"),
        (b"BZh91AY&SY\x1d\x02\x01", "is binary and no script"),
        (b"<powershell>\nGet-Date\n</powershell>\n", "is for Windows"),
        (base64.b64encode(b"\x7fELF\x02\x01\x01" + bytes(50)), "is binary and no script"),
        (base64.b64encode(b"#!/bin/sh\n" + b"# a comment\n" * 8)[:-3], "cannot be decoded"),
        (b"\xef\xbb\xbf#!/bin/sh\necho a\n", "byte order mark"),
    ],
)
def test_user_data_that_cannot_run_is_refused(guest: Guest, data: bytes, message: str) -> None:
    with serve_ec2(guest, data):
        outcome = guest.run()
    assert outcome.status == REFUSED
    *decoded, line = get_lines(outcome)
    assert decoded in ([], ["phantom-user-data: the user-data is base64: decoded"])
    assert line.startswith("phantom-user-data: error: the user-data ")
    assert message in line


@pytest.mark.parametrize("page", [b"<!DOCTYPE html><html>", b" \n<HTML>", b'<?xml version="1.0"?>'])
def test_page_in_place_of_data_is_never_run(guest: Guest, page: bytes) -> None:
    with serve_ec2(guest, page):
        outcome = guest.run()
    assert outcome.status == 75
    assert "an HTML page in place of user-data" in outcome.output
    assert not guest.data.exists()


def test_gzip_is_unpacked(guest: Guest) -> None:
    data = b"#!/bin/sh\necho unpacked\nexit 3\n"
    with serve_ec2(guest, gzip.compress(data)):
        outcome = guest.run()
    assert outcome.status == 3
    assert "unpacked\n" in outcome.output
    assert guest.data.read_bytes() == data
    assert get_mode(guest.data) == 0o600


@pytest.mark.parametrize("interpreter", ["/nonexistent/sh", "python3", "/etc"])
def test_missing_interpreter(guest: Guest, interpreter: str) -> None:
    with serve_ec2(guest, f"#!{interpreter}\necho a".encode()):
        outcome = guest.run()
    assert outcome.status == 72
    assert f"asks for the interpreter {interpreter}, which is not in this image" in outcome.output


def test_log_holds_what_the_console_got(guest: Guest) -> None:
    with serve_ec2(
        guest, b"echo out; echo err >&2; i=0; while [ $((i+=1)) -lt 3000 ]; do echo $i; done"
    ):
        outcome = guest.run()
    assert guest.log.read_text() == outcome.output
    assert "out\nerr\n1\n" in outcome.output
    assert outcome.output.endswith("2999\nphantom-user-data: the user-data ended with status 0\n")


def test_log_of_the_boot_before_is_kept(guest: Guest) -> None:
    for word in (b"first", b"second", b"third"):
        with serve_ec2(guest, b"echo " + word):
            guest.run()
    assert "third" in guest.log.read_text()
    assert "second" in guest.log.with_name(guest.log.name + ".1").read_text()
    assert len(list(guest.log.parent.iterdir())) == 2


def test_log_that_cannot_be_written_stops_nothing(guest: Guest) -> None:
    guest.log.parent.rmdir()
    guest.log.parent.write_text("a file in the way")
    with serve_ec2(guest, b"echo ran; exit 4"):
        outcome = guest.run()
    assert outcome.status == 4
    assert "going on without it" in outcome.output
    assert "ran\n" in outcome.output


def test_daemon_that_keeps_the_output_open_does_not_hold_the_service(guest: Guest) -> None:
    """The daemon writes only after the fetcher has ended, and the log still gets it."""
    go = guest.root / "go"
    data = f"(while [ ! -e {go} ]; do sleep 0.05; done; echo from the daemon) & exit 5"
    with serve_ec2(guest, data.encode()):
        outcome = guest.run()
    assert outcome.status == 5
    assert outcome.output.endswith("ended with status 5\n")
    go.touch()
    deadline = time.monotonic() + 30
    while not guest.log.read_text().endswith("from the daemon\n"):
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_every_boot_by_default(guest: Guest) -> None:
    with serve_ec2(guest, b"echo ran"):
        assert "ran\n" in guest.run().output
        assert "ran\n" in guest.run().output
    assert not guest.mark.exists()


def test_once_per_instance_on_ec2(guest: Guest) -> None:
    guest.set_options(FREQUENCY="instance")
    with serve_ec2(guest, b"echo ran", instance_id="i-1"):
        assert "ran\n" in guest.run().output
        second = guest.run()
    assert second.status == 0
    assert "ran\n" not in second.output
    assert "ran on this instance before: not run again" in second.output
    assert guest.mark.read_text() == "instance-id=i-1\n"
    assert get_mode(guest.mark) == 0o600
    with serve_ec2(guest, b"echo ran", instance_id="i-2"):
        assert "ran\n" in guest.run().output


def test_once_per_instance_on_nimbus(guest: Guest) -> None:
    guest.set_options(FREQUENCY="instance")
    service = NimbusMetadata(user_data=b"echo ran")
    with MetadataServer(service) as server:
        guest.use_nimbus(server.url)
        assert "ran\n" in guest.run().output
        assert "not run again" in guest.run().output
    for changed in ("ami-id", "ami-launch-index", "local-ipv4", "public-hostname"):
        other = dict(service.meta_data) | {changed: "other"}
        with MetadataServer(NimbusMetadata(user_data=b"echo ran", meta_data=other)) as server:
            guest.use_nimbus(server.url)
            assert "ran\n" in guest.run().output, changed


@pytest.mark.parametrize("data", [b"exit 1", None, b"#cloud-config\n", b"\x7fELF\0"])
def test_only_success_counts_as_done(guest: Guest, data: bytes | None) -> None:
    guest.set_options(FREQUENCY="instance")
    with serve_ec2(guest, data, instance_id="i-1"):
        guest.run()
        assert "not run again" not in guest.run().output
    assert not guest.mark.exists()


def test_identity_that_cannot_be_had_is_asked_for_again(guest: Guest) -> None:
    guest.set_options(FREQUENCY="instance")
    with serve_ec2(guest, b"echo ran"):
        outcome = guest.run()
    assert outcome.status == 75
    assert "/latest/meta-data/instance-id" in outcome.output
    assert "ran\n" not in outcome.output


def test_run_after_one_that_was_killed(guest: Guest) -> None:
    (guest.data.parent / "work").mkdir(parents=True)
    (guest.data.parent / "work" / "output").write_text("left behind")
    with serve_ec2(guest, b"exit 6"):
        assert guest.run().status == 6


def test_init_script(guest: Guest) -> None:
    assert guest.run(INIT_SCRIPT, "status").status == 3
    with serve_ec2(guest, b"echo ran; exit 9"):
        # The platform's shell runs the script, which starts the fetcher by its own first line.
        assert guest.run(INIT_SCRIPT, "restart").status in (9, 127)
    assert guest.run(INIT_SCRIPT, "stop").status == 0
    assert guest.run(INIT_SCRIPT, "dance").status == 2


def test_init_script_does_not_wait_at_boot(guest: Guest) -> None:
    """The boot does not wait for a slow cloud or for user-data; the log gets the result."""
    waiting, done = guest.root / "waiting", "phantom-user-data: the user-data ended with status 0"
    data = f"until [ -e {waiting} ]; do sleep 0.05; done; echo ran".encode()
    with serve_ec2(guest, data):
        assert guest.run(INIT_SCRIPT, "start").status == 0
        assert not guest.log.exists() or "\nran\n" not in guest.log.read_text()
        waiting.touch()
        for _ in range(200):
            if guest.log.exists() and done in guest.log.read_text():
                break
            time.sleep(0.05)
    assert "\nran\n" in guest.log.read_text()


def test_data_of_the_platform_shell(guest: Guest, platform: Platform) -> None:
    """No shell prints anything of its own: every line is the fetcher's."""
    with serve_ec2(guest, b":"):
        lines = guest.run().output.splitlines()
    assert all(line.startswith("phantom-user-data: ") for line in lines)


def test_program_has_no_bashisms(guest: Guest) -> None:
    program = guest.root / "usr/lib/phantom/fetch-user-data"
    assert program.read_text().startswith("#!/bin/sh\n")
    subprocess.run(["sh", "-n", program], check=True)


def set_cloud_init(guest: Guest, source: str | None) -> None:
    """Writes the status of a cloud-init that found this source at this boot; None: no source."""
    status = guest.root / "run/cloud-init/status.json"
    status.parent.mkdir(exist_ok=True)
    status.write_text(json.dumps({"v1": {"datasource": source, "stage": None}}, indent=1) + "\n")


def find_note(guest: Guest, instance: str) -> Path:
    """The file by which cloud-init remembers that it ran an instance's scripts."""
    return guest.root / f"var/lib/cloud/instances/{instance}/sem/config_scripts_user"


@pytest.mark.parametrize("source", ["DataSourceEc2Local", "DataSourceNoCloud [seed=/dev/sr0]"])
def test_user_data_is_left_to_a_cloud_init_that_works(guest: Guest, source: str) -> None:
    guest.set_options(LEAVE_TO_CLOUD_INIT="yes")
    set_cloud_init(guest, source)
    with serve_ec2(guest, b"echo ran") as server:
        outcome = guest.run()
    assert outcome.status == 0
    assert outcome.output.splitlines() == [
        "phantom-user-data: cloud-init runs the user-data of this machine: left to it, nothing run"
    ]
    assert not server.requests


@pytest.mark.parametrize("source", ["off", None, "DataSourceNone"])
def test_user_data_is_run_where_cloud_init_found_no_source(
    guest: Guest, source: str | None
) -> None:
    """It runs once per instance, as under cloud-init, which a note keeps from running it again."""
    guest.set_options(LEAVE_TO_CLOUD_INIT="yes")
    if source != "off":
        set_cloud_init(guest, source)
    with serve_ec2(guest, b"echo ran", instance_id="i-1"):
        first, second = guest.run(), guest.run()
    assert "cloud-init is off or found no source of data: fetching in its place" in first.output
    assert "\nran\n" in first.output
    assert find_note(guest, "i-1").exists()
    assert "\nran\n" not in second.output and second.status == 0
    assert "ran on this instance before: not run again" in second.output
    with serve_ec2(guest, b"echo ran", instance_id="i-2"):
        assert "\nran\n" in guest.run().output


@pytest.mark.parametrize(
    ("data", "kind"),
    [(b"#cloud-config\n{}\n", ""), (b"MIME-Version: 1.0\nContent-Type: multipart/a\n", " (MIME)")],
)
def test_user_data_for_cloud_init_is_refused_when_cloud_init_is_off(
    guest: Guest, data: bytes, kind: str
) -> None:
    """Also on Nimbus, where cloud-init never runs user-data."""
    guest.set_options(LEAVE_TO_CLOUD_INIT="yes")
    told = (
        f"phantom-user-data: error: the user-data is for cloud-init{kind}, which is off or found "
        "no source of data: not run"
    )
    with serve_ec2(guest, data, instance_id="i-1"):
        outcome = guest.run()
    assert (outcome.status, outcome.output.splitlines()[-1]) == (REFUSED, told)
    assert not find_note(guest, "i-1").exists()
    with MetadataServer(NimbusMetadata(user_data=data)) as server:
        guest.use_nimbus(server.url)
        outcome = guest.run()
    assert (outcome.status, outcome.output.splitlines()[-1]) == (REFUSED, told)


def test_user_data_that_cloud_init_ran_at_an_earlier_boot(guest: Guest) -> None:
    guest.set_options(LEAVE_TO_CLOUD_INIT="yes")
    find_note(guest, "i-1").parent.mkdir(parents=True)
    find_note(guest, "i-1").touch()
    with serve_ec2(guest, b"echo ran", instance_id="i-1"):
        outcome = guest.run()
    assert "\nran\n" not in outcome.output and outcome.status == 0


def test_cloud_init_is_of_no_use_on_nimbus(guest: Guest) -> None:
    guest.set_options(LEAVE_TO_CLOUD_INIT="yes")
    set_cloud_init(guest, "DataSourceNoCloud [seed=/dev/sr0]")
    with MetadataServer(NimbusMetadata(user_data=b"echo ran")) as server:
        guest.use_nimbus(server.url)
        first, second = guest.run(), guest.run()
    assert "\nran\n" in first.output and "\nran\n" in second.output


def test_option_that_is_neither_yes_nor_no(guest: Guest) -> None:
    guest.set_options(LEAVE_TO_CLOUD_INIT="maybe")
    outcome = guest.run()
    assert outcome.status == 78
    assert outcome.output == (
        "phantom-user-data: error: PHANTOM_USER_DATA_LEAVE_TO_CLOUD_INIT=maybe in "
        f"{guest.root / 'etc/default/phantom-user-data'} is neither yes nor no\n"
    )
