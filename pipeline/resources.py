"""What comes with the program beside its modules: elements, examples, pages that messages name.

In a checkout they lie beside `pipeline/`. A wheel has copies of them within it (`setup.py`).
"""

from __future__ import annotations

import re
from pathlib import Path

_PACKAGE = Path(__file__).resolve().parent
_DATA = _PACKAGE / "data"

_NAMED = re.compile(
    r"(?<![\w/])(docs/[a-z0-9/-]+\.md|ARCHITECTURE\.md|elements/[a-z-]+|sites\.example\.yaml)"
)

INSTALLED = _DATA.is_dir()
"""Whether the program runs from a wheel, and not from a checkout."""


def find(name: str) -> Path:
    """The absolute path of a file or folder that comes with the program."""
    return (_DATA if INSTALLED else _PACKAGE.parent) / name


def locate(text: str) -> str:
    """A text for people with the absolute path of each page, element or example that it names,
    where that does not lie in a checkout that they have."""
    return _NAMED.sub(lambda found: str(find(found[0])), text) if INSTALLED else text


def setup_hint(what: str = "what is missing") -> str:
    """How people install what a build host lacks."""
    if INSTALLED:
        return f"`phantom-image doctor` says what installs {what}"
    return f"`make setup` installs {what}"
