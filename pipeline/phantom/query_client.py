"""A Phantom by its AutoScaling query API, with signature version 2."""

from __future__ import annotations

import base64
import binascii
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from typing import ClassVar
from urllib.parse import urlencode, urlsplit
from xml.etree import ElementTree

from pipeline.phantom.client import (
    Clouds,
    Configuration,
    DomainMachine,
    DomainState,
    SiteParams,
)
from pipeline.phantom.connection import Answer, Connection
from pipeline.phantom.failures import Explainer, make_taken
from pipeline.phantom.query import NAMESPACE, POLICY
from pipeline.phantom.refusal import Refusal
from pipeline.phantom.signature import User, sign_fields

_VERSION = "2011-01-01"
_TYPE = "application/x-www-form-urlencoded; charset=utf-8"
_MOST = 10_000
"""The largest group, where a site has no limit."""


class QueryClient:
    """A Phantom that is asked by query calls. See `Client`."""

    replaces_in_use: ClassVar[bool] = False
    ranks_sites: ClassVar[bool] = False

    def __init__(self, connection: Connection, explainer: Explainer, user: User) -> None:
        self.service = connection.service
        self._connection = connection
        self._explainer = explainer
        self._user = user
        parts = urlsplit(self.service.url)
        self._path = f"{parts.path}/"
        self._host = parts.netloc.lower().removesuffix(
            {"http": ":80", "https": ":443"}[parts.scheme]
        )

    # ---- launch configurations

    def find_configuration(self, name: str) -> Configuration | None:
        sites: dict[str, SiteParams] = {}
        user_data = ""
        for each in self._describe("LaunchConfigurations", "launch configurations"):
            own, _, site = _text(each, "LaunchConfigurationName").partition("@")
            if own == name:
                sites[site] = SiteParams(
                    image_id=_text(each, "ImageId"), instance_type=_text(each, "InstanceType")
                )
                user_data = self._decode(_text(each, "UserData"))
        if not sites:
            return None
        return Configuration(name=name, sites=sites, user_data=user_data or None)

    def _decode(self, text: str) -> str:
        try:
            return base64.b64decode(text, validate=True).decode()
        except (binascii.Error, ValueError) as error:
            raise self._connection.make_foreign("user-data that is no base64") from error

    def put_site(self, wanted: Configuration, site: str, before: Configuration | None) -> None:
        name = f"{wanted.name}@{site}"
        if before is not None and site in before.sites:
            self._call(
                "DeleteLaunchConfiguration", f"deleting {name}", LaunchConfigurationName=name
            )
        params = wanted.sites[site]
        more = {}
        if isinstance(wanted.user_data, str):
            more = {"UserData": base64.b64encode(wanted.user_data.encode()).decode()}
        try:
            self._ask(
                "CreateLaunchConfiguration",
                LaunchConfigurationName=name,
                ImageId=params.image_id,
                InstanceType=params.instance_type,
                **more,
            )
        except Refusal as refusal:
            if _is_invalid(refusal):
                found = self.find_configuration(wanted.name)
                if found is not None and site in found.sites:
                    raise make_taken(self.service, f"launch configuration {name}") from refusal
            raise self._explainer.explain(refusal, f"creating {name}") from refusal

    # ---- domains

    def list_domains(self) -> list[DomainState]:
        found = self._describe("AutoScalingGroups", "domains")
        return sorted(map(self._to_domain, found), key=lambda domain: domain.name)

    def find_domain(self, name: str) -> DomainState | None:
        return next((each for each in self.list_domains() if each.name == name), None)

    def _to_domain(self, group: ElementTree.Element) -> DomainState:
        tags = {_text(tag, "Key"): _text(tag, "Value") for tag in _members(group, "Tags")}
        size = _text(group, "DesiredCapacity")
        if not (size.isascii() and size.isdigit()):
            raise self._connection.make_foreign("a group without a DesiredCapacity")
        return DomainState(
            name=_text(group, "AutoScalingGroupName"),
            configuration=_text(group, "LaunchConfigurationName").partition("@")[0],
            size=int(size),
            clouds=_parse_clouds(tags.get("clouds", "")),
            machines=[
                DomainMachine(
                    id=_text(each, "InstanceId"),
                    site=_text(each, "AvailabilityZone"),
                    state=_text(each, "LifecycleState"),
                )
                for each in _members(group, "Instances")
            ],
        )

    def create_domain(self, name: str, configuration: str, size: int, clouds: Clouds) -> None:
        most = sum(limit for _, limit in clouds)
        if any(limit < 0 for _, limit in clouds):
            most = _MOST
        tags = {
            "PHANTOM_DEFINITION": POLICY,
            "clouds": ",".join(f"{site}:{limit}" for site, limit in clouds),
            "minimum_vms": str(size),
        }
        try:
            self._ask(
                "CreateAutoScalingGroup",
                AutoScalingGroupName=name,
                LaunchConfigurationName=f"{configuration}@{clouds[0][0]}",
                MinSize="0",
                MaxSize=str(max(most, size)),
                **{
                    f"AvailabilityZones.member.{number}": site
                    for number, (site, _) in enumerate(clouds, 1)
                },
                **_make_tag_fields(name, tags),
            )
        except Refusal as refusal:
            if _is_invalid(refusal) and self.find_domain(name) is not None:
                raise make_taken(self.service, f"domain {name}") from refusal
            raise self._explainer.explain(refusal, f"creating domain {name}") from refusal

    def resize_domain(self, domain: DomainState, size: int) -> None:
        self._call(
            "SetDesiredCapacity",
            f"resizing domain {domain.name}",
            AutoScalingGroupName=domain.name,
            DesiredCapacity=str(size),
        )

    def delete_domain(self, domain: DomainState) -> None:
        self._call(
            "DeleteAutoScalingGroup",
            f"deleting domain {domain.name}",
            AutoScalingGroupName=domain.name,
        )

    # ---- calls

    def _describe(self, kind: str, words: str) -> Iterator[ElementTree.Element]:
        """All of a kind, page by page."""
        more: dict[str, str] = {}
        while True:
            result = self._call(f"Describe{kind}", f"describing {words}", **more)
            yield from _members(result, kind)
            token = _text(result, "NextToken")
            if not token:
                return
            more = {"NextToken": token}

    def _call(self, action: str, words: str, **fields: str) -> ElementTree.Element:
        try:
            return self._ask(action, **fields)
        except Refusal as refusal:
            raise self._explainer.explain(refusal, words) from refusal

    def _ask(self, action: str, **fields: str) -> ElementTree.Element:
        """The result of a call, an empty one where it has none. Raises Refusal."""
        whole = {"Action": action, "Version": _VERSION, **fields}
        now = datetime.now(UTC)
        signed = sign_fields(self._user, self._host, self._path, whole, now)
        answer = self._connection.send(
            "POST",
            "/",
            body=urlencode(signed).encode(),
            headers={"Host": self._host, "Content-Type": _TYPE},
        )
        if answer.status >= 400:
            raise self._connection.make_refusal(answer)
        return self._parse(action, answer)

    def _parse(self, action: str, answer: Answer) -> ElementTree.Element:
        self._connection.check_no_page(answer)
        try:
            # expat limits what entities grow to, and this parser fetches none.
            root = ElementTree.fromstring(answer.body)  # noqa: S314
        except ElementTree.ParseError as error:
            raise self._connection.make_foreign(_describe_text(self._connection, answer)) from error
        if root.tag != f"{{{NAMESPACE}}}{action}Response":
            raise self._connection.make_foreign("XML of something else")
        result = root.find(f"{{{NAMESPACE}}}{action}Result")
        return ElementTree.Element("none") if result is None else result


def _describe_text(connection: Connection, answer: Answer) -> str:
    words = connection.hide(answer.words)
    return f"what is no XML ({words!r})" if words else "nothing"


def _parse_clouds(text: str) -> Clouds | None:
    """The sites of a group's tag `clouds`; None where it cannot be read."""
    clouds = []
    for word in text.split(","):
        site, _, most = word.strip().rpartition(":")
        try:
            clouds.append((site, int(most)))
        except ValueError:
            return None
    return tuple(clouds)


def _make_tag_fields(group: str, tags: Mapping[str, str]) -> dict[str, str]:
    """A group's tags, each with all five fields."""
    return {
        f"Tags.member.{number}.{field}": value
        for number, (key, said) in enumerate(tags.items(), 1)
        for field, value in {
            "Key": key,
            "Value": said,
            "PropagateAtLaunch": "true",
            "ResourceId": group,
            "ResourceType": "auto-scaling-group",
        }.items()
    }


def _is_invalid(refusal: Refusal) -> bool:
    return refusal.code == "InvalidParameterValue"


def _text(element: ElementTree.Element, name: str) -> str:
    return element.findtext(f"{{{NAMESPACE}}}{name}") or ""


def _members(element: ElementTree.Element, name: str) -> list[ElementTree.Element]:
    return element.findall(f"{{{NAMESPACE}}}{name}/{{{NAMESPACE}}}member")
