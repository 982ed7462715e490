"""Signature version 2 of the query protocol: who has sent a request, and when."""

from __future__ import annotations

import base64
import hashlib
import hmac
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from urllib.parse import quote

from pipeline.phantom.refusal import Refusal, broken, invalid, missing

WINDOW = timedelta(minutes=15)
"""How far a request's clock may be off."""

_METHODS = {"HmacSHA256": hashlib.sha256, "HmacSHA1": hashlib.sha1}
_SIGNED = ("AWSAccessKeyId", "SignatureVersion", "SignatureMethod", "Timestamp", "Signature")


@dataclass(frozen=True, kw_only=True)
class User:
    """Who may use a Phantom."""

    access_key: str
    """The id of both interfaces."""
    secret_key: str
    """What query calls are signed with."""
    token: str
    """The password of the web API."""


@dataclass(frozen=True, kw_only=True)
class Signed:
    """What of an HTTP request is signed, and its fields."""

    method: str
    host: str
    """The header `Host`."""
    path: str
    fields: Mapping[str, str]
    authorization: str = ""


def find_user(request: Signed, users: Mapping[str, User], now: datetime) -> User:
    """The user who has signed a request. Raises Refusal."""
    if request.authorization.startswith("AWS4-"):
        raise broken("signature version 4 is not understood")
    for field in _SIGNED:
        if not request.fields.get(field):
            raise missing(field)
    user = users.get(request.fields["AWSAccessKeyId"])
    if user is None:
        raise Refusal(403, "InvalidClientTokenId", "The access key is not known.")
    if not _is_signed_by(user, request):
        raise Refusal(400, "IncompleteSignature", "The signature does not match.")
    if abs(_read_time(request.fields["Timestamp"]) - now) > WINDOW:
        raise Refusal(400, "RequestExpired", "The timestamp is more than 15 minutes off.")
    return user


def sign(user: User, request: Signed, host: str) -> str:
    """The signature of a request's fields, in base64."""
    fields = {name: value for name, value in request.fields.items() if name != "Signature"}
    pairs = (f"{_quote(name)}={_quote(fields[name])}" for name in sorted(fields))
    text = "\n".join((request.method, host.lower(), request.path, "&".join(pairs)))
    method = _METHODS[request.fields["SignatureMethod"]]
    digest = hmac.new(user.secret_key.encode(), text.encode(), method).digest()
    return base64.b64encode(digest).decode()


def sign_fields(
    user: User, host: str, path: str, fields: Mapping[str, str], now: datetime
) -> dict[str, str]:
    """The fields of a POST with those of its signature; `now` is in UTC."""
    whole = {
        **fields,
        "AWSAccessKeyId": user.access_key,
        "SignatureVersion": "2",
        "SignatureMethod": "HmacSHA256",
        "Timestamp": now.strftime("%Y-%m-%dT%H:%M:%SZ"),
    }
    request = Signed(method="POST", host=host, path=path, fields=whole)
    return {**whole, "Signature": sign(user, request, host)}


def _is_signed_by(user: User, request: Signed) -> bool:
    known = request.fields["SignatureMethod"] in _METHODS
    if not known or request.fields["SignatureVersion"] != "2":
        return False
    # boto 2 signs the host without its port, boto3 with it; the real service takes both.
    hosts = (request.host, request.host.rpartition(":")[0] or request.host)
    given = request.fields["Signature"].encode()
    return any(hmac.compare_digest(sign(user, request, host).encode(), given) for host in hosts)


def _read_time(text: str) -> datetime:
    """A time of ISO 8601, in UTC where it names no zone. Raises Refusal."""
    try:
        told = datetime.fromisoformat(text)
        return told if told.tzinfo else told.replace(tzinfo=UTC)
    except ValueError as error:
        raise invalid("The timestamp cannot be read.") from error


def _quote(text: str) -> str:
    return quote(text, safe="-_~.")
