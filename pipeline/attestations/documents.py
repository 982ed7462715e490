"""The documents in a build's folder, beside its manifest, which has their digests."""

from __future__ import annotations

import hashlib
from pathlib import Path

from pipeline.files import make_folder, write_atomically


def write_document(path: Path, text: str) -> dict[str, str]:
    """Writes a document unless it is there as it is. Returns what the manifest says of it: the
    file's name and its SHA-256."""
    data = text.encode()
    make_folder(path.parent)
    if not path.is_file() or path.read_bytes() != data:
        write_atomically(path, text)
    return {"file": path.name, "sha256": hashlib.sha256(data).hexdigest()}
