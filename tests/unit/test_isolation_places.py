"""Where builds run: file systems and their options, folders that are taken, other users."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from cli_runs import REPOSITORY
from other_users import COUNT, FIRST, OtherUser, needs_root, other_user

pytestmark = needs_root

ENVIRONMENT = {"PATH": os.environ["PATH"], "PYTHONPATH": str(REPOSITORY)}
_RUN = """
import json, sys
from pathlib import Path
from pipeline.errors import PhantomError
from pipeline.model import NoProgress
from pipeline.tools import namespace
class Steps(NoProgress):
    def step(self, text, *, seconds=None):
        print(text, file=sys.stderr)
work, script, mapped = Path(sys.argv[1]), sys.argv[2], sys.argv[3].startswith("mapped")
for name in ("out", "build"):
    (work / name).mkdir(parents=True)
if not mapped:
    namespace.find_way = lambda folder: namespace.Way(mapped=False, refused="the test says so")
try:
    namespace.run_isolated(
        ["sh", "-euc", f"echo begun; {script}", "sh", str(work)],
        view=namespace.View(
            readable=[Path(name) for name in sys.argv[4:]], writable=[work / "out", work / "build"]
        ),
        folder=work / "namespace",
        environment={"PATH": f"{namespace.PROGRAMS}:/usr/sbin:/usr/bin"},
        log=work / "log",
        progress=Steps(),
    )
except PhantomError as error:
    sys.exit(str(error))
print((work / "log").read_text().partition("\\nbegun\\n")[2].rpartition("# status")[0], end="")
"""


@pytest.fixture
def user() -> Iterator[OtherUser]:
    with other_user() as user:
        yield user


def isolated(
    work: Path,
    script: str,
    *readable: Path,
    way: str = "mapped",
    user: OtherUser | None = None,
    before: str = "",
) -> list[str]:
    """As `run_script`, of what it prints."""
    return run_script(
        work, script, *readable, way=way, user=user, before=before
    ).stdout.splitlines()


def run_script(
    work: Path,
    script: str,
    *readable: Path,
    way: str = "mapped",
    user: OtherUser | None = None,
    before: str = "",
) -> subprocess.CompletedProcess[str]:
    """Runs a script that sees `out` and `build` of a folder; `before` is done in a mount
    namespace of its own."""
    argv = command(work, script, *readable, way=way, user=user, before=before)
    done = subprocess.run(
        argv, env=ENVIRONMENT, cwd="/", capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return done


def command(
    work: Path, script: str, *readable: Path, way: str, user: OtherUser | None, before: str = ""
) -> list[str]:
    prefix = ["unshare", "--mount", "sh", "-euc", f'{before}\nexec "$@"', "sh"]
    words = [str(work), script, way, *map(str, readable)]
    return [*prefix, *(user.prefix if user else ()), sys.executable, "-c", _RUN, *words]


def test_a_build_without_network_knows_no_resolver(tmp_path: Path) -> None:
    """Else the host's would lie in images: packages keep what is in its place."""
    for way in ("mapped", "root"):
        assert isolated(tmp_path / way, "cat /etc/resolv.conf", way=way) == []


def test_a_build_has_no_terminal(tmp_path: Path) -> None:
    """It is in a session of its own, so /dev/tty is not the one of who started it."""
    for way in ("mapped", "root"):
        (session,) = isolated(tmp_path / way, 'cut -d " " -f 6 /proc/self/stat', way=way)
        assert session != "0"  # as one outside would be told


def test_a_store_below_the_folder_for_mounts(user: OtherUser) -> None:
    show = f'mount --bind "{user.folder}" /mnt'
    for number, way in enumerate(("mapped", "root")):
        who = user if way == "mapped" else None
        work = Path("/mnt", str(number))
        seen = isolated(work, 'ls "$1"; touch "$1/out/made"', way=way, user=who, before=show)
        assert seen == ["build", "out"]
        assert (user.folder / str(number) / "out/made").exists()


def test_a_file_system_with_options_that_must_be_kept(user: OtherUser) -> None:
    """diskimage-builder mounts its hooks read-only by their folder and their place."""
    (user.folder / "work").mkdir()
    os.chown(user.folder / "work", user.folder.stat().st_uid, -1)
    options = "remount,bind,nosuid,nodev,noexec,noatime"
    work = f'"{user.folder}/work"'
    show = f"mount --bind {work} {work}; mount -o {options} {work}"
    script = """
        cd "$1/build"; mkdir hooks place
        sudo mount --bind hooks place
        sudo mount -o remount,ro,bind hooks place
        touch place/file 2>/dev/null && echo "can be written"
        sudo umount -f place
        rmdir place
    """
    assert isolated(user.folder / "work/one", script, user=user, before=show) == []
    assert isolated(user.folder / "work/other", script, before=show) == []


def test_files_on_a_file_system_that_cannot_map_owners(tmp_path: Path) -> None:
    """Root's build sees them as everybody does."""
    for name in ("lower", "upper", "kept", "seen"):
        (tmp_path / name).mkdir()
    (tmp_path / "lower/file").write_text("content")
    layers = f"lowerdir={tmp_path}/lower,upperdir={tmp_path}/upper,workdir={tmp_path}/kept"
    show = f'mount -t overlay -o "{layers}" phantom "{tmp_path}/seen"'
    read = (
        f'cat "{tmp_path}/seen/file"; echo; touch "{tmp_path}/seen/x" 2>/dev/null && echo wrote; :'
    )
    assert isolated(tmp_path / "work", read, tmp_path / "seen", before=show) == ["content"]


def test_a_user_reads_what_his_groups_may(user: OtherUser) -> None:
    """A store that a group shares is closed to everybody else."""
    shared = user.folder / "shared"
    shared.mkdir()
    (shared / "file").write_text("the group's\n")
    for path in (shared / "file", shared):
        os.chown(path, 0, 61_001)
        path.chmod(0o750)
    member = OtherUser(
        folder=user.folder,
        prefix=tuple(word.replace("--clear-groups", "--groups=61001") for word in user.prefix),
    )
    script = f'cat "{shared}/file"'
    assert isolated(user.folder / "work", script, shared, user=member) == ["the group's"]


def test_no_other_user_reaches_what_root_s_build_makes(tmp_path: Path, user: OtherUser) -> None:
    """On the disk its files are root's: a program that its hooks made setuid would be too."""
    make = 'cp /usr/bin/id "$1/build/id"; chmod 4755 "$1/build/id"'
    isolated(user.folder / "work", make)
    assert (user.folder / "work/build/id").stat().st_mode & 0o7777 == 0o4755
    reached = subprocess.run(
        [*user.prefix, "sh", "-c", f"exec {user.folder}/work/build/id -u"],
        capture_output=True,
        check=False,
    )
    assert reached.returncode != 0 and reached.stdout == b""


def test_files_with_capabilities_are_the_same_either_way(tmp_path: Path, user: OtherUser) -> None:
    """The kernel notes whose root set them; inside, nobody sees that."""
    make = """
        mkdir "$1/build/tree"; cd "$1/build/tree"; cp /usr/bin/id ping
        setcap cap_net_raw+ep ping 2>/dev/null || /usr/bin/python3 -c '
import os; os.setxattr("ping", "security.capability", bytes.fromhex("0100000200200000"+24*"0"))'
        touch -d @0 ping .
        tar -c --format=posix --pax-option=delete=atime,delete=ctime --numeric-owner \
            --xattrs --xattrs-include="*" ping | sha256sum
        E2FSPROGS_FAKE_TIME=1 mke2fs -q -F -t ext4 -d . -U 6f2a0a52-5a3c-5a3e-9d3b-0a6f9f6c1f1e \
            -E hash_seed=6f2a0a52-5a3c-5a3e-9d3b-0a6f9f6c1f1e ../image 4M
        debugfs -R "ea_get -x ping security.capability" ../image 2>/dev/null
    """
    told = [
        isolated(user.folder / f"work-{way}", make, way=way, user=who)
        for way, who in (("mapped", user), ("mapped-own", None), ("root", None))
    ]
    assert any(line.startswith("security.capability (20) = 01 00 00 02 ") for line in told[0])
    assert told[0] == told[1] == told[2]


def test_a_range_that_is_large_enough_is_found(user: OtherUser) -> None:
    etc = Path(user.prefix[5])
    for name in ("subuid", "subgid"):
        small = f"phantom-tester:{FIRST + COUNT}:10\n"
        (etc / name).write_text(small + (etc / name).read_text())
    assert isolated(user.folder / "work", "tail -n 1 /proc/self/uid_map", user=user)


def test_root_of_the_host_is_warned_of(tmp_path: Path) -> None:
    done = run_script(tmp_path / "root", "true", way="root")
    assert done.stderr == "warning: hooks and scripts are root on this host: the test says so\n"
    assert run_script(tmp_path / "mapped", "true").stderr == ""


@pytest.mark.parametrize("root", [False, True], ids=["user", "root"])
def test_what_a_killed_build_left_can_be_removed(user: OtherUser, root: bool) -> None:
    """Even what belongs to others of its namespace, in folders that only these may enter."""
    work = user.folder / "work"
    who = None if root else user
    script = """
        cd "$1/build"; mkdir -p a/b; touch a/b/file; chown -R 33:44 a; chmod 0700 a
        touch done; sleep 1000
    """
    process = subprocess.Popen(
        command(work, script, way="mapped", user=who), env=ENVIRONMENT, cwd="/"
    )
    end = time.monotonic() + 60
    while not (work / "build/done").exists():
        assert time.monotonic() < end and process.poll() is None
        time.sleep(0.05)
    process.kill()
    process.wait()
    while running := [path.name for path in Path("/proc").glob("[0-9]*") if _names(path, work)]:
        assert time.monotonic() < end, running
        time.sleep(0.05)
    assert (work / "build/a").stat().st_uid == (33 if root else FIRST + 32)
    remove = "import sys; from pathlib import Path; from pipeline.tools import namespace; "
    remove += "namespace.remove_tree(Path(sys.argv[1]))"
    prefix = () if root else user.prefix
    argv = [*prefix, sys.executable, "-c", remove, str(work)]
    subprocess.run(argv, env=ENVIRONMENT, cwd="/", check=True)
    assert list(user.folder.iterdir()) == []


def _names(process: Path, folder: Path) -> bool:
    """Whether a process's command or mounts name a folder."""
    try:
        texts = [(process / name).read_bytes() for name in ("cmdline", "mountinfo")]
    except OSError:
        return False
    return any(bytes(folder) in text for text in texts)
