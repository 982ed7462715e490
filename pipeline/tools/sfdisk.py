"""Partition tables, written by sfdisk and read as others read them."""

from __future__ import annotations

import json
import re
from pathlib import Path

from pipeline.tools import run


def write_table(disk: Path, script: str) -> None:
    """Writes the partition table that an sfdisk script describes. Raises ToolError."""
    run.capture(["sfdisk", "--quiet", "--no-reread", "--no-tell-kernel", str(disk)], input=script)


def partition_starts(disk: Path) -> dict[int, int]:
    """The offset in bytes of each partition, by its number. Raises ToolError without a table."""
    table = json.loads(run.capture(["sfdisk", "--json", str(disk)]))["partitiontable"]
    return {
        int(re.findall(r"[0-9]+$", each["node"].removeprefix(str(disk)))[0]): each["start"]
        * table.get("sectorsize", 512)
        for each in table.get("partitions", [])
    }


def first_partition(disk: Path) -> int | None:
    """The offset in bytes of the first partition that `fdisk -lu` lists, whatever its boot flag:
    how a Nimbus node finds the file system that it writes into. None where none is listed."""
    listed = run.capture(["fdisk", "-lu", str(disk)])
    for line in listed.splitlines():
        if line.startswith(str(disk)):
            words = re.sub(r"^\S+\s+\*?\s*", "", line).split()
            return 512 * int(words[0])
    return None
