"""The answers to a request for user-data that a guest must cope with, and what must come of each.

The first answer that a guest gets at boot is late: the service refuses the first requests. Then
its user-data has the fetcher fetch once more for each case here, in a folder of its own, while the
service answers with that case.
"""

from __future__ import annotations

import gzip
import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from pipeline.machine.metadata import MetadataService

_REFUSED = 65  # the fetcher's exit status for user-data that cannot be run (its README)
_NOTHING = "-"  # in a report, in place of a digest or of what ran


@dataclass(frozen=True, kw_only=True)
class Case:
    """One answer, and what the fetcher must make of it."""

    name: str
    """As the boot's report names it; letters only."""
    user_data: bytes | None
    """What the service has; None: there is no user-data."""
    status: int = 0
    """The fetcher's exit status."""
    ran: str | None = None
    """What the user-data leaves behind when all of it was run; None: it must not be run."""
    kept: bytes | None = None
    """What the fetcher must keep; None: anything."""
    outcome: str
    """In words for people."""


def make_cases(service: type[MetadataService], nonce: str) -> tuple[Case, ...]:
    """The cases of a metadata service. User-data that is run leaves a mark with the `nonce`."""
    absent = Case(name="absent", user_data=None, outcome="nothing run")
    if not service.ANY_BYTES:
        return (absent,)
    small, large = _script(f"gzip {nonce}", 0), _script(f"largest {nonce}", service.LIMIT)
    # Neither text nor gzip, and nothing that a shell would take for a script.
    binary = b"\x7fphantom\0" + bytes(range(256)) * 4
    return (
        absent,
        Case(
            name="gzip",
            user_data=gzip.compress(small, mtime=0),
            ran=f"gzip {nonce}",
            kept=small,
            outcome="unpacked and run",
        ),
        Case(
            name="binary",
            user_data=binary,
            status=_REFUSED,
            kept=binary,
            outcome="kept and not run",
        ),
        Case(
            name="largest",
            user_data=large,
            ran=f"largest {nonce}",
            kept=large,
            outcome=f"run, all of its {service.LIMIT} bytes",
        ),
    )


def _script(mark: str, size: int) -> bytes:
    """A script whose last line leaves a mark; filled up to a size with a comment."""
    head, tail = "#!/bin/sh\n# ", f'\nprintf %s "{mark}" >"$PHANTOM_ROOT/ran"\n'
    return f"{head}{'.' * (size - len(head) - len(tail))}{tail}".encode()


def find_faults(cases: Sequence[Case], facts: Mapping[str, list[str]]) -> Iterator[str]:
    """What is wrong in a report's lines `case NAME STATUS KEPT RAN`: status of the fetcher, SHA-256
    of what it kept, and what ran; `-` for nothing."""
    told = {name: rest for name, _, rest in (line.partition(" ") for line in facts.get("case", []))}
    for case in cases:
        if case.name not in told:
            yield f"its user-data fetcher was not tried with user-data that is {case.name}"
            continue
        status, kept, ran, *_ = *told[case.name].split(" ", 2), "", ""
        wrong = []
        if status != str(case.status):
            wrong.append(f"ended with status {status} in place of {case.status}")
        if ran != (case.ran or _NOTHING):
            wrong.append("did not run all of it" if case.ran else "ran it")
        if case.kept is not None and kept != hashlib.sha256(case.kept).hexdigest():
            wrong.append("kept something else")
        if wrong:
            yield (
                f"its user-data fetcher, given user-data that is {case.name}, {' and '.join(wrong)}"
            )
