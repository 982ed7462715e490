"""`phantom-image check`: runs the boot check's script in the machine that `boot` has running."""

from __future__ import annotations

import fcntl
import secrets
import shlex
import sys
from argparse import ArgumentParser, Namespace
from base64 import b64encode
from pathlib import Path

from pipeline.commands import options as shared
from pipeline.commands.output import print_line
from pipeline.definitions.yaml import shown
from pipeline.errors import GuestCheckError, UsageError
from pipeline.stages.base import read_own
from pipeline.tools.run import start

EXAMPLES = ("phantom-image check web",)

_SECONDS = 30  # until the machine answers
# The script comes with the command, and reads nothing, as in the boot check. Its status comes after
# a word that the script does not know: ssh's own failures have statuses of scripts, too.
_RUN = """
file=$(mktemp) || exit 1
trap 'rm -f "$file"' EXIT
printf %s {script} | base64 -d >"$file" && chmod 0700 "$file" && cd / || exit 1
case $(head -c 2 "$file") in
'#!') "$file" </dev/null ;;
*) /bin/sh "$file" </dev/null ;;
esac
echo "{mark} $?"
"""


def add_arguments(parser: ArgumentParser) -> None:
    """Adds the command's arguments."""
    shared.add(parser, "appliance")


def run(options: Namespace) -> None:
    """Runs the script as it is now, shows what it prints, and tells how it ended.

    Raises UsageError where there is no script, or no machine that answers, and GuestCheckError
    where the script fails.
    """
    appliance = shared.load_appliance(options)
    script = appliance.boot_check.script
    if script is None:
        raise UsageError(
            f"{appliance.name} has no script for its boot check",
            where=appliance.positions.find("boot_check"),
            todo="name one below `boot_check: script:`",
        )
    settings = _find_settings(shared.open_workspace(options).folder(appliance.name), appliance.name)
    status = _run_script(settings, read_own(script))
    if status is None:
        raise UsageError(
            f"the machine of {appliance.name} does not answer by SSH, or ended the connection",
            where=shown(settings),
            todo="wait until it has booted, then run the same command again",
        )
    if status != 0:
        raise GuestCheckError(
            f"the check script {script.name} ended with status {status}",
            todo="correct it, or the image; this command runs the script as it is then",
        )
    print_line(f"the check script {script.name} has passed")


def _run_script(settings: Path, script: bytes) -> int | None:
    """Runs a script in the machine, and prints what it prints. Returns its status; None where the
    machine did not tell it."""
    mark = f"ended-{secrets.token_hex(8)}"
    remote = _RUN.format(script=b64encode(script).decode(), mark=mark)
    words = ["-n", "-F", str(settings), "-o", f"ConnectTimeout={_SECONDS}", "appliance"]
    status = None
    with start(["ssh", *words, f"sh -c {shlex.quote(remote)} 2>&1"]) as process:
        assert process.stdout is not None
        for line in process.stdout:
            text, found, told = line.rstrip("\n").partition(f"{mark} ")
            if found and told.isdecimal():
                status = int(told)
            if text or not found:
                print_line(text)
                sys.stdout.flush()
    return status


def _find_settings(folder: Path, name: str) -> Path:
    """The SSH settings of the machine that was started first of those that run. Raises UsageError
    where none runs."""
    for path in sorted(folder.glob("ssh*"), key=lambda path: (len(path.name), path.name)):
        try:
            with path.open() as file:
                fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:  # its machine runs
            return path
        except OSError:
            continue
    raise UsageError(
        f"no machine of {name} is running",
        todo=f"start one in another terminal: `phantom-image boot {name}`",
    )
