"""Several fetchers at once: one works, the others wait for it."""

from __future__ import annotations

import os
import random
import subprocess
import time
from pathlib import Path

import pytest
from faulty_metadata import Ec2Version1
from fetcher_guest import RUN_SECONDS, TOOL_SETS, Guest, find
from soak import examples

from pipeline.machine.metadata import MetadataServer

pytestmark = pytest.mark.parametrize("platform", TOOL_SETS, ids=str)

FETCHERS = 3
DATA = 'echo begun >>"$PHANTOM_ROOT/runs"; sleep 0.2; echo ended >>"$PHANTOM_ROOT/runs"'


def start(guest: Guest) -> subprocess.Popen[str]:
    return subprocess.Popen(
        guest.make_command(),
        env=guest.make_environment(),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def end_all(fetchers: list[subprocess.Popen[str]]) -> list[str]:
    """What each said, all of them successful."""
    said = [fetcher.communicate(timeout=RUN_SECONDS)[0] for fetcher in fetchers]
    assert [fetcher.returncode for fetcher in fetchers] == [0] * len(fetchers), said
    return said


def runs(guest: Guest) -> list[str]:
    return (guest.root / "runs").read_text().split()


def wait_for(path: Path) -> None:
    deadline = time.monotonic() + RUN_SECONDS
    while not path.exists():
        assert time.monotonic() < deadline, path
        time.sleep(0.02)


@pytest.mark.parametrize("frequency", ["instance", "boot"])
def test_one_after_the_other(guest: Guest, frequency: str) -> None:
    guest.set_options(FREQUENCY=frequency)
    service = Ec2Version1(user_data=DATA.encode(), meta_data={"instance-id": "i-1"})
    with MetadataServer(service) as server:
        guest.use_ec2(server.url)
        said = end_all([start(guest) for _ in range(FETCHERS)])
    times = 1 if frequency == "instance" else FETCHERS
    assert runs(guest) == ["begun", "ended"] * times
    assert sum("not run again" in each for each in said) == FETCHERS - times
    assert sum("another fetcher is at work (process " in each for each in said) >= 1
    assert not any("there is no user-data" in each or "error" in each for each in said), said
    assert "there is no" not in guest.log.read_text()
    left = sorted(path.name for path in guest.data.parent.iterdir())
    assert left == (["instance", "user-data"] if frequency == "instance" else ["user-data"])


def test_lock_of_a_fetcher_that_was_killed(guest: Guest) -> None:
    """Those that come after it share the removal of its lock."""
    guest.set_options(MAX_TRIES=1000, INTERVAL=1)
    with MetadataServer(Ec2Version1(meta_data={}), late=1000) as server:
        guest.use_ec2(server.url)
        killed = start(guest)
        wait_for(guest.data.parent / "work")
        killed.kill()
        killed.communicate()
    assert (guest.data.parent / "lock").exists()
    guest.set_options(FREQUENCY="instance")
    service = Ec2Version1(user_data=DATA.encode(), meta_data={"instance-id": "i-1"})
    with MetadataServer(service) as server:
        guest.use_ec2(server.url)
        end_all([start(guest) for _ in range(FETCHERS)])
    assert runs(guest) == ["begun", "ended"]


HELD_RM = f"""#!/bin/sh
if [ "$*" = "-f $PHANTOM_ROOT/var/lib/phantom/$HELD" ]; then
    until [ -e "$GO" ]; do {find("sleep")} 0.02; done
fi
exec {find("rm")} "$@"
"""


def test_removal_that_was_killed(guest: Guest) -> None:
    """Two fetchers find the lock left over of one that was killed while it removed the lock of one
    killed before: however slowly each removes them, it removes none of the other, which waits."""
    (guest.path / "rm").unlink()
    (guest.path / "rm").write_text(HELD_RM)
    (guest.path / "rm").chmod(0o755)
    guest.data.parent.mkdir()
    for name in ("lock", "lock.old"):
        (guest.data.parent / name).write_text("4194305 5 x\n")
    data = 'echo begun >>"$PHANTOM_ROOT/runs"; sleep 1.5; echo ended >>"$PHANTOM_ROOT/runs"'
    fetchers = []
    with MetadataServer(Ec2Version1(user_data=data.encode())) as server:
        guest.use_ec2(server.url)
        for name in ("lock.old", "lock"):
            guest.environment.update(HELD=name, GO=str(guest.root / f"go-{name}"))
            fetchers.append(start(guest))
            time.sleep(1.5)
        for name in ("lock.old", "lock"):
            (guest.root / f"go-{name}").touch()
            time.sleep(0.7)
        end_all(fetchers)
    assert runs(guest) == ["begun", "ended"] * 2
    assert [path.name for path in guest.data.parent.iterdir()] == ["user-data"]


@pytest.mark.soak
def test_many_that_are_killed_at_random(guest: Guest) -> None:
    """Whenever some are killed, no two work at once, and those that are left end well."""
    draw = random.Random(str(guest.root.name))
    data = (
        'mkdir "$PHANTOM_ROOT/alone" || echo twice >>"$PHANTOM_ROOT/runs"; sleep 0.05; '
        'rmdir "$PHANTOM_ROOT/alone"; echo ran >>"$PHANTOM_ROOT/runs"'
    )
    with MetadataServer(Ec2Version1(user_data=data.encode())) as server:
        guest.use_ec2(server.url)
        for _ in range(examples(2)):
            fetchers = [start(guest) for _ in range(6)]
            for killed in fetchers[::2]:
                time.sleep(draw.random() / 3)
                killed.kill()
                killed.communicate()
            end_all(fetchers[1::2])
        # All others may have ended before the last one was killed: the next takes its lock.
        end_all([start(guest)])
    assert "twice" not in runs(guest)
    assert [path.name for path in guest.data.parent.iterdir()] == ["user-data"]


@pytest.mark.parametrize("content", ["", "1 of an earlier boot\n", "4194305 5 x\n", "words\n"])
def test_lock_that_was_left_over(guest: Guest, content: str) -> None:
    guest.data.parent.mkdir()
    (guest.data.parent / "lock").write_text(content)
    (guest.data.parent / "lock.old").write_text(content)
    with MetadataServer(Ec2Version1(user_data=b"exit 3")) as server:
        guest.use_ec2(server.url)
        assert guest.run().status == 3


def test_user_data_of_a_fetcher_that_was_killed(guest: Guest) -> None:
    """It goes on, and no second fetcher runs it meanwhile, nor after it has succeeded."""
    guest.set_options(FREQUENCY="instance")
    go = guest.root / "go"
    data = f'echo begun >>"$PHANTOM_ROOT/runs"; until [ -e {go} ]; do sleep 0.05; done; exit 0'
    service = Ec2Version1(user_data=data.encode(), meta_data={"instance-id": "i-1"})
    with MetadataServer(service) as server:
        guest.use_ec2(server.url)
        killed = start(guest)
        wait_for(guest.root / "runs")
        killed.terminate()
        assert killed.wait() != 0
        assert killed.stdout is not None
        killed.stdout.close()
        second = start(guest)
        time.sleep(0.5)
        assert second.poll() is None
        go.touch()
        (said,) = end_all([second])
    assert "not run again" in said
    assert runs(guest) == ["begun"]


def test_user_data_that_starts_the_fetcher(guest: Guest) -> None:
    """It would wait for the user-data, which waits for it."""
    command = " ".join(guest.make_command())
    data = f"PATH={guest.path} {command}"
    with MetadataServer(Ec2Version1(user_data=data.encode())) as server:
        guest.use_ec2(server.url)
        outcome = guest.run()
    assert outcome.status == 75
    assert "error: the user-data has started the fetcher" in outcome.output


@pytest.mark.skipif(os.geteuid() != 0, reason="only root mounts a small file system")
def test_a_full_disk(guest: Guest) -> None:
    guest.data.parent.mkdir()
    mount = 'mount -t tmpfs -o nr_inodes=1 none "$1" && shift && exec "$@"'
    words = [
        str(find("unshare")),
        "-m",
        str(find("sh")),
        "-ec",
        mount,
        "sh",
        str(guest.data.parent),
    ]
    ended = subprocess.run(
        [*words, *guest.make_command()],
        env={**guest.make_environment(), "PATH": f"{guest.path}:/usr/bin:/bin"},
        capture_output=True,
        text=True,
        timeout=RUN_SECONDS,
        check=False,
    )
    assert ended.returncode == 73
    assert ended.stdout.endswith(f"error: cannot write in {guest.data.parent}\n")


@pytest.mark.parametrize("tool", ["head", "mv", "tail", "tr"])
def test_program_that_fails_is_not_taken_for_absent_data(guest: Guest, tool: str) -> None:
    (guest.path / tool).unlink()
    (guest.path / tool).symlink_to("/bin/false")
    with MetadataServer(Ec2Version1(user_data=b"\n#!/bin/sh\nexit 0\n")) as server:
        guest.use_ec2(server.url)
        outcome = guest.run()
    assert outcome.status in (73, 75)
    assert "there is no user-data" not in outcome.output
