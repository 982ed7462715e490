"""`phantom-image check`: looks for what an image file should not have, or runs the boot check's
script in the machine that `boot` has running."""

from __future__ import annotations

import fcntl
import os
import secrets
import shlex
import sys
from argparse import ArgumentParser, Namespace
from base64 import b64encode
from pathlib import Path

from pipeline.commands import options as shared
from pipeline.commands.findings import check_file, tell, tell_programs
from pipeline.commands.image_files import FORMATS
from pipeline.commands.output import print_line
from pipeline.definitions.yaml import shown
from pipeline.disk.formats import from_user_name
from pipeline.errors import GuestCheckError, UsageError
from pipeline.stages.base import read_own
from pipeline.tools.run import start

EXAMPLES = (
    "phantom-image check web",
    "phantom-image check cluster.qcow2",
    "phantom-image check cluster.raw --json",
)

_IMAGE_SUFFIXES = (
    *(".raw", ".img", ".qcow2", ".vmdk", ".vhd", ".vhdx", ".vdi", ".ext4", ".iso"),
    *(".gz", ".xz", ".zst", ".bz2", ".zip"),
)
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
    shared.add(parser, "verbose", "json")
    parser.add_argument(
        "appliance",
        nargs="?",
        default=shared.DEFAULT_APPLIANCE,
        metavar="APPLIANCE|FILE",
        help="an appliance, whose script runs in its machine; or a disk image, which is only read "
        f"({shared.DEFAULT_APPLIANCE})",
    )
    text = "the format of a disk image, if no header tells it"
    parser.add_argument("--format", choices=FORMATS, help=text)


def run(options: Namespace) -> int | None:
    """Checks the image file, or runs the appliance's script. Returns an exit status for programs.

    Raises GateError where the image breaks a rule of severity `error`, and what `check_file` and
    `_run_appliance` raise.
    """
    word = options.appliance
    if not _is_image(word):
        _run_appliance(options)
        return None
    declared = options.format and from_user_name(options.format)
    with shared.open_shown_workspace(options) as workspace:
        progress = workspace.progress("check")
        findings = check_file(Path(word), declared, workspace.store, progress)
    if options.json:
        return tell_programs(Path(word), findings)
    tell(Path(word), findings)
    return None


def _is_image(word: str) -> bool:
    """Whether a word names an image file. A definition is a name, a folder, or ends in .yaml."""
    path = Path(word)
    if path.suffix in (".yaml", ".yml"):
        return False
    return os.path.isfile(path) or path.suffix in _IMAGE_SUFFIXES


def _run_appliance(options: Namespace) -> None:
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
