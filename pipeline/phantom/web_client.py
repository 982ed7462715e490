"""A Phantom by its web application's API: JSON with HTTP Basic authentication."""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any, ClassVar
from urllib.parse import quote

from pipeline import records
from pipeline.phantom.client import (
    Clouds,
    Configuration,
    DomainMachine,
    DomainState,
    SiteParams,
)
from pipeline.phantom.connection import Answer, Connection
from pipeline.phantom.failures import Explainer, make_taken
from pipeline.phantom.signature import User
from pipeline.phantom.web import BASE

_ID = (str, int)
_TYPES = [
    {
        "id": _ID,
        "name": str,
        "cloud_params": {
            str: {
                "image_id": str,
                "instance_type": str,
                "max_vms": int,
                "common": bool,
                "rank": int,
            }
        },
        "contextualization_method": str,
        "user_data": (str, {str: str}, None),
        "appliance?": (str, None),
    }
]
_DOMAINS = [{"id": _ID, "name": str, "lc_name": str, "vm_count": int}]
_MACHINES = [{"id": str, "cloud": str, "lifecycle_state": str}]


def authorize(user: User) -> str:
    """The user's id and token as HTTP Basic authentication sends them."""
    return base64.b64encode(f"{user.access_key}:{user.token}".encode()).decode()


class WebClient:
    """A Phantom that is asked by the web API. See `Client`."""

    replaces_in_use: ClassVar[bool] = True
    ranks_sites: ClassVar[bool] = True

    def __init__(self, connection: Connection, explainer: Explainer, user: User) -> None:
        self.service = connection.service
        self._connection = connection
        self._explainer = explainer
        self._user = user

    # ---- launch configurations

    def find_configuration(self, name: str) -> Configuration | None:
        found = self._get("/launchconfigurations", "describing launch configurations", _TYPES)
        each = next((each for each in found if each["name"] == name), None)
        if each is None:
            return None
        fields = ("image_id", "instance_type", "max_vms", "common", "rank")
        return Configuration(
            name=name,
            sites={
                site: SiteParams(**{field: params[field] for field in fields})
                for site, params in each["cloud_params"].items()
            },
            user_data=each["user_data"] or None,
            method=each["contextualization_method"],
            appliance=each.get("appliance"),
            id=str(each["id"]),
        )

    def put_site(self, wanted: Configuration, site: str, before: Configuration | None) -> None:
        """All sites at once: the API replaces launch configurations as a whole."""
        body = {
            "name": wanted.name,
            "cloud_params": {name: asdict(params) for name, params in wanted.sites.items()},
            "contextualization_method": wanted.method,
            "user_data": wanted.user_data,
            "appliance": wanted.appliance,
        }
        what = f"launch configuration {wanted.name}"
        if before is not None:
            path = f"/launchconfigurations/{quote(before.id, safe='')}"
            self._call("PUT", path, f"replacing {what}", body)
        elif self._call("POST", "/launchconfigurations", f"creating {what}", body).status == 302:
            raise make_taken(self.service, what)

    # ---- domains

    def list_domains(self) -> list[DomainState]:
        found = self._get("/domains", "describing domains", _DOMAINS)
        return sorted(map(_to_domain, found), key=lambda domain: domain.name)

    def find_domain(self, name: str) -> DomainState | None:
        found = next((each for each in self.list_domains() if each.name == name), None)
        if found is None:
            return None
        path = f"{_path(found)}/vms"
        machines = self._get(path, f"describing the machines of {name}", _MACHINES)
        return DomainState(
            name=name,
            configuration=found.configuration,
            size=found.size,
            id=found.id,
            machines=[
                DomainMachine(id=each["id"], site=each["cloud"], state=each["lifecycle_state"])
                for each in machines
            ],
        )

    def create_domain(self, name: str, configuration: str, size: int, clouds: Clouds) -> None:
        body = _describe(name, configuration, size)
        if self._call("POST", "/domains", f"creating domain {name}", body).status == 302:
            raise make_taken(self.service, f"domain {name}")

    def resize_domain(self, domain: DomainState, size: int) -> None:
        body = _describe(domain.name, domain.configuration, size)
        self._call("PUT", _path(domain), f"resizing domain {domain.name}", body)

    def delete_domain(self, domain: DomainState) -> None:
        self._call("DELETE", _path(domain), f"deleting domain {domain.name}")

    # ---- calls

    def _get(self, path: str, words: str, shape: Any) -> Any:
        answer = self._call("GET", path, words)
        try:
            return records.parse(answer.body, shape)
        except records.Unfit as unfit:
            raise self._connection.make_foreign(f"what it cannot say here ({unfit})") from unfit

    def _call(
        self, method: str, path: str, words: str, body: Mapping[str, Any] | None = None
    ) -> Answer:
        answer = self._connection.send(
            method,
            f"{BASE}{path}",
            body=None if body is None else json.dumps(body).encode(),
            headers={
                "Authorization": f"Basic {authorize(self._user)}",
                "Content-Type": "application/json",
            },
        )
        if answer.status >= 400:
            raise self._explainer.explain(self._connection.make_refusal(answer), words)
        self._connection.check_no_page(answer)
        return answer


def _path(domain: DomainState) -> str:
    return f"/domains/{quote(domain.id, safe='')}"


def _describe(name: str, configuration: str, size: int) -> dict[str, Any]:
    return {"name": name, "lc_name": configuration, "de_name": "multicloud", "vm_count": size}


def _to_domain(said: Mapping[str, Any]) -> DomainState:
    return DomainState(
        name=said["name"],
        configuration=said["lc_name"],
        size=said["vm_count"],
        id=str(said["id"]),
    )
