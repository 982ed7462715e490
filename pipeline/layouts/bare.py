"""A file system without a partition table, which Nimbus's Xen nodes give a machine as sda1.

The site provides kernel and ramdisk, so the disk needs no boot loader. The file has the disk's
size, and the file system grows to that at the first boot.
"""

from __future__ import annotations

from pipeline.layouts.layout import Layout

LAYOUT = Layout(name="bare", root_start=0)
