"""The wire protocols of the strict EC2 server, which follow botocore's models.

Nothing here knows what an action does. This module parses requests by the models from which
botocore writes them, so it refuses a parameter that Amazon does not know, and an answer can only
have the shape that Amazon's would have.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from email.message import Message
from functools import cache, cached_property
from typing import Any
from urllib.parse import parse_qsl, quote, unquote
from xml.sax.saxutils import escape

import botocore.session

SKEW_SECONDS = 300  # how far SigV4 lets a request's date be off
_UNSIGNED = "UNSIGNED-PAYLOAD"
_SCHEME = re.compile(
    r"AWS4-HMAC-SHA256 Credential=(?P<key>[^/,]+)/(?P<date>\d{8})/(?P<region>[^/]+)"
    r"/(?P<service>[^/]+)/aws4_request, *SignedHeaders=(?P<headers>[^,]+), *"
    r"Signature=(?P<signature>[0-9a-f]{64})$"
)


class ServiceError(Exception):
    """An error answer: the service's error code and its HTTP status."""

    def __init__(
        self, code: str, message: str, *, status: int = 400, reason: str | None = None
    ) -> None:
        super().__init__(f"{code}: {message}")
        self.code, self.message, self.status, self.reason = code, message, status, reason


@dataclass(frozen=True, kw_only=True)
class Request:
    """A whole HTTP request."""

    method: str
    path: str
    """As sent: percent-encoded, without the query."""
    query: str
    headers: Message
    body: bytes

    @cached_property
    def body_digest(self) -> bytes:
        """The raw SHA-256 of the body."""
        return hashlib.sha256(self.body).digest()

    def header(self, name: str) -> str | None:
        return self.headers.get(name)


@dataclass(frozen=True, kw_only=True)
class Answer:
    """A whole HTTP answer."""

    status: int
    body: bytes = b""
    headers: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Signed:
    """What a request claims about its signer, not yet verified."""

    key: str
    date: str
    region: str
    service: str
    headers: tuple[str, ...]
    signature: str


@cache
def service_model(service: str) -> Any:
    """botocore's model of ec2, ebs, sts or s3."""
    return botocore.session.get_session().get_service_model(service)


@cache
def operation_model(service: str, action: str) -> Any:
    return service_model(service).operation_model(action)


# --- SigV4 --------------------------------------------------------------------------------------


def read_signature(request: Request) -> Signed | None:
    """The signature; None without one of version 4 in the Authorization header."""
    found = _SCHEME.match(request.header("Authorization") or "")
    if found is None:
        return None
    return Signed(
        key=found["key"],
        date=found["date"],
        region=found["region"],
        service=found["service"],
        headers=tuple(found["headers"].split(";")),
        signature=found["signature"],
    )


@cache
def _signing_key(secret: str, date: str, region: str, service: str) -> bytes:
    key = b"AWS4" + secret.encode()
    for part in (date, region, service, "aws4_request"):
        key = hmac.digest(key, part.encode(), "sha256")
    return key


def is_signature_right(
    request: Request, signed: Signed, secret: str, *, may_be_unsigned: bool
) -> bool:
    """Whether this secret gives this version-4 signature for this request.

    `may_be_unsigned`: whether the operation takes a body that the signature does not cover.
    """
    declared = request.header("x-amz-content-sha256")
    actual = request.body_digest.hex() if declared is None or len(declared) == 64 else None
    if actual is None and not may_be_unsigned:
        return False
    if actual is not None and declared not in (None, actual):
        return False
    payload = actual or declared or _UNSIGNED
    amz_date = request.header("x-amz-date") or ""
    if "host" not in signed.headers or amz_date[:8] != signed.date:
        return False
    path = request.path if signed.service == "s3" else quote(request.path, safe="/~")
    pairs = (pair.partition("=") for pair in request.query.split("&") if pair)
    query = "&".join(f"{key}={value}" for key, value in sorted((k, v) for k, _, v in pairs))
    headers = "".join(
        f"{name}:{','.join(' '.join(v.split()) for v in request.headers.get_all(name, []))}\n"
        for name in signed.headers
    )
    canonical = "\n".join((request.method, path, query, headers, ";".join(signed.headers), payload))
    scope = f"{signed.date}/{signed.region}/{signed.service}/aws4_request"
    text = "\n".join(
        ("AWS4-HMAC-SHA256", amz_date, scope, hashlib.sha256(canonical.encode()).hexdigest())
    )
    key = _signing_key(secret, signed.date, signed.region, signed.service)
    return hmac.compare_digest(hmac.digest(key, text.encode(), "sha256").hex(), signed.signature)


def is_date_right(request: Request, now: float) -> bool:
    try:
        sent = datetime.strptime(request.header("x-amz-date") or "", "%Y%m%dT%H%M%S%z")
    except ValueError:
        return False
    return abs(sent.timestamp() - now) <= SKEW_SECONDS


def unchunk(request: Request) -> bytes:
    """The body without the chunks of `aws-chunked`, which SDKs use for checksums in trailers."""
    if "aws-chunked" not in (request.header("Content-Encoding") or ""):
        return request.body
    data, rest = b"", request.body
    while rest:
        head, _, rest = rest.partition(b"\r\n")
        size = int(head.partition(b";")[0], 16)
        if size == 0:
            break
        data, rest = data + rest[:size], rest[size + 2 :]
    return data


# --- the EC2 query protocol ---------------------------------------------------------------------


def parse_form(body: bytes) -> dict[str, str]:
    pairs = parse_qsl(body.decode(), keep_blank_values=True)
    fields = dict(pairs)
    if len(fields) != len(pairs):
        raise ServiceError("InvalidParameter", "A parameter is given twice")
    return fields


def parse_ec2_query(action: str, fields: Mapping[str, str]) -> dict[str, Any]:
    """The parameters of an action by their model's names.

    ServiceError: the action does not have such a parameter, a value has the wrong type, or a
    required parameter is missing.
    """
    left = {k: v for k, v in fields.items() if k not in ("Action", "Version")}
    values = _parse_structure(operation_model("ec2", action).input_shape, "", left)
    if left:
        raise ServiceError("UnknownParameter", f"The parameter {min(left)} is not recognized")
    return values


def _query_name(shape: Any, member: str) -> str:
    serialization = shape.serialization
    if "queryName" in serialization:
        return str(serialization["queryName"])
    name = str(serialization.get("name", member))
    return name[0].upper() + name[1:]


def _parse_structure(shape: Any, prefix: str, left: dict[str, str]) -> dict[str, Any]:
    values: dict[str, Any] = {}
    for member, inner in shape.members.items():
        key = prefix + _query_name(inner, member)
        value = _parse_query_value(inner, key, left)
        if value is not None:
            values[member] = value
        elif member in shape.required_members:
            raise ServiceError("MissingParameter", f"The request must contain the parameter {key}")
    return values


def _parse_query_value(shape: Any, key: str, left: dict[str, str]) -> Any:
    if shape.type_name == "structure":
        inside = any(each.startswith(f"{key}.") for each in left)
        return _parse_structure(shape, f"{key}.", left) if inside else None
    if shape.type_name == "list":
        return _parse_list(shape, key, left) or None
    text = left.pop(key, None)
    return None if text is None else _parse_scalar(shape, key, text)


def _parse_list(shape: Any, key: str, left: dict[str, str]) -> list[Any]:
    numbers = {
        int(each[len(key) + 1 :].partition(".")[0])
        for each in left
        if each.startswith(f"{key}.") and each[len(key) + 1 :].partition(".")[0].isdigit()
    }
    if numbers and numbers != set(range(1, len(numbers) + 1)):
        raise ServiceError("InvalidParameter", f"The list {key} is not numbered from 1")
    return [_parse_query_value(shape.member, f"{key}.{n}", left) for n in sorted(numbers)]


def _parse_scalar(shape: Any, key: str, text: str) -> Any:
    try:
        return _convert(shape, text)
    except ValueError:
        raise ServiceError(
            "InvalidParameterValue", f"Value ({text}) for parameter {key} is invalid."
        ) from None


def _convert(shape: Any, text: str) -> Any:
    """Converts text to the value of a simple shape. ValueError: the text is not such a value."""
    if shape.type_name in ("integer", "long"):
        return int(text)
    if shape.type_name in ("float", "double"):
        return float(text)
    if shape.type_name == "boolean":
        return {"true": True, "false": False}[text] if text in ("true", "false") else int("no")
    if shape.type_name == "timestamp":
        return datetime.fromisoformat(text.replace("Z", "+00:00")).timestamp()
    if shape.type_name == "blob":
        return base64.b64decode(text, validate=True)
    if text not in (getattr(shape, "enum", None) or [text]):
        raise ValueError(text)
    return text


def write_ec2_answer(action: str, values: Mapping[str, Any], request_id: str) -> Answer:
    shape = operation_model("ec2", action).output_shape
    inside = f"<requestId>{request_id}</requestId>"
    if shape is None:
        inside += "<return>true</return>"
    else:
        inside += _write_members(shape, values)
    namespace = service_model("ec2").metadata["xmlNamespace"]
    return _answer_xml(200, f'<{action}Response xmlns="{namespace}">{inside}</{action}Response>')


def _write_members(shape: Any, values: Mapping[str, Any]) -> str:
    unknown = set(values) - set(shape.members)
    assert not unknown, f"{shape.name} has no {unknown}"
    return "".join(
        _write_xml(
            shape.members[member], shape.members[member].serialization.get("name", member), v
        )
        for member, v in values.items()
        if v is not None
    )


def _write_xml(shape: Any, tag: str, value: Any) -> str:
    if shape.type_name == "structure":
        inside = _write_members(shape, value)
    elif shape.type_name == "list":
        name = shape.member.serialization.get("name", "item")
        inside = "".join(_write_xml(shape.member, name, each) for each in value)
    elif shape.type_name == "boolean":
        inside = "true" if value else "false"
    elif shape.type_name == "timestamp":
        inside = format_time(value)
    else:
        inside = escape(str(value))
    return f"<{tag}>{inside}</{tag}>"


def format_time(seconds: float) -> str:
    return f"{datetime.fromtimestamp(seconds, tz=UTC):%Y-%m-%dT%H:%M:%S.000Z}"


def _answer_xml(status: int, text: str) -> Answer:
    body = f'<?xml version="1.0" encoding="UTF-8"?>\n{text}'.encode()
    return Answer(status=status, body=body, headers={"Content-Type": "text/xml;charset=UTF-8"})


def write_sts_answer(action: str, values: Mapping[str, Any], request_id: str) -> Answer:
    inside = _write_members(operation_model("sts", action).output_shape, values)
    namespace = service_model("sts").metadata["xmlNamespace"]
    return _answer_xml(
        200,
        f'<{action}Response xmlns="{namespace}"><{action}Result>{inside}</{action}Result>'
        f"<ResponseMetadata><RequestId>{request_id}</RequestId></ResponseMetadata>"
        f"</{action}Response>",
    )


def write_s3_answer(tag: str, inside: str, status: int = 200) -> Answer:
    namespace = "http://s3.amazonaws.com/doc/2006-03-01/"
    return _answer_xml(status, f'<{tag} xmlns="{namespace}">{inside}</{tag}>')


# --- REST-JSON, which the EBS direct APIs use ---------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class _Route:
    action: str
    method: str
    pattern: re.Pattern[str]


@cache
def _ebs_routes() -> tuple[_Route, ...]:
    def build() -> Iterator[_Route]:
        for action in service_model("ebs").operation_names:
            http = operation_model("ebs", action).http
            pattern = re.sub(r"\\\{(\w+)\\\}", r"(?P<\1>[^/]+)", re.escape(http["requestUri"]))
            yield _Route(action=action, method=http["method"], pattern=re.compile(pattern))

    return tuple(build())


def find_ebs_action(request: Request) -> tuple[str, dict[str, str]] | None:
    """The operation that a path belongs to, and the parameters in it."""
    for route in _ebs_routes():
        found = route.pattern.fullmatch(request.path)
        if found is not None and route.method == request.method:
            return route.action, {k: unquote(v) for k, v in found.groupdict().items()}
    return None


def _invalid(message: str) -> ServiceError:
    return ServiceError("ValidationException", message, reason="INVALID_PARAMETER_VALUE")


def parse_ebs_request(action: str, in_path: Mapping[str, str], request: Request) -> dict[str, Any]:
    """The parameters by their model's names, checked against the whole model."""
    shape = operation_model("ebs", action).input_shape
    query = dict(parse_qsl(request.query, keep_blank_values=True))
    values: dict[str, Any] = {}
    in_body: dict[str, Any] = {}
    for member, inner in shape.members.items():
        where, name = inner.serialization.get("location"), inner.serialization.get("name", member)
        text = {
            "uri": in_path.get(name),
            "querystring": query.pop(name, None),
            "header": request.header(name),
        }.get(where)
        if text is not None:
            values[member] = _check(inner, member, _convert_or_refuse(inner, member, text))
        elif where is None:
            in_body[member] = inner
    if query:
        raise _invalid(f"Unknown parameter {min(query)}")
    payload = shape.serialization.get("payload")
    if payload is not None:
        values[payload] = request.body
    elif in_body:
        values |= _parse_json(in_body, request.body)
    missing = [member for member in shape.required_members if member not in values]
    if missing:
        raise _invalid(f"{missing[0]} is required")
    return values


def _convert_or_refuse(shape: Any, member: str, text: str) -> Any:
    try:
        return _convert(shape, text)
    except ValueError:
        raise _invalid(f"{member} is not valid: {text}") from None


def _parse_json(members: Mapping[str, Any], body: bytes) -> dict[str, Any]:
    try:
        given = json.loads(body)
    except ValueError:
        raise _invalid("The body is not JSON") from None
    if not isinstance(given, dict) or not set(given) <= set(members):
        raise _invalid(f"The body has more than {', '.join(members)}")
    return {
        member: _check(members[member], member, value)
        for member, value in given.items()
        if value is not None
    }


_JSON_TYPES: Mapping[str, type | tuple[type, ...]] = {
    "string": str,
    "integer": int,
    "long": int,
    "boolean": bool,
    "list": list,
    "structure": dict,
    "timestamp": (int, float),
}


def _check(shape: Any, name: str, value: Any) -> Any:
    """Refuses a value outside the model's limits (type, range, length, pattern, choice)."""
    expected: Any = _JSON_TYPES[shape.type_name]
    if not isinstance(value, expected) or (expected is int and isinstance(value, bool)):
        raise _invalid(f"{name} is not a {shape.type_name}")
    limits = shape.metadata
    size = value if isinstance(value, int) else len(value)
    if size < limits.get("min", size) or size > limits.get("max", size):
        raise _invalid(f"{name} is outside {limits.get('min')} to {limits.get('max')}: {value}")
    if "pattern" in limits and not re.fullmatch(limits["pattern"], value):
        raise _invalid(f"{name} does not match {limits['pattern']}")
    if value not in (limits.get("enum") or [value]):
        raise _invalid(f"{name} is none of {limits['enum']}")
    if shape.type_name == "list":
        return [_check(shape.member, name, each) for each in value]
    if shape.type_name == "structure":
        if not set(value) <= set(shape.members):
            raise _invalid(f"{name} has more than {', '.join(shape.members)}")
        return {k: _check(shape.members[k], f"{name}.{k}", v) for k, v in value.items()}
    return value


def write_ebs_answer(action: str, values: Mapping[str, Any]) -> Answer:
    model = operation_model("ebs", action)
    shape = model.output_shape
    assert set(values) <= set(shape.members), f"{shape.name} has not all of {set(values)}"
    headers = {"Content-Type": "application/json"}
    in_body = {}
    for member, value in values.items():
        where = shape.members[member].serialization
        if where.get("location") == "header":
            headers[where["name"]] = str(value)
        elif value is not None:
            in_body[member] = value
    payload = shape.serialization.get("payload")
    body = values[payload] if payload is not None else json.dumps(in_body).encode()
    return Answer(status=model.http.get("responseCode", 200), body=body, headers=headers)


# --- errors, in the form of each protocol -------------------------------------------------------


def write_error(service: str, error: ServiceError, request_id: str) -> Answer:
    code, message = escape(error.code), escape(error.message)
    if service == "ebs":
        values = {"Message": error.message}
        if error.reason is not None:
            values["Reason"] = error.reason
        headers = {"Content-Type": "application/json", "x-amzn-ErrorType": error.code}
        return Answer(status=error.status, body=json.dumps(values).encode(), headers=headers)
    if service == "sts":
        return _answer_xml(
            error.status,
            f"<ErrorResponse><Error><Type>Sender</Type><Code>{code}</Code><Message>{message}"
            f"</Message></Error><RequestId>{request_id}</RequestId></ErrorResponse>",
        )
    if service == "s3":
        return _answer_xml(
            error.status,
            f"<Error><Code>{code}</Code><Message>{message}</Message><RequestId>{request_id}"
            "</RequestId></Error>",
        )
    return _answer_xml(
        error.status,
        f"<Response><Errors><Error><Code>{code}</Code><Message>{message}</Message></Error>"
        f"</Errors><RequestID>{request_id}</RequestID></Response>",
    )
