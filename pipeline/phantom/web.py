"""Phantom's web API, `/api/dev`: JSON with HTTP Basic authentication."""

from __future__ import annotations

import base64
import binascii
import hmac
import json
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import quote, unquote

from pipeline.phantom.query import NAME
from pipeline.phantom.refusal import Refusal
from pipeline.phantom.signature import User
from pipeline.phantom.state import (
    UNLIMITED,
    Domain,
    LaunchType,
    State,
    TakenError,
    TypeSite,
    UsedError,
)

BASE = "/api/dev"
USER_DATA_CHARACTERS = 1024
"""What the database's column for user-data holds."""
_METHODS = ("user_data", "chef", "none")
_FIELDS: Mapping[str, type] = {
    "image_id": str,
    "instance_type": str,
    "max_vms": int,
    "common": bool,
    "rank": int,
}
_MOST_MACHINES = 10_000


@dataclass(frozen=True, kw_only=True)
class Reply:
    """An answer of the web API; `body` is sent as JSON, None as nothing."""

    status: int
    body: Any = None
    headers: Mapping[str, str] = field(default_factory=dict)


def find_web_user(header: str, users: Mapping[str, User]) -> User:
    """The user of an `Authorization` header. Raises Refusal."""
    scheme, _, coded = header.partition(" ")
    try:
        name, _, token = base64.b64decode(coded, validate=True).decode().partition(":")
    except (binascii.Error, ValueError):
        name = token = ""
    user = users.get(name)
    if scheme != "Basic" or user is None:
        raise _unauthorized()
    if not hmac.compare_digest(user.token.encode(), token.encode()):
        raise _unauthorized()
    return user


def _unauthorized() -> Refusal:
    return Refusal(401, "UNAUTHORIZED", "The user id or its token is wrong.")


def _bad(text: str) -> Refusal:
    return Refusal(400, "BAD REQUEST", text)


def _not_found() -> Refusal:
    return Refusal(404, "NOT FOUND", "There is no such resource.")


class Web:
    """The web API of one Phantom. `changed` is called when machines may have to start or end."""

    def __init__(self, state: State, sites: Collection[str], changed: Callable[[], None]) -> None:
        self._state = state
        self._sites = sites
        self._changed = changed

    def answer(self, owner: str, method: str, path: str, body: bytes) -> Reply:
        """The answer to a user's request; `path` is what follows the base. Raises Refusal."""
        words = [unquote(word) for word in path.strip("/").split("/")]
        handlers = {"launchconfigurations": self._types, "domains": self._domains}
        handler = handlers.get(words[0])
        if handler is None:
            raise _not_found()
        reply = handler(owner, method, words[1:], body)
        if reply is None:
            raise Refusal(405, "METHOD NOT ALLOWED", f"{method} is not allowed here.")
        return reply

    # ---- launch configurations

    def _types(self, owner: str, method: str, words: list[str], body: bytes) -> Reply | None:
        if not words:
            if method == "GET":
                return Reply(status=200, body=[*map(_show_type, self._state.list_types(owner))])
            return self._add_type(owner, _read(body)) if method == "POST" else None
        known = self._state.find_type(owner, words[0])
        if known is None or words[1:]:
            raise _not_found()
        if method == "GET":
            return Reply(status=200, body=_show_type(known))
        if method == "PUT":
            made = self._read_type(owner, {**_read(body), "name": known.name})
            self._state.replace_type(made)
            return Reply(status=200, body=_show_type(made))
        return self._remove_type(owner, known) if method == "DELETE" else None

    def _add_type(self, owner: str, said: Mapping[str, Any]) -> Reply:
        made = self._read_type(owner, said)
        place = {"Location": _type_uri(made.name)}
        try:
            self._state.add_type(made)
        except TakenError:
            return Reply(status=302, headers=place)
        return Reply(status=201, body=_show_type(made), headers=place)

    def _remove_type(self, owner: str, known: LaunchType) -> Reply:
        try:
            self._state.remove_type(owner, known.name)
        except UsedError as error:
            raise _bad(f"A domain uses the launch configuration {known.name}.") from error
        return Reply(status=204)

    def _read_type(self, owner: str, said: Mapping[str, Any]) -> LaunchType:
        """The launch configuration of a request. Raises Refusal."""
        name = _need(said, "name", str)
        if not NAME.fullmatch(name):
            raise _bad("The name is not of the form ^[-_.0-9A-Za-z ]+$, or longer than 128.")
        method = _need(said, "contextualization_method", str)
        if method not in _METHODS:
            raise _bad(f"contextualization_method is one of {', '.join(_METHODS)}.")
        params = _need(said, "cloud_params", dict)
        data = said.get("user_data")
        own: Mapping[str, Any] = data if isinstance(data, dict) else {}
        for text in (data, *own.values()):
            if not (text is None or text is own or isinstance(text, str)):
                raise _bad("user_data is text, or text by site.")
            if isinstance(text, str) and len(text) > USER_DATA_CHARACTERS:
                raise Refusal(500, "INTERNAL SERVER ERROR", "Data too long for column 'user_data'.")
        if not params:
            raise _bad("cloud_params names no site.")
        sites = [self._read_site(site, values, own.get(site)) for site, values in params.items()]
        return LaunchType(
            owner=owner,
            name=name,
            method=method,
            user_data=data if isinstance(data, str) else None,
            appliance=said.get("appliance") and str(said["appliance"]),
            sites=tuple(sorted(sites, key=lambda each: each.rank)),
        )

    def _read_site(self, site: str, values: Any, user_data: str | None) -> TypeSite:
        if site not in self._sites:
            raise _bad(f"There is no site {site!r}.")
        if not isinstance(values, dict):
            raise _bad(f"cloud_params of {site} are no object.")
        told = {name: _need(values, name, kind) for name, kind in _FIELDS.items()}
        if told["rank"] < 1 or told["max_vms"] < UNLIMITED:
            raise _bad(f"rank of {site} begins at 1, max_vms at {UNLIMITED}.")
        return TypeSite(site=site, user_data=user_data, **told)

    # ---- domains

    def _domains(self, owner: str, method: str, words: list[str], body: bytes) -> Reply | None:
        if not words:
            if method == "GET":
                domains = self._state.list_domains(owner)
                return Reply(status=200, body=[*map(_show_domain, domains)])
            return self._add_domain(owner, _read(body)) if method == "POST" else None
        known = self._state.find_domain(owner, words[0])
        if known is None:
            raise _not_found()
        if words[1:]:
            return self._machines(owner, method, known, words[1:])
        if method == "GET":
            return Reply(status=200, body=_show_domain(known))
        if method == "PUT":
            self._state.resize(known.id, _count(_read(body)))
        elif method == "DELETE":
            self._state.delete_domain(known.id)
        else:
            return None
        self._changed()
        if method == "DELETE":
            return Reply(status=204)
        changed = self._state.find_domain(owner, known.name) or known
        return Reply(status=200, body=_show_domain(changed))

    def _add_domain(self, owner: str, said: Mapping[str, Any]) -> Reply:
        name, type_name = _need(said, "name", str), _need(said, "lc_name", str)
        if not NAME.fullmatch(name):
            raise _bad("The name is not of the form ^[-_.0-9A-Za-z ]+$, or longer than 128.")
        if _need(said, "de_name", str) != "multicloud":
            raise _bad("de_name is `multicloud`: a local Phantom has no sensors.")
        known = self._state.find_type(owner, type_name)
        if known is None:
            raise _bad(f"There is no launch configuration {type_name}.")
        made = Domain(
            owner=owner,
            name=name,
            type=type_name,
            desired=_count(said),
            clouds=tuple((site.site, site.max_vms) for site in known.sites),
            more={"lc": type_name},
        )
        place = {"Location": _domain_uri(name)}
        try:
            made = self._state.add_domain(made)
        except TakenError:
            return Reply(status=302, headers=place)
        self._changed()
        return Reply(status=201, body=_show_domain(made), headers=place)

    def _machines(self, owner: str, method: str, domain: Domain, words: list[str]) -> Reply | None:
        if words[0] != "vms" or words[2:]:
            raise _not_found()
        machines = self._state.list_machines(domain.id)
        shown = [
            {
                "id": each.id,
                "cloud": each.site,
                "image": each.image_id,
                "lifecycle_state": each.state,
            }
            for each in machines
        ]
        if not words[1:]:
            return Reply(status=200, body=shown) if method == "GET" else None
        one = next((each for each in shown if each["id"] == words[1]), None)
        if one is None:
            raise _not_found()
        if method == "GET":
            return Reply(status=200, body=one)
        if method != "DELETE":
            return None
        self._state.release(owner, one["id"], shrink=False)
        self._changed()
        return Reply(status=204)


def _read(body: bytes) -> dict[str, Any]:
    try:
        said = json.loads(body)
    except ValueError as error:
        raise _bad("The body is no JSON.") from error
    if not isinstance(said, dict):
        raise _bad("The body is no JSON object.")
    return said


def _need(said: Mapping[str, Any], name: str, kind: type) -> Any:
    """A field of a type. Raises Refusal."""
    if name not in said:
        raise _bad(f"The field {name} is missing.")
    value = said[name]
    if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
        raise _bad(f"The field {name} is of another type.")
    return value


def _count(said: Mapping[str, Any]) -> int:
    count: int = _need(said, "vm_count", int)
    if not 0 <= count <= _MOST_MACHINES:
        raise _bad(f"vm_count is a number from 0 to {_MOST_MACHINES}.")
    return count


def _type_uri(name: str) -> str:
    return f"{BASE}/launchconfigurations/{quote(name)}"


def _domain_uri(name: str) -> str:
    return f"{BASE}/domains/{quote(name)}"


def _show_type(each: LaunchType) -> dict[str, Any]:
    own = {site.site: site.user_data for site in each.sites if site.user_data is not None}
    fields = {site.site: {name: getattr(site, name) for name in _FIELDS} for site in each.sites}
    return {
        "id": each.name,
        "name": each.name,
        "owner": each.owner,
        "uri": _type_uri(each.name),
        "cloud_params": fields,
        "contextualization_method": each.method,
        "user_data": own or each.user_data,
        "appliance": each.appliance,
    }


def _show_domain(domain: Domain) -> dict[str, Any]:
    return {
        "id": domain.name,
        "name": domain.name,
        "owner": domain.owner,
        "uri": _domain_uri(domain.name),
        "vms_uri": f"{_domain_uri(domain.name)}/vms",
        "lc_name": domain.type,
        "de_name": "multicloud",
        "vm_count": domain.desired,
    }
