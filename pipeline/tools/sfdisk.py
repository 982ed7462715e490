"""Partition tables: written by sfdisk, and read as sfdisk and Nimbus's nodes read them."""

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
    sector = table.get("sectorsize", 512)
    starts = {part["node"]: sector * part["start"] for part in table.get("partitions", [])}
    return {
        int(re.findall(r"[0-9]+$", node.removeprefix(str(disk)))[0]): start
        for node, start in starts.items()
    }


def first_partition(disk: Path) -> int | None:
    """The offset in bytes of the first partition that `fdisk -lu` lists, whatever its boot flag, or
    None. Nimbus's nodes write into that one (docs/facts/nimbus.md)."""
    listed = run.capture(["fdisk", "-lu", str(disk)])
    start = re.search(rf"^{re.escape(str(disk))}\S* +(?:\* *)?([0-9]+)", listed, re.MULTILINE)
    return 512 * int(start[1]) if start else None
