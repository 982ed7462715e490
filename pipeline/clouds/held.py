"""What a site holds as an image, as reading it back shows."""

from __future__ import annotations

from dataclasses import dataclass

from pipeline.model import Sha256


@dataclass(frozen=True, kw_only=True)
class Held:
    """The digest of all bytes that a site gave, not of what it says of itself."""

    sha256: Sha256
    of_disk: bool
    """Whether it is of the disk; else of the image's file, which may be compressed."""
    read: bool = True
    """Whether the bytes were read. A sandbox that keeps no images has only its record of them."""
