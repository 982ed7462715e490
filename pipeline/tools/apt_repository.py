"""What apt and dpkg are told of resolved packages: a repository of exactly these, and which of them
nobody asked for."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Collection
from pathlib import Path

from pipeline.tools.apt import Resolution


def write_repository(resolution: Resolution, packages: Path, folder: Path, release: str) -> None:
    """Makes a repository of exactly these packages in `folder`, for `copy:` lines of apt."""
    folder.mkdir(exist_ok=True)
    stanzas = []
    for package in resolution.packages:
        file, stanza = f"{package.sha256}.deb", resolution.stanzas[package.sha256]
        (folder / file).symlink_to(packages / file)
        stanzas.append(re.sub(r"^Filename: .*$", f"Filename: ./{file}", stanza, flags=re.MULTILINE))
    index = "\n\n".join(stanzas) + "\n"
    (folder / "Packages").write_text(index)
    (folder / "Release").write_text(
        f"Suite: {release}\nCodename: {release}\nSHA256:\n"
        f" {hashlib.sha256(index.encode()).hexdigest()} {len(index.encode())} Packages\n"
    )


def describe_automatic(
    resolution: Resolution, requested: Collection[str], architecture: str
) -> str:
    """What apt's `extended_states` says of packages that nobody asked for: they may go when nothing
    needs them any more. What Debian cannot do without is not among them."""
    needed = re.compile(r"^(Essential: yes|Priority: required)$", re.MULTILINE)
    return "".join(
        f"Package: {package.name}\nArchitecture: {architecture}\nAuto-Installed: 1\n\n"
        for package in resolution.packages
        if package.name not in requested and not needed.search(resolution.stanzas[package.sha256])
    )
