"""mmdebstrap: installs the packages of a local repository into a tree of its own."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path

from pipeline.model import KIB, MIB, Package
from pipeline.tools import run
from pipeline.tools.apt import Resolution
from pipeline.tools.tails import tail

_HERE = Path(__file__).parent
PROGRAMS = [_HERE / name for name in ("install_packages.sh", "unpack_ahead.py", "leave_out.py")]
"""What a namespace has to see of ours for `command`."""
SYSTEM_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
AHEAD_BYTES = 450 * MIB
"""How much of the packages may lie there unpacked, ahead of dpkg."""


@cache
def versions() -> Mapping[str, str]:
    """The versions of the programs whose output lies in a tree, or whose order decides it."""
    apt = run.capture(["dpkg-query", "--show", "--showformat=${Version}", "apt"])
    return {"apt": apt, "mmdebstrap": run.capture(["mmdebstrap", "--version"]).split()[-1]}


def command(build: Path, repository: Path, output: Path) -> list[str]:
    """The command that installs all packages of `repository` in a folder below `build`, and writes
    the tree to the tar `output`."""
    words = map(str, (PROGRAMS[0], build, repository, output, AHEAD_BYTES))
    return ["sh", *words]


def dpkg_options(leaves_out: Sequence[str], keeps: Sequence[str]) -> str:
    """Lines of dpkg's configuration that leave files out by their patterns, and keep others."""
    lines = [f"path-exclude={pattern}" for pattern in leaves_out]
    return "\n".join([*lines, *(f"path-include={pattern}" for pattern in keeps)])


def describe_order(resolution: Resolution) -> str:
    """The lines of `order` for unpack_ahead.py: essential packages, which mmdebstrap needs first,
    then the others, those before that are soon done."""

    def kind(package: Package) -> str:
        stanza = resolution.stanzas[package.sha256]
        essential = re.search(r"^Essential: yes$", stanza, re.MULTILINE)
        return "other" if essential is None else "essential"

    def size(package: Package) -> int:
        told = re.search(r"^Installed-Size: (\d{1,12})$", resolution.stanzas[package.sha256], re.M)
        return int(told[1]) * KIB * 21 // 20 if told else 0  # with the tar's headers

    lines = []
    for package in sorted(resolution.packages, key=lambda each: (kind(each), size(each))):
        version = package.version.replace(":", "%3a")
        cached = f"{package.name}_{version}_{package.architecture}.deb"
        lines.append(f"{package.sha256}.deb {cached} {size(package)} {kind(package)}\n")
    return "".join(lines)


def explain_failure(error: run.ToolError) -> run.ToolError:
    """The same error in the name of mmdebstrap, and not of what isolates it."""
    error.what = error.what.replace("isolate.py", "mmdebstrap", 1)
    error.detail = tail(error.output.splitlines(), own=False)
    return error
