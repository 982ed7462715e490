"""Root's rights inside namespaces of their own: `sudo`, `unshare` and `isolate.sh`."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from pipeline.errors import HostError, NoSpaceError, SudoError
from pipeline.model import Progress
from pipeline.tools import run

ISOLATE = (
    # The first process in the namespace is to have nothing of the caller's environment.
    *("env", "-i", "PATH=/usr/sbin:/usr/bin:/sbin:/bin"),
    *("unshare", "--mount", "--pid", "--uts", "--ipc", "--fork", "--kill-child"),
)
"""What runs a program as the first process of new namespaces."""
PROGRAMS = "/phantom"
"""The folder of a program's root directory that has its `sudo`; it belongs first on its PATH."""
_ISOLATE = Path(__file__).with_name("isolate.sh")
_SECRET_NAME = re.compile(r"PASS|SECRET|TOKEN|CREDENTIAL|_KEY$|APIKEY", re.IGNORECASE)
_SECRET_LENGTH = 4  # shorter ones would hide half the log
_PASSWORD = re.compile(r"^\w+://[^/@:]*:([^/@]+)@")


def check_root() -> None:
    """Raises SudoError unless this is root or a user whom sudo lets become root."""
    if os.geteuid() == 0:
        return
    todo = "run as root, or have an administrator give this user sudo rights"
    try:
        run.capture(["sudo", "-n", "true"])
    except HostError as error:
        raise SudoError("sudo is not installed, and this is not root", todo=todo) from error
    except run.ToolError as error:
        if sys.stdin.isatty() and run.attach(["sudo", "-v"]) == 0:
            return
        raise SudoError("sudo does not let this user become root", todo=todo) from error


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

    def lines(self) -> Iterator[str]:
        """The lines of `shown` that isolate.sh reads: folders before what lies in them."""
        kinds: dict[Path, str] = {}
        for path in self.readable:
            # Links lead from one to the other.
            kinds |= dict.fromkeys((path.absolute(), path.resolve()), "read-only")
        kinds |= dict.fromkeys(self.writable, "writable")
        kinds |= {path: f"memory {mib}" for path, mib in self.in_memory.items()}
        for path, kind in sorted(kinds.items()):
            if kind != "read-only" or not path.is_relative_to("/usr"):
                yield f"{kind} {path}\n"


def run_isolated(
    argv: Sequence[str],
    *,
    view: View,
    folder: Path,
    environment: Mapping[str, str],
    log: Path,
    progress: Progress,
) -> None:
    """Runs a program as root in namespaces that end with it, and it with us. It sees nothing of
    this host but its `view`, no process but those that it starts, and a neutral host name.

    `folder`, which is made, keeps what isolate.sh has to know. The program gets `environment`, and
    nothing of this process's own, by a file there that only this user can read; everybody can read
    a command line. What `environment` holds of secrets is hidden in the log.
    Raises ToolError, NoSpaceError, HostError.
    """
    folder.mkdir(mode=0o700)
    (folder / "root").mkdir()
    (folder / "shown").write_text("".join(view.lines()))
    (folder / "environment").touch(mode=0o600)
    (folder / "environment").write_text(
        "".join(f"export {name}={shlex.quote(environment[name])}\n" for name in sorted(environment))
    )
    run.run(
        as_root([*ISOLATE, "sh", str(_ISOLATE), str(folder), *argv]),
        log=log,
        progress=progress,
        lifeline=True,
        secrets=_secrets(environment),
    )


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
    """Removes a folder that root may have written to."""
    try:
        shutil.rmtree(folder)
    except FileNotFoundError:
        pass  # another process removed it first
    except PermissionError:
        check_root()
        # Some may be immutable, and links have no attributes that could be taken away.
        script = 'chattr -R -f -i -a "$1"; exec rm -rf --one-file-system "$1"'
        run.capture(as_root(["sh", "-c", script, "sh", str(folder)]))
