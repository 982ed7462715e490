"""What runs a nightly every night: units of systemd, or a line of cron, as a user of its own."""

from __future__ import annotations

import os
import re
import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from pipeline.errors import InstallError, PhantomError
from pipeline.files import write_atomically
from pipeline.tools import isolate, run

NAME = "phantom-image-nightly"
USER, TIME = "phantom-image", "02:30"
SETTINGS = Path("/etc/default", NAME)
SERVICE, TIMER = (Path("/etc/systemd/system", f"{NAME}.{kind}") for kind in ("service", "timer"))
CRON = Path("/etc/cron.d", NAME)
ROTATE = Path("/etc/logrotate.d", NAME)
LOGS = Path("/var/log", NAME)
_HOMES = ("/home", "/root", "/run/user")
_USER = re.compile("[a-z_][a-z0-9_-]{0,31}")
_UNSAFE = re.compile(r"[^ -~]|[\"'\\%$:]")
_TIME = re.compile("([01][0-9]|2[0-3]):([0-5][0-9])")

_SETTINGS = """\
# Variables of phantom-image's nightly, NAME=value: mirrors, credentials, proxies. Only root and the
# nightly's own user may read this file.
"""
_SERVICE = """\
[Unit]
Description=Builds and publishes appliances that have changed
Wants=network-online.target
After=network-online.target

[Service]
Type=oneshot
User={user}
WorkingDirectory={project}
EnvironmentFile=-{settings}
{environment}ExecStart={command}
UMask=0027

# Others on this host come first. A guest that the kernel ends for want of memory fails its boot
# check, and not the night.
Nice=10
CPUWeight=50
IOWeight=50
OOMPolicy=continue
# The command gets the signal, and ends what it has started.
KillMode=mixed
TimeoutStopSec=3min

# All of the host is read-only but these folders, and homes are hidden where nothing needs them.
ProtectSystem=strict
ReadWritePaths={writable}
# Where mail of a hook goes, if Postfix is there.
ReadWritePaths=-/var/spool/postfix/maildrop
ProtectHome={homes}
PrivateTmp=yes
DevicePolicy=closed
DeviceAllow=/dev/kvm rw
ProtectControlGroups=yes
KeyringMode=private
LimitCORE=0
# A root file system is built as the root of a user namespace. newuidmap and newgidmap, which give
# it its users, are programs of root's that need these capabilities; the nightly itself has none.
# So there must be no NoNewPrivileges, nor what implies it (PrivateDevices, SystemCallFilter,
# Restrict...=, MemoryDenyWriteExecute, which stops QEMU too); and nothing that covers a part of
# /proc (ProtectKernelTunables, ProtectKernelLogs, ProtectProc): the kernel then refuses a new one.
CapabilityBoundingSet=CAP_SETUID CAP_SETGID CAP_DAC_OVERRIDE CAP_SYS_ADMIN
"""
_TIMER = """\
[Unit]
Description=Runs {name} every night

[Timer]
OnCalendar=*-*-* {time}:00
# After a night in which the host was off, it runs at the next start.
Persistent=yes

[Install]
WantedBy=timers.target
"""
_CRON = """\
SHELL=/bin/sh
PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin
# m h dom mon dow user command
{line}
"""
_ROTATE = """\
{logs}/*.log {{
    su {user} {user}
    weekly
    rotate 8
    compress
    delaycompress
    missingok
    notifempty
}}
"""


@dataclass(frozen=True, kw_only=True)
class Nightly:
    """What is to run every night, and as whom. All paths are absolute."""

    command: tuple[str, ...]
    """The program and its arguments."""
    project: Path
    """The folder that it runs in."""
    build: Path
    """The folder of builds."""
    store: Path | None = None
    """The store's folder, where it is not in that of builds."""
    catalog: Path | None = None
    """The folder of the catalog that it writes."""
    readable: tuple[Path, ...] = ()
    """What else it reads: definitions, sites."""
    user: str = USER
    time: str = TIME
    """Of the host's clock, as 02:30."""

    @property
    def writable(self) -> tuple[Path, ...]:
        return tuple(each for each in (self.build, self.store, self.catalog) if each is not None)

    def __post_init__(self) -> None:
        """Raises InstallError for a user's name or a time that is none."""
        if not _USER.fullmatch(self.user):
            raise InstallError(
                f"{self.user[:40]!r} is no user's name",
                todo="use up to 32 lower-case letters, digits, '_' and '-'",
            )
        if not _TIME.fullmatch(self.time):
            raise InstallError(f"{self.time[:40]!r} is no time of day", todo="write it as 02:30")
        for path in (self.project, *self.writable, *self.command[:1]):
            if _UNSAFE.search(str(path)):
                raise InstallError(
                    "systemd and cron have no safe way to write this path",
                    where=str(path),
                    todo="use a folder whose name is ASCII and has none of \" ' \\ % $ :",
                )


# ---- the files


def make_files(nightly: Nightly) -> dict[Path, str]:
    """The units of systemd, by their paths."""
    of_all = (nightly.project, *nightly.writable, *nightly.readable, Path(nightly.command[0]))
    at_home = any(path.is_relative_to(home) for path in of_all for home in _HOMES)
    service = _SERVICE.format(
        user=nightly.user,
        project=nightly.project,
        settings=SETTINGS,
        environment="".join(f'Environment="{each}"\n' for each in _environment(nightly)),
        command=" ".join(map(_quote_for_systemd, nightly.command)),
        writable=" ".join(f'"{path}"' for path in _find_writable(nightly)),
        homes="read-only" if at_home else "yes",
    )
    return {SERVICE: service, TIMER: _TIMER.format(name=NAME, time=nightly.time)}


def make_cron_files(nightly: Nightly) -> dict[Path, str]:
    """What a host without systemd needs: a file of cron, and one of logrotate for its log."""
    return {
        CRON: _CRON.format(line=make_cron_line(nightly)),
        ROTATE: _ROTATE.format(logs=LOGS, user=nightly.user),
    }


def make_cron_line(nightly: Nightly) -> str:
    """The line of a system's crontab. Of a user's own, its sixth word goes."""
    hour, minute = nightly.time.split(":")
    words = shlex.join(["env", *_environment(nightly), "nice", *nightly.command])
    words = (
        f"cd {shlex.quote(str(nightly.project))} && umask 027 && set -a &&"
        f" {{ [ ! -r {SETTINGS} ] || . {SETTINGS}; }} && exec {words} >>{LOGS}/nightly.log 2>&1"
    )
    command = words.replace("%", r"\%")  # cron ends a command at a percent sign
    return f"{int(minute)} {int(hour)} * * * {nightly.user} {command}"


def _environment(nightly: Nightly) -> list[str]:
    return [] if nightly.store is None else [f"PHANTOM_STORE={nightly.store}"]


def _quote_for_systemd(word: str) -> str:
    word = word.replace("%", "%%").replace("$", "$$")
    if re.fullmatch(r"[-\w./:=,@+%$]+", word, re.ASCII):
        return word
    escaped = word.replace("\\", "\\\\").replace('"', '\\"')
    return f'"{escaped}"'


def _find_writable(nightly: Nightly) -> list[Path]:
    folders = dict.fromkeys((*nightly.writable, home_of(nightly.user)))
    above = [path for path in folders if any(path.is_relative_to(o) for o in folders if o != path)]
    return [path for path in folders if path not in above]


def home_of(user: str) -> Path:
    """The home of the nightly's user: that of one who is there, or the one that is made."""
    import pwd

    try:
        return Path(pwd.getpwnam(user).pw_dir)
    except KeyError:
        return Path("/var/lib", user)


# ---- their installation


def install(nightly: Nightly) -> Iterator[str]:
    """Makes the user where there is none, and installs what runs the nightly: units where systemd
    runs, or else a file of cron. Yields a line for each thing done. Raises InstallError."""
    if os.geteuid() != 0:
        raise InstallError(
            "only root can install the nightly",
            todo="run the same command with sudo, or with --show in place of --install",
        )
    systemd = Path("/run/systemd/system").is_dir()
    if not systemd and not CRON.parent.is_dir():
        raise InstallError(
            "neither systemd nor cron is there to run the nightly",
            todo="`sudo apt-get install cron`, or let something else run what --show prints",
        )
    try:
        yield from _make_user(nightly.user)
        yield from _make_folders(nightly, logs=not systemd)
        _check_access(nightly)
        if not SETTINGS.exists():
            yield from _write({SETTINGS: _SETTINGS})
        _run("chown", f"root:{_group_of(nightly.user)}", str(SETTINGS))
        SETTINGS.chmod(0o640)
        yield from _write(make_files(nightly) if systemd else make_cron_files(nightly))
        if systemd:
            _run("systemctl", "daemon-reload")
            _run("systemctl", "enable", "--now", TIMER.name)
            yield f"enabled {TIMER.name}; `systemctl list-timers` shows when it runs next"
    except OSError as error:
        raise InstallError(
            f"it cannot be written: {error.strerror}", where=str(error.filename), todo="mend that"
        ) from error


def _make_user(user: str) -> Iterator[str]:
    import pwd

    try:
        pwd.getpwnam(user)
    except KeyError:
        home = home_of(user)
        words = ("--system", "--user-group", "--home-dir", str(home), "--create-home")
        _run("useradd", *words, "--shell", "/usr/sbin/nologin", user)
        yield f"made the user {user}, at home in {home}"
    if user != "root" and not _has_numbers(user):
        start = isolate.find_free()
        block = f"{start}-{start + isolate.IDS - 1}"
        _run("usermod", "--add-subuids", block, "--add-subgids", block, user)
        yield f"gave {user} the users and groups {block} for namespaces"
    if _group_exists("kvm") and user != "root":
        _run("usermod", "--append", "--groups", "kvm", user)


def _has_numbers(user: str) -> bool:
    files = [Path(f"/etc/sub{kind}") for kind in ("uid", "gid")]
    return all(
        file.exists() and re.search(f"^{re.escape(user)}:", file.read_text(), re.MULTILINE)
        for file in files
    )


def _group_exists(name: str) -> bool:
    import grp

    return any(group.gr_name == name for group in grp.getgrall())


def _group_of(user: str) -> str:
    import pwd

    return str(pwd.getpwnam(user).pw_gid)


def _make_folders(nightly: Nightly, *, logs: bool) -> Iterator[str]:
    for folder in (*nightly.writable, *((LOGS,) if logs else ())):
        if not folder.exists():
            folder.mkdir(parents=True)
            _run("chown", f"{nightly.user}:{_group_of(nightly.user)}", str(folder))
            yield f"made {folder}"


def _check_access(nightly: Nightly) -> None:
    """Raises InstallError for what the user cannot read, run or write."""
    wanted = [
        ("-x", Path(nightly.command[0]), "run"),
        *(("-r", path, "read") for path in (nightly.project, *nightly.readable)),
        *(("-w", path, "write to") for path in nightly.writable),
    ]
    for test, path, verb in wanted:
        try:
            run.capture(["runuser", "-u", nightly.user, "--", "test", test, str(path)])
        except run.ToolError as error:
            write = f"`sudo chown -R {nightly.user}: {shlex.quote(str(path))}` gives it away"
            read = "move it to where everybody may read it, such as /opt or /srv"
            raise InstallError(
                f"the user {nightly.user} may not {verb} it",
                where=str(path),
                todo=write if test == "-w" else read,
            ) from error


def _write(files: Mapping[Path, str]) -> Iterator[str]:
    for path, text in files.items():
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, text)
        path.chmod(0o644)
        yield f"wrote {path}"


def _run(*argv: str) -> None:
    try:
        run.capture(argv)
    except PhantomError as error:
        said = (error.detail or error.what).strip().splitlines()[-1]
        raise InstallError(
            f"{argv[0]} failed: {said}", todo="mend that, then run the same command again"
        ) from error


def describe(nightly: Nightly) -> Sequence[str]:
    """The lines of all files, each below its name, with both ways to run the nightly."""
    lines = []
    for files in (make_files(nightly), make_cron_files(nightly)):
        for path, text in files.items():
            lines += [f"# ---- {path}", "", *text.splitlines(), ""]
    return lines[:-1]
