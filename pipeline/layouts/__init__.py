"""One module per layout, data only.

A new layout is a module that defines `LAYOUT`, and a line here with the module's name.
"""

from __future__ import annotations

from collections.abc import Iterable
from importlib import import_module

from pipeline.layouts.layout import Layout

LAYOUTS: dict[str, Layout] = {
    name: import_module(f"{__name__}.{name}").LAYOUT
    for name in (
        "bare",
        "hybrid",
        "mbr",
    )
}
"""The layouts by name, which is the module's."""

AROUND_ROOT = max(layout.around for layout in LAYOUTS.values())
"""The most bytes that any layout needs on a disk beside the root partition."""


def find_layout(table_kind: str | None, other_types: Iterable[str]) -> Layout | None:
    """The layout with this kind of partition table, and with partitions of these types beside root;
    None if there is no such layout."""
    wanted = (table_kind, tuple(sorted(other_types)))
    for layout in LAYOUTS.values():
        if layout.table is not None and (layout.table_kind, layout.other_types) == wanted:
            return layout
    return None
