"""One module per layout of file systems on a disk: data only.

A new layout is one module that defines `LAYOUT`, and one line in `LAYOUTS`.
"""

from __future__ import annotations

from pipeline.layouts.bare import LAYOUT as BARE
from pipeline.layouts.hybrid import LAYOUT as HYBRID
from pipeline.layouts.layout import Layout
from pipeline.layouts.mbr import LAYOUT as MBR

LAYOUTS: dict[str, Layout] = {"bare": BARE, "hybrid": HYBRID, "mbr": MBR}
