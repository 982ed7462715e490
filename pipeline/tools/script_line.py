"""Which line of a script failed, where bash runs it.

bash reads the file that `BASH_ENV` names before a script. This one notes each command that fails
and whose failure nothing handles, and changes nothing else: what the script starts does not inherit
it, and a trap of the script's own takes its place.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import PurePosixPath

_LONGEST = 200  # characters of a command
_NOTE = re.compile(r"([0-9]{1,3}) ([0-9]{1,9}) ([^\n]*)")


@dataclass(frozen=True, kw_only=True)
class FailedLine:
    """A line of a script, and the command there that failed."""

    number: int
    command: str


def make_environment(note: PurePosixPath) -> str:
    """The file for `BASH_ENV`: it notes failures in the file `note`."""
    return (
        "unset BASH_ENV\n"
        f'trap \'printf "%s %s %s\\n" "$?" "$LINENO" "$BASH_COMMAND" >{note}\' ERR\n'
    )


def read_note(text: str, status: int) -> FailedLine | None:
    """The line that a note names; None if the script ended with another status than the command."""
    match = _NOTE.match(text)
    if match is None or int(match[1]) != status:
        return None
    return FailedLine(number=int(match[2]), command=match[3][:_LONGEST])
