"""Versions are ordered as dpkg orders them; changelogs are read from an image."""

from __future__ import annotations

import gzip
import random
import subprocess
from pathlib import Path

from pipeline.disk.debian_packages import compare_versions, read_changes, read_installed
from pipeline.disk.ext4_reader import Reader

STATUS = """Package: base-files
Status: install ok installed
Architecture: amd64
Version: 12.4

Package: gone
Status: deinstall ok config-files
Version: 1

Package: nano
Status: install ok installed
Version: 7.2-1+deb12u1
Architecture: amd64
"""
CHANGELOG = """nano (7.2-1+deb12u1) bookworm; urgency=medium

  * Third.

 -- Somebody <somebody@example.org>  Sun, 01 Oct 2023 10:00:00 +0200

nano (7.2-1) unstable; urgency=medium

  * Second.\x1b[31m

 -- Somebody <somebody@example.org>  Wed, 18 Jan 2023 23:30:00 +0100

nano (7.1-1) unstable; urgency=medium

  * First.
"""


def test_versions_are_ordered_as_dpkg_does() -> None:
    draw = random.Random(3)
    ones = ["1.0", "1.0~rc1", "1:0.1", "1.0-1", "1.0-1+b1", "1.0+dfsg-1", "1.0a", "01.0", "1.10-9"]
    ones += ["1." + "".join(draw.choices("019ab~+.", k=4)) + "0" for _ in range(12)]
    for one in ones:
        for other in draw.sample(ones, 6):
            told = compare_versions(one, other)
            operator = "lt" if told < 0 else "gt" if told else "eq"
            words = ["dpkg", "--compare-versions", one, operator, other]
            assert subprocess.run(words, check=False).returncode == 0, words


def test_packages_and_their_changelogs(tmp_path: Path) -> None:
    tree, image = tmp_path / "tree", tmp_path / "image"
    (tree / "var/lib/dpkg").mkdir(parents=True)
    (tree / "var/lib/dpkg/status").write_text(STATUS)
    (tree / "usr/share/doc/nano").mkdir(parents=True)
    packed = gzip.compress(CHANGELOG.encode())
    (tree / "usr/share/doc/nano/changelog.Debian.gz").write_bytes(packed)
    (tree / "usr/share/doc/libnano").symlink_to("nano")
    subprocess.run(["mke2fs", "-q", "-F", "-d", str(tree), str(image), "8M"], check=True)
    with Reader(image) as reader:
        assert read_installed(reader) == {
            "base-files": ("12.4", "amd64"),
            "nano": ("7.2-1+deb12u1", "amd64"),
        }
        lines = read_changes(reader, "nano", "7.1-1+b2", "7.2-1+deb12u1")
        assert [line for line in lines if line.startswith("  *")] == [
            "  * Third.",
            "  * Second.?[31m",
        ]
        assert read_changes(reader, "libnano", "7.2-1", "7.2-1+deb12u1")[1] == "  * Third."
        assert read_changes(reader, "nano", "7.2-1+deb12u1", "7.1-1") == []
        assert read_changes(reader, "bash", "1", "2") == []
