"""The sandbox of EC2: moto in a process of its own, reading back, and the records that stay."""

from __future__ import annotations

import json
import os
import re
import resource
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import replace
from pathlib import Path

import pytest
from ec2_kit import DATA, SECOND, Kit
from harness import Watched, make_booted, make_release

from pipeline.clouds.ec2 import sandbox
from pipeline.clouds.ec2.cloud import Ec2
from pipeline.clouds.ec2.ebs import Ebs
from pipeline.clouds.ec2.sandbox import compare_blocks
from pipeline.clouds.ec2.sandbox_site import Ec2Sandbox
from pipeline.errors import HostError, NameTakenError, NoSpaceError, StoreError, UploadError
from pipeline.model import MIB, BootedImage, Publication, Site
from pipeline.tools import run
from pipeline.tools.aws import Account
from pipeline.tools.aws_session import make_dummy_session, make_session

SITE = Site(name="ec2-sandbox", cloud="ec2", where="built in", sandbox=True)


def make_cloud(**options: object) -> Ec2Sandbox:
    return Ec2Sandbox(replace(SITE, options=options), environ={}, pause=lambda _: None)


@pytest.fixture
def booted(tmp_path: Path) -> BootedImage:
    return make_booted(tmp_path / "disk.raw", DATA, make_cloud().disk)


def rehearse(
    cloud: Ec2Sandbox, booted: BootedImage, folder: Path, progress: Watched
) -> tuple[Publication, ...]:
    release = make_release(folder, "hello-1.2.0-4f2a9c01")
    with cloud.open(folder / "site"):
        found = cloud.find(booted.image, release) or cloud.upload(booted, release, progress)
        return cloud.publish(found, release, progress)


def test_all_of_a_site_is_rehearsed(tmp_path: Path, booted: BootedImage, progress: Watched) -> None:
    cloud = make_cloud(
        copy_to=["eu-west-1"], share_with=["all", SECOND], deprecate_after="30d", tags={"a": "b"}
    )
    published = rehearse(cloud, booted, tmp_path, progress)
    assert [each.region for each in published] == ["us-east-1", "eu-west-1"]
    assert all(each.sandbox for each in published)
    assert all(each.location.startswith("ec2://sandbox/") for each in published)
    assert any(step.startswith("reading snap-") for step in progress.steps)
    assert (
        progress.lines.count(
            "skipped: the emulator has no ec2:EnableImageDeprecation (deprecation)"
        )
        == 2
    )
    assert sorted(os.listdir(tmp_path / "site")) == ["emulator.log", "rehearsed"]
    assert (tmp_path / "site/emulator.log").read_text() == ""
    assert not (tmp_path / "builds").exists()  # no journal, no index: there are no parents


def test_the_same_content_is_not_rehearsed_twice(
    tmp_path: Path, booted: BootedImage, progress: Watched
) -> None:
    first = rehearse(make_cloud(), booted, tmp_path, progress)
    again = Watched()
    assert rehearse(make_cloud(), booted, tmp_path, again) == first
    assert again.steps == []


def test_other_content_under_the_name_is_refused(
    tmp_path: Path, booted: BootedImage, progress: Watched
) -> None:
    (first,) = rehearse(make_cloud(), booted, tmp_path, progress)
    changed = make_booted(tmp_path / "changed.raw", DATA[::-1], make_cloud().disk)
    with pytest.raises(NameTakenError) as caught:
        rehearse(make_cloud(), changed, tmp_path, progress)
    assert caught.value.what == (
        f"{first.image_id} has the name 'hello-1.2.0-4f2a9c01' already, and other content"
    )
    cloud = make_cloud()
    with cloud.open(tmp_path / "site"):
        cloud.retire(first)
        cloud.retire(first)
    assert rehearse(make_cloud(), changed, tmp_path, progress)


@pytest.mark.parametrize("spoil", ["killed before publishing", "damaged"])
def test_half_a_rehearsal_counts_as_none(
    tmp_path: Path, booted: BootedImage, progress: Watched, spoil: str
) -> None:
    rehearse(make_cloud(), booted, tmp_path, progress)
    (record,) = (tmp_path / "site/rehearsed").iterdir()
    if spoil == "damaged":
        record.write_text(record.read_text()[:100])
    else:
        record.write_text(json.dumps({**json.loads(record.read_text()), "published": False}))
    cloud = make_cloud()
    with cloud.open(tmp_path / "site"):
        assert cloud.list() == []
    again = Watched()
    rehearse(make_cloud(), booted, tmp_path, again)
    assert any(step.startswith("reading snap-") for step in again.steps)


def test_copies_are_retired_one_by_one(
    tmp_path: Path, booted: BootedImage, progress: Watched
) -> None:
    here, there = rehearse(make_cloud(copy_to=["eu-west-1"]), booted, tmp_path, progress)
    cloud = make_cloud()
    with cloud.open(tmp_path / "site"):
        cloud.retire(there)
        assert cloud.list() == [here]
        cloud.retire(here)
        assert cloud.list() == []
        assert cloud.find_leftovers() == []


# ---- reading back


def make_ebs(kit: Kit) -> Ebs:
    server = kit.ec2.server
    account = Account(make_session(environ=server.environ), endpoint=server.endpoint)
    return Ebs(account, "us-east-1")


def test_a_block_that_differs_is_found(kit: Kit) -> None:
    """The service stores a wrong block and reports success."""
    snapshot_id = kit.upload().location.rsplit("/", 1)[1]
    stored = kit.ec2.server.snapshot(snapshot_id).written
    stored[2] = stored[0]
    with pytest.raises(UploadError) as caught:
        compare_blocks(
            make_ebs(kit), snapshot_id, kit.booted.image.file, Watched(), log=Path("log")
        )
    assert str(caught.value) == (
        f"block 2 of snapshot {snapshot_id} is not the disk's (at 1 MiB)\n"
        "  do: run the same command again; if it happens again, it is a defect of phantom-image or "
        "of its emulator: tell its maintainers\n"
        "  log: log"
    )


@pytest.mark.parametrize("where", [0, 1, 2])
def test_a_disk_that_differs_is_found(kit: Kit, where: int) -> None:
    """The difference is found even where only one side has data."""
    made = kit.upload()
    snapshot_id = made.location.rsplit("/", 1)[1]
    data = bytearray(DATA)
    size = 524_288
    data[where * size : (where + 1) * size] = (b"x" if where == 1 else b"\0") * size
    other = kit.make(bytes(data)).image.file
    ebs = make_ebs(kit)
    progress = Watched()
    compare_blocks(ebs, snapshot_id, kit.booted.image.file, progress, log=Path("log"))
    assert progress.done[-1] == (3 * size, 3 * size)
    with pytest.raises(UploadError) as caught:
        compare_blocks(ebs, snapshot_id, other, progress, log=Path("log"))
    assert caught.value.what.startswith(f"block {where} of snapshot {snapshot_id} is not the disk")


# ---- Amazon is out of reach


@contextmanager
def trap() -> Iterator[tuple[str, list[bytes]]]:
    """A server that records every call; a test expects none."""
    heard: list[bytes] = []
    with socket.create_server(("127.0.0.1", 0)) as server:

        def listen() -> None:
            with suppress(OSError):
                while True:
                    peer, _ = server.accept()
                    with peer:
                        heard.append(peer.recv(4096))

        threading.Thread(target=listen, daemon=True).start()
        yield f"http://127.0.0.1:{server.getsockname()[1]}", heard
        server.shutdown(socket.SHUT_RDWR)


def test_neither_credentials_nor_proxies_nor_endpoints_of_the_host_count(
    tmp_path: Path,
    booted: BootedImage,
    progress: Watched,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with trap() as (url, heard):
        for name in ("AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_EC2", "HTTP_PROXY", "http_proxy"):
            monkeypatch.setenv(name, url)
        monkeypatch.setenv("AWS_ACCESS_KEY_ID", "AKIDREAL")
        monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "real-secret")
        monkeypatch.setenv("AWS_PROFILE", "there-is-none")
        cloud = Ec2Sandbox(SITE, pause=lambda _: None)
        assert rehearse(cloud, booted, tmp_path, progress)
        assert heard == []
    credentials = Account(make_dummy_session()).credentials()
    assert (credentials.access_key, credentials.token) == ("SANDBOX", None)


# ---- the emulator's process

_OPENED = """
import sys, time
from pathlib import Path
from pipeline.clouds.ec2.sandbox import start_emulator
from pipeline.tools import run
with start_emulator(Path(sys.argv[1])):
    (process,) = run._running
    print(process.pid, flush=True)
    time.sleep(600)
"""


def is_running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().split(") ")[1][0] != "Z"
    except OSError:
        return False


def test_the_emulator_ends_when_its_parent_is_killed(tmp_path: Path) -> None:
    root = Path(__file__).parents[2]
    with subprocess.Popen(
        [sys.executable, "-c", _OPENED, str(tmp_path)],
        env={**os.environ, "PYTHONPATH": str(root)},
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        pid = int(process.stdout.readline())
        assert is_running(pid)
        process.send_signal(signal.SIGKILL)
        process.wait()
        until = time.monotonic() + 10
        while is_running(pid) and time.monotonic() < until:
            time.sleep(0.02)
        assert not is_running(pid)


def test_the_emulator_ends_when_the_site_is_closed(tmp_path: Path) -> None:
    cloud = make_cloud()
    with cloud.open(tmp_path):
        (process,) = run._running
    assert not run._running
    assert process.returncode == 0


def test_error_without_an_installed_emulator(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hidden = tmp_path / "hidden/moto"
    hidden.mkdir(parents=True)
    (hidden / "__init__.py").write_text("raise ModuleNotFoundError('No module named moto')\n")
    root = sandbox._ENVIRONMENT["PYTHONPATH"]
    monkeypatch.setitem(sandbox._ENVIRONMENT, "PYTHONPATH", f"{hidden.parent}:{root}")
    with pytest.raises(HostError) as caught, make_cloud().open(tmp_path / "site"):
        pass
    assert str(caught.value) == (
        "the EC2 emulator (moto) is not installed\n"
        "  | ModuleNotFoundError: No module named moto\n"
        "  do: `make setup` installs what is missing; with a site of cloud ec2 in sites.yaml it is "
        "not needed"
    )


def test_a_missing_emulator_is_found_before_the_build(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "moto", None)
    with pytest.raises(HostError) as caught:
        make_cloud().check_size(MIB)
    assert "(moto) is not installed" in caught.value.what
    assert "make setup" in (caught.value.todo or "")
    Ec2(replace(SITE, sandbox=False, options={"region": "us-east-1"})).check_size(MIB)


@contextmanager
def limited_files(size: int) -> Iterator[None]:
    """Child processes can write no larger files: the nearest to a full disk without root."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_its_disk_gets_full(tmp_path: Path, booted: BootedImage, progress: Watched) -> None:
    cloud, release = make_cloud(), make_release(tmp_path, "hello-1.2.0-4f2a9c01")
    with ExitStack() as stack:
        with limited_files(700_000):
            stack.enter_context(cloud.open(tmp_path / "site"))
        with pytest.raises(NoSpaceError) as caught:
            cloud.upload(booted, release, progress)
    assert caught.value.where == str(tmp_path / "site")
    assert "again" in (caught.value.todo or "")
    assert not (tmp_path / "site/upload").exists()


def test_a_disk_that_is_too_small_is_told_before(tmp_path: Path) -> None:
    full, disk = Path("/proc"), tmp_path / "disk.raw"  # /proc has no free space
    with disk.open("wb") as file:
        file.truncate(64 * MIB)
        sandbox.check_space(full, disk)  # holes need no space
        file.write(b"x")
    with pytest.raises(NoSpaceError) as caught:
        sandbox.check_space(full, disk)
    assert caught.value.what == (
        "no space on the disk of this host: the rehearsal needs 512 KiB, 0 B are free"
    )
    assert (caught.value.where, caught.value.exit_code) == ("/proc", 17)
    assert caught.value.todo


def test_records_that_cannot_be_written_are_told(
    tmp_path: Path, booted: BootedImage, progress: Watched
) -> None:
    (tmp_path / "site").mkdir()
    (tmp_path / "site/rehearsed").write_text("in the way")
    with pytest.raises(StoreError) as caught:
        rehearse(make_cloud(), booted, tmp_path, progress)
    assert caught.value.where == str(tmp_path / "site/rehearsed") and caught.value.todo


def test_its_memory_does_not_grow_with_the_image(tmp_path: Path, progress: Watched) -> None:
    def peak(pid: int) -> int:
        status = Path(f"/proc/{pid}/status").read_text()
        found = re.search(r"VmHWM:\s+([0-9]+) kB", status)
        assert found is not None
        return int(found[1]) // 1024

    cloud = make_cloud()
    small = make_booted(tmp_path / "small.raw", DATA, cloud.disk)
    large = make_booted(tmp_path / "large.raw", os.urandom(200 * MIB), cloud.disk)
    with cloud.open(tmp_path / "site"):
        (process,) = run._running
        cloud.upload(small, make_release(tmp_path, "small"), progress)
        before = peak(process.pid)
        cloud.upload(large, make_release(tmp_path, "large"), progress)
        assert peak(process.pid) - before < 60  # MiB; the image has 200


def test_a_killed_rehearsal_leaves_nothing_that_matters(
    tmp_path: Path, booted: BootedImage, progress: Watched
) -> None:
    left = tmp_path / "site/upload"
    left.mkdir(parents=True)
    (left / "records.journal").write_text("half a line")
    assert rehearse(make_cloud(), booted, tmp_path, progress)
    assert not left.exists()
