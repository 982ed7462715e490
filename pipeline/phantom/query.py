"""Phantom's AutoScaling query calls: fields in, XML out."""

from __future__ import annotations

import base64
import binascii
import re
import uuid
from collections.abc import Callable, Collection, Mapping, Sequence
from datetime import UTC, datetime
from xml.sax.saxutils import escape

from pipeline.phantom.refusal import Refusal, broken, invalid, missing
from pipeline.phantom.state import (
    ENDING,
    RUNNING,
    Domain,
    LaunchType,
    MachineRow,
    State,
    TakenError,
    TypeSite,
    UsedError,
)

NAMESPACE = "http://autoscaling.amazonaws.com/doc/2011-01-01/"
POLICY = "error_overflow_n_preserving"
KEY_NAME = "phantomkey"
LONGEST_NAME = 128
NAME = re.compile(r"[-_.0-9A-Za-z ]{1,128}")
"""A launch configuration's name, without `@site`; and a domain's."""

_TAG_FIELDS = ("Key", "Value", "PropagateAtLaunch", "ResourceId", "ResourceType")
_STATES = {RUNNING: "InService", ENDING: "Terminating"}
_MOST_MACHINES = 10_000


class Query:
    """The calls of one Phantom. `changed` is called when machines may have to start or end."""

    def __init__(self, state: State, sites: Collection[str], changed: Callable[[], None]) -> None:
        self._state = state
        self._sites = sites
        self._changed = changed
        self._actions: dict[str, Callable[[str, Mapping[str, str]], str]] = {
            "CreateLaunchConfiguration": self._create_type,
            "DescribeLaunchConfigurations": self._describe_types,
            "DeleteLaunchConfiguration": self._delete_type,
            "CreateAutoScalingGroup": self._create_domain,
            "DescribeAutoScalingGroups": self._describe_domains,
            "SetDesiredCapacity": self._resize,
            "TerminateInstanceInAutoScalingGroup": self._terminate,
            "DeleteAutoScalingGroup": self._delete_domain,
        }

    def answer(self, owner: str, fields: Mapping[str, str]) -> str:
        """The XML that answers a user's call. Raises Refusal."""
        name = _need(fields, "Action")
        action = self._actions.get(name)
        if action is None:
            raise Refusal(404, "NotFound", f"The action {name[:80]} is not supported.")
        result = action(owner, fields)
        inner = f"<{name}Result>{result}</{name}Result>" if result else ""
        return (
            f'<{name}Response xmlns="{NAMESPACE}">{inner}<ResponseMetadata>'
            f"<RequestId>{uuid.uuid4()}</RequestId></ResponseMetadata></{name}Response>"
        )

    # ---- launch configurations

    def _create_type(self, owner: str, fields: Mapping[str, str]) -> str:
        whole = _need(fields, "LaunchConfigurationName")
        image_id, instance_type = _need(fields, "ImageId"), _need(fields, "InstanceType")
        name, site = split_name(whole)
        if site not in self._sites:
            raise invalid(f"There is no site {site!r}.")
        if any(re.match(r"BlockDeviceMappings\.member\.\d+\.Ebs\.", field) for field in fields):
            raise broken("block devices of EBS are not understood")
        entry = TypeSite(site=site, image_id=image_id, instance_type=instance_type)
        data = _decode_user_data(fields.get("UserData"))
        method = "none" if data is None else "user_data"
        made = LaunchType(owner=owner, name=name, method=method, user_data=data, sites=(entry,))
        try:
            self._state.add_type_site(made)
        except TakenError as error:
            raise invalid(f"The launch configuration {whole} exists already.") from error
        return ""

    def _describe_types(self, owner: str, fields: Mapping[str, str]) -> str:
        wanted = _members(fields, "LaunchConfigurationNames")
        types = self._state.list_types(owner)
        _check_ascii(types)
        members = [
            _describe_type(each, site)
            for each in types
            for site in each.sites
            if not wanted or f"{each.name}@{site.site}" in wanted
        ]
        return _list("LaunchConfigurations", members)

    def _delete_type(self, owner: str, fields: Mapping[str, str]) -> str:
        whole = _need(fields, "LaunchConfigurationName")
        name, site = split_name(whole)
        try:
            found = self._state.remove_type(owner, name, site)
        except UsedError as error:
            text = f"A group uses the launch configuration {whole}."
            raise Refusal(400, "ResourceInUse", text) from error
        if not found:
            raise invalid(f"There is no launch configuration {whole}.")
        return ""

    # ---- groups

    def _create_domain(self, owner: str, fields: Mapping[str, str]) -> str:
        name = _need(fields, "AutoScalingGroupName")
        type_name = _need(fields, "LaunchConfigurationName")
        sizes = [_count(fields, field) for field in ("MinSize", "MaxSize")]
        zones = _members(fields, "AvailabilityZones")
        if not zones:
            raise missing("AvailabilityZones.member.1")
        tags = _read_tags(fields)
        told = {tag["Key"]: tag["Value"] for tag in tags}
        desired, clouds = self._read_policy(told)
        if not NAME.fullmatch(name):
            raise invalid(f"{name[:LONGEST_NAME]!r} is no name of a group.")
        if sizes[0] > sizes[1]:
            raise invalid("MinSize is greater than MaxSize.")
        if self._state.find_type(owner, type_name.partition("@")[0]) is None:
            raise invalid(f"There is no launch configuration {type_name}.")
        made = Domain(
            owner=owner,
            name=name,
            type=type_name.partition("@")[0],
            desired=desired,
            clouds=clouds,
            more={"lc": type_name, "sizes": sizes, "zones": zones, "tags": tags},
        )
        try:
            self._state.add_domain(made)
        except TakenError as error:
            raise invalid(f"The group {name} exists already.") from error
        self._changed()
        return ""

    def _read_policy(self, tags: Mapping[str, str]) -> tuple[int, tuple[tuple[str, int], ...]]:
        """How many machines, and where, by a group's tags. Raises Refusal."""
        for key in ("PHANTOM_DEFINITION", "clouds", "minimum_vms"):
            if key not in tags:
                raise missing(f"Tags ({key})")
        if tags["PHANTOM_DEFINITION"] != POLICY:
            raise invalid(f"There is no definition {tags['PHANTOM_DEFINITION']!r}.")
        clouds = []
        for text in tags["clouds"].split(","):
            site, _, most = text.strip().partition(":")
            if site not in self._sites:
                raise invalid(f"There is no site {site!r} (clouds).")
            if not re.fullmatch(r"-1|[0-9]{1,5}", most):
                raise invalid(f"{text!r} is not of the form site:maximum (clouds).")
            clouds.append((site, int(most)))
        return _to_count(tags["minimum_vms"], "minimum_vms"), tuple(clouds)

    def _describe_domains(self, owner: str, fields: Mapping[str, str]) -> str:
        wanted = _members(fields, "AutoScalingGroupNames")
        _check_ascii(self._state.list_types(owner))
        domains = [
            domain
            for domain in self._state.list_domains(owner)
            if not wanted or domain.name in wanted
        ]
        members = [
            _describe_domain(domain, self._state.list_machines(domain.id)) for domain in domains
        ]
        return _list("AutoScalingGroups", members)

    def _find_domain(self, owner: str, fields: Mapping[str, str]) -> Domain:
        name = _need(fields, "AutoScalingGroupName")
        domain = self._state.find_domain(owner, name)
        if domain is None:
            raise invalid(f"There is no group {name}.")
        return domain

    def _resize(self, owner: str, fields: Mapping[str, str]) -> str:
        desired = _count(fields, "DesiredCapacity")
        self._state.resize(self._find_domain(owner, fields).id, desired)
        self._changed()
        return ""

    def _terminate(self, owner: str, fields: Mapping[str, str]) -> str:
        machine = _need(fields, "InstanceId")
        shrinks = _need(fields, "ShouldDecrementDesiredCapacity").lower()
        if shrinks not in ("true", "false"):
            raise invalid("ShouldDecrementDesiredCapacity is true or false.")
        released = self._state.release(owner, machine, shrink=shrinks == "true")
        if released is None:
            raise invalid(f"There is no instance {machine}.")
        self._changed()
        domains = self._state.list_domains(owner)
        group = next((each.name for each in domains if each.id == released.domain), "")
        activity = {
            "ActivityId": str(uuid.uuid4()),
            "AutoScalingGroupName": group,
            "Cause": "a user has asked for it",
            "Description": f"Terminating {machine}",
            "Progress": "0",
            "StartTime": _time(datetime.now(UTC).timestamp()),
            "StatusCode": "InProgress",
        }
        return f"<Activity>{_elements(activity)}</Activity>"

    def _delete_domain(self, owner: str, fields: Mapping[str, str]) -> str:
        self._state.delete_domain(self._find_domain(owner, fields).id)
        self._changed()
        return ""


def split_name(whole: str) -> tuple[str, str]:
    """The launch configuration and the site of `name@site`, cut at the first `@`. Raises
    Refusal."""
    name, at, site = whole.partition("@")
    if not at or not site or not NAME.fullmatch(name):
        raise invalid(f"{whole[:LONGEST_NAME]!r} is not of the form name@site.")
    return name, site


def _decode_user_data(text: str | None) -> str | None:
    """User-data as it is stored. What is no text, such as gzip, fails at once. Raises Refusal."""
    if not text:
        return None
    try:
        return base64.b64decode(text, validate=True).decode()
    except binascii.Error as error:
        raise invalid("UserData is not base64.") from error
    except UnicodeDecodeError as error:
        raise broken("UserData is no text.") from error


def _check_ascii(types: Sequence[LaunchType]) -> None:
    """One launch configuration whose user-data is not ASCII breaks every description. Raises
    Refusal."""
    for each in types:
        texts = (each.user_data, *(site.user_data for site in each.sites))
        if not all(text is None or text.isascii() for text in texts):
            raise broken("'ascii' codec can't encode the user-data")


def _read_tags(fields: Mapping[str, str]) -> list[dict[str, str]]:
    numbers = sorted(
        {
            int(match[1])
            for name in fields
            if (match := re.match(r"Tags\.member\.(\d{1,4})\.", name))
        }
    )
    return [
        {field: _need(fields, f"Tags.member.{number}.{field}") for field in _TAG_FIELDS}
        for number in numbers
    ]


def _need(fields: Mapping[str, str], name: str) -> str:
    value = fields.get(name)
    if not value:
        raise missing(name)
    return value


def _count(fields: Mapping[str, str], name: str) -> int:
    return _to_count(_need(fields, name), name)


def _to_count(text: str, name: str) -> int:
    if not re.fullmatch("[0-9]{1,5}", text) or int(text) > _MOST_MACHINES:
        raise invalid(f"{name} is a number from 0 to {_MOST_MACHINES}.")
    return int(text)


def _members(fields: Mapping[str, str], name: str) -> list[str]:
    pattern = re.compile(rf"{name}\.member\.\d{{1,4}}")
    return [value for field, value in fields.items() if pattern.fullmatch(field)]


def _describe_type(each: LaunchType, site: TypeSite) -> str:
    name = f"{each.name}@{site.site}"
    data = base64.b64encode((each.user_data_at(site.site) or "").encode()).decode()
    told = {
        "LaunchConfigurationName": name,
        "LaunchConfigurationARN": _arn("launchConfiguration", name),
        "ImageId": site.image_id,
        "InstanceType": site.instance_type,
        "KeyName": KEY_NAME,
        "UserData": data,
        "KernelId": "",
        "RamdiskId": "",
        "CreatedTime": _time(site.created),
    }
    empty = "<SecurityGroups/><BlockDeviceMappings/>"
    return (
        f"{_elements(told)}{empty}<InstanceMonitoring><Enabled>false</Enabled></InstanceMonitoring>"
    )


def _describe_domain(domain: Domain, machines: Sequence[MachineRow]) -> str:
    more = domain.more
    least, most = more.get("sizes", (0, domain.desired))
    type_name = more.get("lc", domain.type)
    told = {
        "AutoScalingGroupName": domain.name,
        "AutoScalingGroupARN": _arn("autoScalingGroup", domain.name),
        "LaunchConfigurationName": type_name,
        "MinSize": str(least),
        "MaxSize": str(most),
        "DesiredCapacity": str(domain.desired),
        "DefaultCooldown": "0",
        "HealthCheckType": "EC2",
        "HealthCheckGracePeriod": "0",
        "CreatedTime": _time(domain.created),
    }
    zones = [escape(zone) for zone in more.get("zones", [site for site, _ in domain.clouds])]
    instances = [
        _elements(
            {
                "InstanceId": machine.id,
                "AvailabilityZone": machine.site,
                "LifecycleState": _STATES.get(machine.state, "Pending"),
                "HealthStatus": "Healthy",
                "LaunchConfigurationName": type_name,
            }
        )
        for machine in machines
    ]
    return (
        _elements(told)
        + _list("AvailabilityZones", zones)
        + "<LoadBalancerNames/><EnabledMetrics/><SuspendedProcesses/>"
        + _list("Instances", instances)
        + _list("Tags", [_elements(tag) for tag in more.get("tags", ())])
    )


def _list(name: str, members: Sequence[str]) -> str:
    return f"<{name}>{''.join(f'<member>{each}</member>' for each in members)}</{name}>"


def _elements(told: Mapping[str, str]) -> str:
    return "".join(f"<{name}>{escape(value)}</{name}>" for name, value in told.items())


def _arn(kind: str, name: str) -> str:
    return f"arn:aws:autoscaling:phantom:000000000000:{kind}:{name}"


def _time(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
