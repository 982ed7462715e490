"""The time that no file of an image is younger than, and that documents about it bear."""

from __future__ import annotations

import os

from pipeline.disk.untrusted import to_number
from pipeline.errors import UsageError

EPOCH = 1_704_067_200
"""2024-01-01, unless SOURCE_DATE_EPOCH says another time. A build's own time would make two builds
of the same inputs differ."""

_LATEST = (1 << 32) - 1  # what fits into an inode's time


def read_epoch() -> int:
    """The time, in seconds since 1970. Raises UsageError for a SOURCE_DATE_EPOCH that is none."""
    text = os.environ.get("SOURCE_DATE_EPOCH") or str(EPOCH)
    seconds = to_number(text)
    if seconds is None or seconds > _LATEST:
        raise UsageError(
            f"SOURCE_DATE_EPOCH is {text[:40]!r}", todo="set it to seconds since 1970, or unset it"
        )
    return seconds
