"""Root's rights inside namespaces of their own: `sudo`, `unshare` and `isolate.sh`."""

from __future__ import annotations

import os
import shlex
import shutil
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from pipeline.errors import HostError, SudoError
from pipeline.model import Progress
from pipeline.tools import run

_ISOLATE = Path(__file__).with_name("isolate.sh")


def check_root() -> None:
    """Raises SudoError where neither root nor a sudo that lets this user in is there."""
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


def run_isolated(
    argv: Sequence[str],
    *,
    work: Path,
    tmpfs_mib: int,
    environment: Path,
    log: Path,
    progress: Progress,
) -> None:
    """Runs a program as root in mount and process namespaces that die with it, and it with us.

    `work` is an empty folder, in memory if `tmpfs_mib` is more than 0. The program sees what the
    file `environment` (see `write_environment`) says, and nothing else of this process's
    environment. Raises ToolError, NoSpaceError, HostError.
    """
    run.run(
        as_root(
            [
                *("unshare", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc"),
                *("sh", str(_ISOLATE), str(work), str(tmpfs_mib), str(environment)),
                *argv,
            ]
        ),
        log=log,
        progress=progress,
        lifeline=True,
    )


def write_environment(file: Path, environment: Mapping[str, str]) -> None:
    """Writes an environment to a file that only this user reads: on a command line, all could."""
    file.touch(mode=0o600)
    file.write_text(
        "".join(f"export {name}={shlex.quote(environment[name])}\n" for name in sorted(environment))
    )


def remove_tree(folder: Path) -> None:
    """Removes a folder that root may have written to."""
    try:
        shutil.rmtree(folder)
    except FileNotFoundError:
        pass  # somebody else was quicker
    except PermissionError:
        check_root()
        run.capture(as_root(["rm", "-rf", "--one-file-system", str(folder)]))
