"""A file system without a partition table: what Nimbus's Xen nodes give a machine as its sda1.

The site brings the kernel and the ramdisk, so nothing here boots anything. The file has the disk's
size, and the file system grows to it at the first boot.
"""

from __future__ import annotations

from pipeline.layouts.layout import Layout

LAYOUT = Layout(name="bare", root_start=0)
