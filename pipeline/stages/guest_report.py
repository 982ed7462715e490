"""What a guest reports of itself, and the user-data that makes it do so."""

from __future__ import annotations

import base64
import gzip
import shlex
from collections.abc import Mapping
from pathlib import Path

from pipeline.disk.untrusted import lines_of, to_number, to_printable
from pipeline.errors import GuestCheckError
from pipeline.machine.metadata import MetadataService
from pipeline.stages.base import LocalFile

REPORT = Path(__file__).with_name("boot_report.sh")


def make_report_script(
    report: LocalFile,
    *,
    user_data: bytes | None,
    check: bytes | None,
    **variables: str,
) -> bytes:
    """The user-data that has a guest run `user_data`, then `check`, and report. `report` is
    `boot_report.sh`, whose other variables these are."""
    head = [f"{name}={shlex.quote(value)}" for name, value in variables.items()]
    for name, script in (("user_data", user_data), ("check", check)):
        if script is not None:
            head.append(f"{name}={base64.b64encode(script).decode()}")
    shebang, _, body = report.path.read_text().partition("\n")
    return "\n".join([shebang, *head, body]).encode("ascii")


def make_metadata(
    service: type[MetadataService], user_data: bytes, *, public_key: str
) -> MetadataService:
    """A service that hands out this user-data, packed where it would be too long. Raises
    GuestCheckError where it still is."""
    if service.ANY_BYTES and len(user_data) > service.LIMIT:
        user_data = gzip.compress(user_data, mtime=0)
    try:
        return service(user_data=user_data, public_key=public_key)
    except ValueError as error:
        raise GuestCheckError(
            f"the check script is too long to be handed to the guest: {error}",
            todo="keep the check script and the default user-data shorter, or copy what the "
            "check needs into the image",
        ) from error


def parse_report(report: bytes) -> dict[str, list[str]]:
    """The guest's lines, `name value`, by name. The guest is not trusted: control characters become
    `?`, and lines that say nothing are left out."""
    facts: dict[str, list[str]] = {}
    for line in lines_of(report.decode("utf-8", "replace")):
        name, _, value = to_printable(line).partition(" ")
        if value.strip():
            facts.setdefault(name, []).append(value)
    return facts


def status_of(facts: Mapping[str, list[str]], part: str) -> int:
    """With which status `user_data` or `check` has ended; 0 where there is none."""
    return number_of(facts, f"{part}_status")


def number_of(facts: Mapping[str, list[str]], name: str) -> int:
    """The number that a report gives; 0 where it gives none."""
    return to_number(facts.get(name, [""])[0]) or 0


def output_of(facts: Mapping[str, list[str]], part: str) -> str:
    """The end of what `user_data` or `check` has printed."""
    packed = facts.get(f"{part}_output", [""])[0]
    try:
        return base64.b64decode(packed).decode("utf-8", "replace")
    except ValueError:
        return "(its output came damaged)"


def public_key_of(nonce: str) -> str:
    """A line for authorized_keys whose key is not a key, so that it admits no login."""
    return f"ssh-ed25519 {nonce} phantom-boot-check"
