"""Programs that run as root inside namespaces of their own, by `isolate.py`.

Where the host allows it, that root is one of a user namespace: outside, it is the user who asked,
or nobody if root asked. Elsewhere it is this host's root, by sudo.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

from pipeline.errors import HostError, NoSpaceError, SudoError
from pipeline.model import Progress
from pipeline.secret_forms import hiding
from pipeline.tools import isolate, run

PROGRAMS = "/phantom"
"""The folder of a program's root directory that has its `sudo`; it belongs first on its PATH."""
SECRETS = "/run/secrets"
"""The folder, in memory, where a program finds secrets that it is handed, as isolated_first.sh has
it."""
_PATH = "PATH=/usr/sbin:/usr/bin:/sbin:/bin"
_ISOLATE = Path(__file__).with_name("isolate.py")
_SECRET_NAME = re.compile(r"PASS|SECRET|TOKEN|CREDENTIAL|_KEY$|APIKEY", re.IGNORECASE)
_SECRET_LENGTH = 4  # shorter ones would hide half the log
_PASSWORD = re.compile(r"^\w+://[^/@:]*:([^/@]+)@")


@dataclass(frozen=True, kw_only=True)
class Way:
    """How this host lets programs run as root in namespaces."""

    mapped: bool
    """Whether that root is one of a user namespace."""
    refused: str = ""
    """Why it is not."""
    mend: str | None = None
    """What would allow it."""


def find_way(folder: Path) -> Way:
    """How programs run that see folders on the file system of `folder`, which must be there."""
    return _try_way(folder.stat().st_dev, folder)


_ways: dict[int, Way] = {}


def _try_way(device: int, folder: Path) -> Way:
    """Tries it once for each file system, with files in `folder` for a moment."""
    if device not in _ways:
        _ways[device] = _try(folder)
    return _ways[device]


def _try(folder: Path) -> Way:
    with tempfile.TemporaryDirectory(prefix=".phantom-", dir=folder) as made:
        tried = Path(made)
        (tried / "seen").mkdir()
        command = _prepare(
            ["sh", "-c", ': >"$1/file" && chown 1:1 "$1/file"', "sh", str(tried / "seen")],
            view=View(writable=[tried / "seen"]),
            folder=tried / "namespace",
            environment={"PATH": "/usr/sbin:/usr/bin:/sbin:/bin"},
            mapped=True,
        )
        try:
            run.run(command, log=tried / "log", lifeline=True)
        except (HostError, run.ToolError) as error:
            said = (error.detail or error.what).strip().splitlines()
            told = next((line for line in said if line.startswith("isolate: ")), said[-1])
            refused = told.removeprefix("isolate: ")
            return Way(mapped=False, refused=refused, mend=_find_mend(refused))
        finally:
            remove_tree(tried / "seen")
    return Way(mapped=True)


# What forbids user namespaces, by the file that says so.
_SETTINGS = (
    ("/proc/sys/user/max_user_namespaces", "0", "user.max_user_namespaces=15000"),
    ("/proc/sys/kernel/unprivileged_userns_clone", "0", "kernel.unprivileged_userns_clone=1"),
    (
        "/proc/sys/kernel/apparmor_restrict_unprivileged_userns",
        "1",
        "kernel.apparmor_restrict_unprivileged_userns=0",
    ),
)


def _find_mend(refused: str) -> str | None:
    for file, forbids, setting in _SETTINGS:
        try:
            if Path(file).read_text().strip() == forbids:
                return f"sudo sysctl -w {setting}"
        except OSError:
            continue
    if "is not installed" in refused:
        return "sudo apt-get install uidmap"
    if "/etc/sub" in refused:
        start = isolate.find_free()
        block = f"{start}-{start + isolate.IDS - 1}"
        return f"sudo usermod --add-subuids {block} --add-subgids {block} {isolate.own_name()}"
    return None


def try_as_root(folder: Path) -> None:
    """Runs nothing in namespaces of this host's root. Raises ToolError, HostError."""
    with tempfile.TemporaryDirectory(prefix=".phantom-", dir=folder) as made:
        place = Path(made) / "namespace"
        command = _prepare(["true"], view=View(), folder=place, environment={}, mapped=False)
        run.run(as_root(command), log=Path(made) / "log", lifeline=True)


def owner(folder: Path) -> str:
    """Who owns, inside, what a program makes for this user, as chown takes it; `folder` is the one
    that it works in."""
    return "0:0" if find_way(folder).mapped else f"{os.getuid()}:{os.getgid()}"


def check_root(way: Way | None = None) -> None:
    """Raises SudoError unless this is root or a user whom sudo lets become root; with a `way`, says
    why it does not do without."""
    if os.geteuid() == 0:
        return
    refused, todo = "", "run as root, or have an administrator give this user sudo rights"
    if way is not None:
        refused = f"builds need a user namespace or root's rights: {way.refused}, and "
        todo = f"{way.mend}   # or {todo}" if way.mend else todo
    try:
        run.capture(["sudo", "-n", "true"])
    except HostError as error:
        raise SudoError(f"{refused}sudo is not installed", todo=todo) from error
    except run.ToolError as error:
        if sys.stdin.isatty() and run.attach(["sudo", "-v"]) == 0:
            return
        told = f"{refused}sudo does not let this user become root"
        raise SudoError(told, todo=todo) from error


def as_root(argv: Sequence[str]) -> list[str]:
    """The command that runs `argv` with root's rights."""
    return list(argv) if os.geteuid() == 0 else ["sudo", "-n", *argv]


@dataclass(frozen=True, kw_only=True)
class View:
    """What a program in namespaces of its own sees of this host beside its system (`/usr` and what
    programs need of `/etc`): the same files under the same paths."""

    readable: Sequence[Path] = ()
    writable: Sequence[Path] = ()
    in_memory: Mapping[Path, int] = field(default_factory=dict)
    """Empty folders in memory, and how many MiB they may hold."""

    def shown(self) -> Iterator[list[str]]:
        """What isolate.py shows: folders before what lies in them."""
        kinds: dict[Path, str] = {}
        for path in self.readable:
            # Links lead from one to the other.
            kinds |= dict.fromkeys((path.absolute(), path.resolve()), "read-only")
        kinds |= dict.fromkeys(self.writable, "writable")
        kinds |= dict.fromkeys(self.in_memory, "memory")
        for path, kind in sorted(kinds.items()):
            if kind == "memory":
                yield [kind, str(path), str(self.in_memory[path])]
            elif kind != "read-only" or not path.is_relative_to("/usr"):
                yield [kind, str(path)]


def run_isolated(
    argv: Sequence[str],
    *,
    view: View,
    folder: Path,
    environment: Mapping[str, str],
    log: Path,
    progress: Progress,
    network: bool = False,
    secrets: Mapping[str, bytes] | None = None,
) -> None:
    """Runs a program as root in namespaces that end with it, and it with us. It sees nothing of
    this host but its `view`, no process but those that it starts, a neutral host name, and the
    host's network only with `network`.

    `folder`, which is made, keeps what isolate.py has to know. The program gets `environment`, and
    nothing of this process's own, by a file there that only this user can read; everybody can read
    a command line. It finds `secrets` by their names in `SECRETS`; they go there through a pipe,
    and never to a disk. They, and what `environment` holds of secrets, are hidden in the log.
    Raises ToolError, NoSpaceError, HostError.
    """
    # A program that hooks make setuid would give its owner's rights to every user of this host.
    folder.parent.chmod(0o700)
    way = find_way(folder.parent)
    if not way.mapped:
        progress.step(f"warning: hooks and scripts are root on this host: {way.refused}")
    command = _prepare(
        argv,
        view=view,
        folder=folder,
        environment=environment,
        mapped=way.mapped,
        network=network,
        secrets=secrets,
    )
    handed = list((secrets or {}).values())
    run.run(
        command if way.mapped else as_root(command),
        log=log,
        progress=progress,
        lifeline=True,
        handed=b"".join(handed),
        hidden=hiding(handed, _secrets(environment)),
    )


@contextmanager
def started_isolated(
    argv: Sequence[str], *, view: View, folder: Path, environment: Mapping[str, str]
) -> Iterator[run.Process]:
    """A program that runs as `run_isolated` has it, without network or log; it ends when the block
    is left. What it prints is on the process's standard output. Raises HostError, SudoError."""
    folder.parent.chmod(0o700)
    way = find_way(folder.parent)
    if not way.mapped:
        check_root(way)
    command = _prepare(argv, view=view, folder=folder, environment=environment, mapped=way.mapped)
    with run.start(command if way.mapped else as_root(command), lifeline=True) as process:
        yield process


def _prepare(
    argv: Sequence[str],
    *,
    view: View,
    folder: Path,
    environment: Mapping[str, str],
    mapped: bool,
    network: bool = False,
    secrets: Mapping[str, bytes] | None = None,
) -> list[str]:
    """Writes what isolate.py has to know into a folder, which is made; returns its command."""
    folder.mkdir(mode=0o700)
    plan = {
        "shown": list(view.shown()),
        "mapped": mapped,
        "network": network,
        "secrets": " ".join(f"{len(value)}:{name}" for name, value in (secrets or {}).items()),
    }
    (folder / "plan.json").write_text(json.dumps(plan))
    (folder / "environment").touch(mode=0o600)
    (folder / "environment").write_text(
        "".join(f"export {name}={shlex.quote(environment[name])}\n" for name in sorted(environment))
    )
    # The first process in the namespace is to have nothing of the caller's environment.
    return ["env", "-i", _PATH, sys.executable, "-I", "-S", str(_ISOLATE), str(folder), *argv]


def run_in_memory(
    argv: Sequence[str],
    *,
    view: View,
    build: Path,
    mib: int,
    folder: Path,
    environment: Mapping[str, str],
    log: Path,
    progress: Progress,
    network: bool = False,
    secrets: Mapping[str, bytes] | None = None,
) -> None:
    """Runs a program as `run_isolated` does, with an empty folder `build` that is in memory if
    `mib` is more than 0, up to so many MiB. A program that finds no space there is run once more,
    with that folder on the disk. Raises ToolError, NoSpaceError, HostError."""
    for size in dict.fromkeys((mib, 0)):
        place = {"in_memory": {build: size}} if size else {"writable": [*view.writable, build]}
        try:
            run_isolated(
                argv,
                view=replace(view, **place),
                folder=folder.with_name(f"{folder.name}-{size}"),
                environment=environment,
                log=log,
                progress=progress,
                network=network,
                secrets=secrets,
            )
            return
        except NoSpaceError:
            if not size:
                raise
            progress.step("memory is too small for it: beginning again on the disk")


def _secrets(environment: Mapping[str, str]) -> set[str]:
    """What must not be printed: what a variable's name says is secret, and passwords in URIs."""
    named = {
        value
        for name, value in environment.items()
        if _SECRET_NAME.search(name) and len(value) >= _SECRET_LENGTH and not value.startswith("/")
    }
    passwords = (_PASSWORD.search(value) for value in environment.values())
    return named | {found[1] for found in passwords if found}


def remove_tree(folder: Path) -> None:
    """Removes a folder that root, ours or this host's, may have written to."""
    try:
        shutil.rmtree(folder)
    except FileNotFoundError:
        pass  # another process removed it first
    except PermissionError:
        try:
            mapped = [sys.executable, "-I", "-S", str(_ISOLATE), "--as-mapped"]
            run.capture([*mapped, "rm", "-rf", "--one-file-system", str(folder)])
            return
        except (HostError, run.ToolError):
            check_root()
        # Some may be immutable, and links have no attributes that could be taken away.
        script = 'chattr -R -f -i -a "$1"; exec rm -rf --one-file-system "$1"'
        run.capture(as_root(["sh", "-c", script, "sh", str(folder)]))
