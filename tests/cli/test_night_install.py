"""What runs a nightly every night: units, a line of cron, and their installation."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from other_users import needs_root

from pipeline.errors import InstallError
from pipeline.nightly.install import (
    CRON,
    LOGS,
    ROTATE,
    SERVICE,
    SETTINGS,
    TIMER,
    Nightly,
    describe,
    install,
    make_cron_files,
    make_cron_line,
    make_files,
)

REPOSITORY = Path(__file__).parents[2]
NIGHTLY = Nightly(
    command=(
        "/usr/bin/env",
        "phantom-image",
        "--build",
        "/srv/images/build",
        "nightly",
        "a 9%",
    ),
    project=Path("/srv/images"),
    build=Path("/srv/images/build"),
    store=Path("/srv/a store"),
)


def read_unit(text: str) -> dict[str, str]:
    return dict(reversed(re.findall(r"^(\w+)=(.*)$", text, re.MULTILINE)))


def test_the_units_are_what_systemd_takes(tmp_path: Path) -> None:
    if shutil.which("systemd-analyze") is None:
        pytest.skip("no systemd-analyze")
    for path, text in make_files(NIGHTLY).items():
        # The user is not there, and the folder need not be.
        (tmp_path / path.name).write_text(text.replace(f"User={NIGHTLY.user}\n", "User=root\n"))
    done = subprocess.run(
        ["systemd-analyze", "verify", *map(str, tmp_path.iterdir())],
        capture_output=True,
        text=True,
        env={**os.environ, "SYSTEMD_LOG_LEVEL": "warning"},
        check=False,
    )
    ours = [line for line in done.stderr.splitlines() if "phantom-image-nightly" in line]
    assert ours == []
    assert done.returncode == 0, done.stderr


def test_the_timer_can_be_enabled(tmp_path: Path) -> None:
    if shutil.which("systemctl") is None:
        pytest.skip("no systemctl")
    for path, text in make_files(NIGHTLY).items():
        place = tmp_path / path.relative_to("/")
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_text(text)
    subprocess.run(["systemctl", f"--root={tmp_path}", "enable", TIMER.name], check=True)
    wanted = tmp_path / "etc/systemd/system/timers.target.wants" / TIMER.name
    assert wanted.is_symlink()
    calendar = read_unit(make_files(NIGHTLY)[TIMER])["OnCalendar"]
    assert calendar == "*-*-* 02:30:00"
    subprocess.run(["systemd-analyze", "calendar", calendar], check=True, capture_output=True)


def test_the_service_has_the_least_rights() -> None:
    unit = read_unit(make_files(NIGHTLY)[SERVICE])
    assert [unit[key] for key in ("User", "WorkingDirectory", "ProtectSystem", "ProtectHome")] == [
        *("phantom-image", "/srv/images", "strict", "yes"),
    ]
    assert unit["ReadWritePaths"] == ('"/srv/images/build" "/srv/a store" "/var/lib/phantom-image"')
    assert unit["Environment"] == '"PHANTOM_STORE=/srv/a store"'
    assert unit["ExecStart"] == (
        '/usr/bin/env phantom-image --build /srv/images/build nightly "a 9%%"'
    )
    at_home = Nightly(
        command=("/home/me/phantom-image", "nightly"), project=Path("/srv"), build=Path("/b")
    )
    assert read_unit(make_files(at_home)[SERVICE])["ProtectHome"] == "read-only"


def test_cron_runs_the_command_in_its_folder_with_its_settings(tmp_path: Path) -> None:
    program = tmp_path / "a program"
    program.write_text(
        '#!/bin/sh\npwd\necho "$PHANTOM_X $PHANTOM_STORE"\nnice\nprintf "<%s>" "$@"\n'
        "echo trouble >&2\n"
    )
    program.chmod(0o755)
    (tmp_path / "project").mkdir()
    (tmp_path / "settings").write_text("PHANTOM_X='a b'\n")
    nightly = Nightly(
        command=(str(program), "nightly", "50%", "a'b"),
        project=tmp_path / "project",
        build=Path("/b"),
        store=Path("/a store"),
        time="04:05",
    )
    line = make_cron_line(nightly)
    fields = line.split(" ", 6)
    assert fields[:6] == ["5", "4", "*", "*", "*", "phantom-image"]
    assert line in make_cron_files(nightly)[CRON].splitlines()
    # What cron does with a percent sign (crontab(5)).
    command = fields[6].replace(r"\%", "\0")
    assert "%" not in command
    command = command.replace("\0", "%").replace(str(SETTINGS), shlex.quote(f"{tmp_path}/settings"))
    command = command.replace(str(LOGS), shlex.quote(str(tmp_path)))
    subprocess.run(["/bin/sh", "-c", command], check=True, env={"PATH": "/usr/bin:/bin"})
    assert (tmp_path / "nightly.log").read_text() == (
        f"{tmp_path}/project\na b /a store\n10\n<nightly><50%><a'b>trouble\n"
    )


def test_the_log_is_rotated(tmp_path: Path) -> None:
    text = make_cron_files(NIGHTLY)[ROTATE]
    lines = [line.strip() for line in text.splitlines()]
    assert lines[0] == f"{LOGS}/*.log {{" and lines[-1] == "}"
    # logrotate refuses a folder that its user may write to, unless it becomes that user.
    assert "su phantom-image phantom-image" in lines
    if shutil.which("logrotate") is not None and os.geteuid() == 0:
        (tmp_path / "logrotate").write_text(text.replace("su phantom-image phantom-image", ""))
        subprocess.run(["logrotate", "--debug", str(tmp_path / "logrotate")], check=True)


def test_all_that_would_be_installed_is_shown() -> None:
    lines = list(describe(NIGHTLY))
    assert [line for line in lines if line.startswith("# ---- ")] == [
        f"# ---- {path}" for path in (SERVICE, TIMER, CRON, ROTATE)
    ]
    assert make_cron_line(NIGHTLY) in lines


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (
            {"user": "Web User"},
            "'Web User' is no user's name\n  do: use up to 32 lower-case letters, digits, '_' "
            "and '-'",
        ),
        ({"time": "24:00"}, "'24:00' is no time of day\n  do: write it as 02:30"),
        (
            {"project": Path("/srv/a\nUser=root")},
            "/srv/a\\nUser=root: systemd and cron have no safe way to write this path\n  do: use a "
            "folder whose name is ASCII and has none of \" ' \\ % $ :",
        ),
    ],
)
def test_what_no_unit_can_hold_is_refused(values: dict[str, Path | str], message: str) -> None:
    known = {"command": ("/x", "nightly"), "project": Path("/srv"), "build": Path("/b")}
    with pytest.raises(InstallError) as caught:
        Nightly(**(known | values))  # type: ignore[arg-type]
    assert str(caught.value) == message
    assert caught.value.exit_code == 74


def test_only_root_installs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    with pytest.raises(InstallError) as caught:
        list(install(NIGHTLY))
    assert str(caught.value) == (
        "only root can install the nightly\n"
        "  do: run the same command with sudo, or with --show in place of --install"
    )


# ---- on a copy of this host's folders

# What is written to these folders goes to a file system of the test's own.
_ON_A_COPY = """
for name in etc var/lib var/log; do
    mkdir -p "$0/$name/upper" "$0/$name/work"
    mount -t overlay overlay \
        -o "lowerdir=/$name,upperdir=$0/$name/upper,workdir=$0/$name/work" "/$name"
done
mkdir -p /etc/cron.d
exec "$@"
"""
_INSTALL = """
import sys
from pathlib import Path
from pipeline.errors import PhantomError
from pipeline.nightly.install import Nightly, install
program, project, build = map(Path, sys.argv[1:])
nightly = Nightly(command=(str(program), "nightly"), project=project, build=build)
try:
    print(*install(nightly), sep="\\n")
except PhantomError as error:
    sys.exit(str(error))
"""
# As the unit has it: the user, without rights of his own; of capabilities only those that programs
# of root's may get; a host that is read-only but the folder of builds.
_WAY = """
mount --bind "$2" "$2"
mount -o remount,bind,ro /
exec setpriv --reuid=phantom-image --regid=phantom-image --init-groups --inh-caps=-all \
    --bounding-set="$3" -- env PYTHONPATH="$1" TMPDIR="$2" "$0" -c '
import sys
from pathlib import Path
from pipeline.tools.namespace import find_way
print(find_way(Path(sys.argv[1])))' "$2"
"""


@pytest.fixture
def place() -> Iterator[Path]:
    """A folder that every user reaches."""
    folder = Path(tempfile.mkdtemp(prefix="phantom-install-"))
    folder.chmod(0o755)
    yield folder
    shutil.rmtree(folder)


@pytest.fixture
def host(place: Path) -> Iterator[tuple[str, ...]]:
    """The words that run a command on the copy."""
    copy = make(place / "copy")
    subprocess.run(["mount", "-t", "tmpfs", "tmpfs", str(copy)], check=True)
    try:
        yield ("unshare", "--mount", "sh", "-euc", _ON_A_COPY, str(copy))
    finally:
        subprocess.run(["umount", str(copy)], check=True)


def make(folder: Path) -> Path:
    folder.mkdir(parents=True)
    return folder


@needs_root
def test_root_installs_and_the_user_can_make_namespaces(host: tuple[str, ...], place: Path) -> None:
    project = make(place / "project")
    build = project / "build"
    commands = [
        shlex.join([sys.executable, "-c", _INSTALL, "/usr/bin/true", str(project), str(build)]),
        "getent passwd phantom-image; grep phantom-image: /etc/subuid /etc/subgid",
        f"stat -c '%U:%G %a %n' {SETTINGS} {CRON} {ROTATE} {LOGS} {build}",
        shlex.join(
            ["sh", "-euc", _WAY, sys.executable, str(REPOSITORY), str(build), bounding_set()]
        ),
    ]
    done = subprocess.run(
        [*host, "sh", "-euc", "\n".join(commands)],
        capture_output=True,
        text=True,
        cwd="/",
        env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
        check=False,
    )
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    numbers = re.fullmatch(r"gave phantom-image the users and groups (\d+)-\d+ .*", lines[1])
    assert numbers is not None
    assert [lines[0], *lines[2:]] == [
        "made the user phantom-image, at home in /var/lib/phantom-image",
        f"made {build}",
        f"made {LOGS}",
        *(f"wrote {path}" for path in (SETTINGS, CRON, ROTATE)),
        lines[7],
        *(f"/etc/{name}:phantom-image:{numbers[1]}:65536" for name in ("subuid", "subgid")),
        f"root:phantom-image 640 {SETTINGS}",
        *(f"root:root 644 {path}" for path in (CRON, ROTATE)),
        *(f"phantom-image:phantom-image 755 {path}" for path in (LOGS, build)),
        "Way(mapped=True, refused='', mend=None)",
    ]
    assert lines[7].endswith(":/var/lib/phantom-image:/usr/sbin/nologin")


def bounding_set() -> str:
    """The unit's, as setpriv takes it."""
    names = read_unit(make_files(NIGHTLY)[SERVICE])["CapabilityBoundingSet"].split()
    return ",".join(["-all", *(f"+{name.removeprefix('CAP_').lower()}" for name in names)])


@needs_root
def test_a_folder_that_the_user_cannot_use_is_an_error(host: tuple[str, ...], place: Path) -> None:
    secret = make(place / "secret")
    secret.chmod(0o700)
    build = make(place / "build")

    def try_it(project: Path) -> str:
        done = subprocess.run(
            [*host, sys.executable, "-c", _INSTALL, "/usr/bin/true", str(project), str(build)],
            capture_output=True,
            text=True,
            env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
            check=False,
        )
        assert done.returncode == 1
        return done.stderr

    assert try_it(secret) == (
        f"{secret}: the user phantom-image may not read it\n"
        "  do: move it to where everybody may read it, such as /opt or /srv\n"
    )
    assert try_it(place) == (
        f"{build}: the user phantom-image may not write to it\n"
        f"  do: `sudo chown -R phantom-image: {build}` gives it away\n"
    )
