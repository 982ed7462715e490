"""OpenPGP's public keys (RFC 9580, and RFC 4880 before it): their armor and their fingerprints."""

from __future__ import annotations

import base64
import hashlib
import textwrap
from collections.abc import Iterator

_BLOCK = "PGP PUBLIC KEY BLOCK-----"
_BINARY = 0x80  # set in the first byte of each packet, and in no letter of an armor
_PUBLIC_KEY = 6  # tags of packets (RFC 9580, section 5)
_SECRET_KEYS = (5, 7)
_CRC = 0xB704CE  # RFC 9580, section 6.1.1
_GENERATOR = 0x864CFB


class NotPublicKeyError(ValueError):
    """A text has no public keys, or secret ones."""


def decode(content: bytes) -> str:
    """The ASCII-armored text of a file of public keys, which may be binary. Raises
    UnicodeDecodeError for what is neither."""
    if not content or not content[0] & _BINARY:
        return content.decode()
    try:
        list(_packets(content))
    except NotPublicKeyError:
        return content.decode()
    body = textwrap.wrap(base64.b64encode(content).decode(), 64)
    check = base64.b64encode(_crc(content).to_bytes(3, "big")).decode()
    lines = [f"-----BEGIN {_BLOCK}", "", *body, f"={check}", f"-----END {_BLOCK}"]
    return "".join(f"{line}\n" for line in lines)


def fingerprints(text: str) -> list[str]:
    """The fingerprints of the primary keys in an ASCII-armored block, in upper-case hexadecimal
    digits. Raises NotPublicKeyError."""
    found = []
    for tag, body in _packets(_unarmor(text)):
        if tag in _SECRET_KEYS:
            raise NotPublicKeyError("holds a secret key")
        if tag == _PUBLIC_KEY:
            found.append(_fingerprint(body))
        elif not found:
            break
    if not found:
        raise NotPublicKeyError("holds no public key")
    return found


def _unarmor(text: str) -> bytes:
    lines = [line.strip() for line in text.strip().splitlines()]
    if not lines or (lines[0], lines[-1]) != (f"-----BEGIN {_BLOCK}", f"-----END {_BLOCK}"):
        raise NotPublicKeyError("is no block of public keys")
    blank = lines.index("") if "" in lines else 0
    headers, body = lines[1:blank], lines[blank + 1 : -1]
    if not blank or not all(": " in header for header in headers):
        raise NotPublicKeyError("is damaged")
    encoded = "".join(line for line in body if not line.startswith("="))
    try:
        return base64.b64decode(encoded, validate=True)
    except ValueError as error:
        raise NotPublicKeyError("is damaged") from error


def _packets(data: bytes) -> Iterator[tuple[int, bytes]]:
    """The packets of binary keys, by their tags. Raises NotPublicKeyError."""
    at = 0
    while at < len(data):
        try:
            tag, start, size = _header(data, at)
        except IndexError as error:
            raise NotPublicKeyError("is damaged") from error
        if start + size > len(data):
            raise NotPublicKeyError("is damaged")
        yield tag, data[start : start + size]
        at = start + size


def _header(data: bytes, at: int) -> tuple[int, int, int]:
    """A packet's tag, where its body begins, and the size of that (RFC 9580, section 4.2)."""
    first = data[at]
    if not first & _BINARY:
        raise NotPublicKeyError("is damaged")
    if first & 0x40:  # of the newer form
        length = data[at + 1]
        if length < 192:
            return first & 0x3F, at + 2, length
        if length < 224:
            return first & 0x3F, at + 3, ((length - 192) << 8) + data[at + 2] + 192
        if length < 255:  # parts of data, which no key has
            raise NotPublicKeyError("is damaged")
        size, start = 4, at + 2
        tag = first & 0x3F
    else:
        if first & 3 == 3:
            raise NotPublicKeyError("is damaged")
        size, start = 1 << (first & 3), at + 1
        tag = (first >> 2) & 0x0F
    if start + size > len(data):
        raise NotPublicKeyError("is damaged")
    return tag, start + size, int.from_bytes(data[start : start + size], "big")


def _fingerprint(body: bytes) -> str:
    """That of a public key's packet (RFC 9580, section 5.5.4; version 5 is LibrePGP's)."""
    version = body[0] if body else 0
    if version == 4 and len(body) < 1 << 16:
        hashed = hashlib.sha1(usedforsecurity=False)
        hashed.update(b"\x99" + len(body).to_bytes(2, "big") + body)
        return hashed.hexdigest().upper()
    if version in (5, 6):
        mark = b"\x9a" if version == 5 else b"\x9b"
        hashed = hashlib.sha256(mark + len(body).to_bytes(4, "big") + body)
        return hashed.hexdigest().upper()
    raise NotPublicKeyError("holds a key of an unknown version")


def _crc(content: bytes) -> int:
    crc = _CRC
    for byte in content:
        crc ^= byte << 16
        for _ in range(8):
            crc <<= 1
            if crc & 0x1000000:
                crc ^= 0x1000000 | _GENERATOR
    return crc & 0xFFFFFF
