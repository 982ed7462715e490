"""The certificates that a definition trusts for the time of the build."""

from __future__ import annotations

import base64
import re
from collections.abc import Iterator
from typing import Any

_BLOCK = re.compile(
    r"-----BEGIN (?P<kind>[A-Z0-9 ]{1,40})-----\s(?P<body>[^-]*)-----END (?P=kind)-----"
)
_SEQUENCE = 0x30  # how the DER form of every certificate begins (X.690)

BUILD_CERTIFICATES: dict[str, Any] = {
    "description": "Files beside the definition with certificates in PEM form, which programs that "
    "reach the network trust while the image is made, and the image does not get.",
    "type": "array",
    "maxItems": 20,
    "items": {
        "description": "A file, relative to the definition.",
        "type": "string",
        "minLength": 1,
        "examples": ["proxy-ca.pem"],
    },
    "examples": [["proxy-ca.pem"]],
}
"""The JSON Schema of `build_certificates`."""


def read_certificates(text: str) -> list[bytes]:
    """The certificates of a PEM file (RFC 7468), in DER form. Raises ValueError, whose text says
    what is wrong with the file."""
    found = list(_read_blocks(text))
    if not found:
        raise ValueError("has no certificate in PEM form; `openssl x509 -in FILE` writes one")
    return found


def _read_blocks(text: str) -> Iterator[bytes]:
    for block in _BLOCK.finditer(text):
        if block["kind"] != "CERTIFICATE":
            kind = block["kind"].lower()
            raise ValueError(f"has a block '{kind}'; leave all but the certificates out")
        try:
            decoded = base64.b64decode("".join(block["body"].split()), validate=True)
        except ValueError:
            decoded = b""
        if len(decoded) < 2 or decoded[0] != _SEQUENCE:
            line = text.count("\n", 0, block.start()) + 1
            raise ValueError(f"has a damaged certificate on line {line}")
        yield decoded
