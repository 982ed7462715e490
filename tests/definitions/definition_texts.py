"""Text and types that the tests of definitions share."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from pipeline.model import Appliance

HEAD = 'name: web\nversion: "1.0"\nsummary: A web server\n'
"""The three lines that every definition needs; a test's own text begins on line 4."""

Write = Callable[[str, "str | bytes"], Path]
"""Writes a file below the current directory."""

Load = Callable[[str], Appliance]
"""Loads the appliance `web` from a definition's text."""
