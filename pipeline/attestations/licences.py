"""Licences as Debian's copyright files and Python's metadata name them, in SPDX's terms."""

from __future__ import annotations

import re
from collections.abc import Sequence

_GNU = re.compile(r"(A?GPL|LGPL|GFDL)-(NIV-)?([1-3](?:\.[0-9])?)(\.0)?(\+)?", re.IGNORECASE)
_SAME = {
    "apache-2": "Apache-2.0",
    "artistic": "Artistic-1.0-Perl",  # Debian means Perl's, as in common-licenses
    "artistic-2": "Artistic-2.0",
    "bsl-1": "BSL-1.0",
    "cc0": "CC0-1.0",
    "expat": "MIT",
    "mpl-1": "MPL-1.0",
    "mpl-2": "MPL-2.0",
    "openldap-2.8": "OLDAP-2.8",
    "zlib/libpng": "Zlib",
    # Names that Python's classifiers have.
    "apache software license": "Apache-2.0",
    "isc license (iscl)": "ISC",
    "mit license": "MIT",
    "mozilla public license 2.0 (mpl 2.0)": "MPL-2.0",
    "python software foundation license": "PSF-2.0",
}


def find_spdx_id(name: str) -> str | None:
    """The id of a licence in SPDX's list; None for one that is not in it, and for several. Names of
    the BSD licences are Debian's, which say less than they seem to: only exact ones count."""
    from cyclonedx.spdx import fixup_id

    gnu = _GNU.fullmatch(name)
    if gnu is not None:
        family, invariant, version, _, later = gnu.groups()
        version = version if "." in version else f"{version}.0"
        kind = "-no-invariants" if invariant else ""
        name = f"{family}-{version}{kind}{'-or-later' if later else '-only'}"
    found: str | None = fixup_id(_SAME.get(name.lower(), name))
    return found


def find_expression(names: Sequence[str]) -> str | None:
    """The SPDX expression of a licence that is one choice or sum of licences in SPDX's list, such
    as `GPL-2+ or MIT`; None for anything else, and for several names."""
    if len(names) != 1:
        return None
    words = re.split(r"\s+(and|or)\s+", names[0], flags=re.IGNORECASE)
    ids = [find_spdx_id(word) for word in words[::2]]
    operators = {word.upper() for word in words[1::2]}
    if None in ids or len(operators) != 1:  # one id is no expression; AND beside OR needs brackets
        return None
    return f" {operators.pop()} ".join(map(str, ids))
