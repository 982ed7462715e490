"""Which line of a script failed.

bash reads the file that `BASH_ENV` names before a script. This one notes each command that fails
and for which `set -e` ends the script, and changes nothing else: what the script starts does not
inherit it, and a trap of the script's own takes its place.

Other shells have no such file. Where they, or Python, print the line with the failure, it is taken
from what the script printed.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath

_LONGEST = 200  # characters of a command
_NOTE = re.compile(r"([0-9]{1,3}) ([0-9]{1,9}) ([^\n]*)")
_TRACEBACK = "Traceback (most recent call last):"
_EXCEPTION = re.compile(r"[A-Za-z_][\w.]*(: |$)")
# The statuses with which shells end over what they tell of: a command that is not there or cannot
# be run, and mistakes in the script itself.
_OF_SHELLS = {1, 2, 126, 127}


@dataclass(frozen=True, kw_only=True)
class FailedLine:
    """A line of a script, and the command there that failed."""

    number: int
    command: str


def make_environment(note: PurePosixPath) -> str:
    """The file for `BASH_ENV`: it notes failures in the file `note`."""
    told = f'printf "%s %s %s\\n" "$?" "$LINENO" "$BASH_COMMAND" >{note}'
    return f"unset BASH_ENV\ntrap 'case $- in *e*) {told} ;; esac' ERR\n"


def read_note(text: str, status: int) -> FailedLine | None:
    """The line that a note names; None if the script ended with another status than the command."""
    match = _NOTE.match(text)
    if match is None or int(match[1]) != status:
        return None
    return FailedLine(number=int(match[2]), command=match[3][:_LONGEST])


def find_printed(lines: Sequence[str], script: str, status: int) -> int | None:
    """The number of the line that a script's interpreter named when it ended with `status`; None
    where it named none. `script` is a pattern of the script's path, `lines` are what it printed."""
    printed = [line.rstrip() for line in lines if line.strip()]
    if status in _OF_SHELLS and printed:
        told = re.match(rf"{script}: (?:line )?([0-9]{{1,9}}): ", printed[-1])
        if told is not None:
            return int(told[1])
    return _find_in_traceback(printed, script) if status == 1 else None


def _find_in_traceback(printed: Sequence[str], script: str) -> int | None:
    """The line of the script that the last traceback in Python's words came through last. Output
    that Python had not written yet may follow it."""
    frame = re.compile(rf'  File "{script}", line ([0-9]{{1,9}})(?:, in .*)?')
    found, number = None, None
    for line in printed:
        if match := frame.fullmatch(line):
            number = int(match[1])
        elif not line.startswith(" "):
            if number is not None and _EXCEPTION.match(line) and line != _TRACEBACK:
                found = number
            number = None
    return found
