"""Phantom's AutoScaling query service, for programs of an appliance.

It uses the standard library alone: with boto3 a program that wakes for a moment takes 44 MB of
memory. Phantom wants signature version 2, and answers errors in plain text.
"""

from __future__ import annotations

import base64
import configparser
import hashlib
import hmac
import http.client
import os
import re
import ssl
import tempfile
import time
import xml.etree.ElementTree as ET
from collections.abc import Iterable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote, urlencode, urlsplit

SETTINGS = Path("/etc/phantom/settings")
POLICY = "error_overflow_n_preserving"
_NAMESPACE = "{http://autoscaling.amazonaws.com/doc/2011-01-01/}"
_LARGEST_ANSWER = 8 << 20
_KEYS = {"url", "access_key", "secret_key", "domain"}
_STORED = {"access_key": "aws_access_key_id", "secret_key": "aws_secret_access_key"}
_CREDENTIALS = ("IncompleteSignature", "InvalidClientTokenId", "RequestExpired")


class PhantomError(Exception):
    """What a user is told in one line; `status` is the exit status of phantom-ctl."""

    status = 70


class SettingsError(PhantomError):
    """The settings are missing or wrong."""

    status = 78


class AwayError(PhantomError):
    """Phantom cannot be reached, fails, takes too long, or something else answers in its place."""

    status = 69


class RefusedError(PhantomError):
    """Phantom refuses the call; `code` says why."""

    status = 65

    def __init__(self, text: str, code: str) -> None:
        super().__init__(text)
        self.code = code


class CredentialsError(RefusedError):
    """Phantom does not take the credentials, or this machine's clock is off."""

    status = 77


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Where Phantom is, and who asks."""

    url: str
    access_key: str
    secret_key: str
    domain: str = ""
    """The domain that commands mean which name none."""


@dataclass(frozen=True, kw_only=True)
class Machine:
    """A machine of a domain."""

    id: str
    site: str
    state: str


@dataclass(frozen=True, kw_only=True)
class Domain:
    """A domain, which Phantom's query service calls an AutoScaling group."""

    name: str
    launch_configuration: str
    desired: int
    machines: tuple[Machine, ...]


def parse_settings(text: str, where: str) -> Settings:
    """Settings in lines `key = value`: url, access_key, secret_key and perhaps domain. Raises
    SettingsError, which never shows a value."""
    parser = configparser.ConfigParser(interpolation=None, default_section="")
    try:
        parser.read_string("[phantom]\n" + text)
    except configparser.Error:
        raise SettingsError(f"{where}: not lines of the form `key = value`") from None
    told = dict(parser["phantom"])
    unknown = sorted(told.keys() - _KEYS)
    if unknown or len(parser.sections()) > 1:
        raise SettingsError(f"{where}: unknown: {', '.join(unknown) or 'a section'}")
    for key in ("url", "access_key", "secret_key"):
        if not re.fullmatch(r"[!-~]+", told.get(key, "")):
            raise SettingsError(f"{where}: {key} is missing or is no word of ASCII")
    if not re.fullmatch(r"https?://[^/@?#]+/?", told["url"]):
        raise SettingsError(f"{where}: url is not of the form https://HOST[:PORT]")
    return Settings(**told)


def write_settings(settings: Settings, path: Path = SETTINGS) -> None:
    """Writes the settings for the user who runs this alone, in a form that boto3 reads too."""
    told = {_STORED.get(key, key): value for key, value in vars(settings).items() if value}
    text = "[default]\n" + "".join(f"{key} = {value}\n" for key, value in told.items())
    path.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
    descriptor, new = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")  # mode 0600
    with os.fdopen(descriptor, "w") as file:
        file.write(text)
    Path(new).replace(path)


def read_settings(path: Path = SETTINGS) -> Settings:
    """The settings that write_settings wrote. Raises SettingsError."""
    try:
        text = path.read_text()
    except FileNotFoundError:
        raise SettingsError(f"{path} is not there: `phantom-ctl configure` writes it") from None
    except (OSError, UnicodeDecodeError) as error:
        raise SettingsError(f"{path} cannot be read: {error}") from None
    for key, stored in _STORED.items():
        text = re.sub(rf"^{stored}\b", key, text, flags=re.MULTILINE)
    return parse_settings(text.removeprefix("[default]\n"), str(path))


class Phantom:
    """A client. `seconds` limits each call; all methods raise PhantomError."""

    def __init__(self, settings: Settings, seconds: float = 30.0) -> None:
        self._settings = settings
        self._seconds = seconds

    def list_domains(self, *names: str) -> list[Domain]:
        """The user's domains, or those of these names that there are."""
        fields = _members("AutoScalingGroupNames", names)
        answer = self.call("DescribeAutoScalingGroups", fields)
        return [_to_domain(each) for each in _list(answer, "AutoScalingGroups")]

    def list_launch_configurations(self) -> list[str]:
        """The names `NAME@SITE` of the user's launch configurations."""
        answer = self.call("DescribeLaunchConfigurations", {})
        found = _list(answer, "LaunchConfigurations")
        return [_text(each, "LaunchConfigurationName") for each in found]

    def create_launch_configuration(self, parameters: Mapping[str, str]) -> None:
        """Creates one. `parameters` are those of CreateLaunchConfiguration: LaunchConfigurationName
        (`NAME@SITE`), ImageId, InstanceType and perhaps UserData, which is ASCII text."""
        fields = dict(parameters)
        if fields.get("UserData"):
            # Phantom would take other text, and then fail to describe any launch configuration.
            if not fields["UserData"].isascii():
                raise RefusedError("the user-data is not ASCII", "InvalidParameterValue")
            fields["UserData"] = base64.b64encode(fields["UserData"].encode()).decode()
        self.call("CreateLaunchConfiguration", fields)

    def delete_launch_configuration(self, name: str) -> None:
        """Deletes the one of a name `NAME@SITE`, which no domain may use."""
        self.call("DeleteLaunchConfiguration", {"LaunchConfigurationName": name})

    def create_domain(
        self, name: str, launch_configuration: str, sites: Sequence[tuple[str, int]], size: int
    ) -> None:
        """Creates a domain, whose sites are filled in their order, each up to its maximum (-1: no
        limit)."""
        tags = {
            "PHANTOM_DEFINITION": POLICY,
            "clouds": ",".join(f"{site}:{most}" for site, most in sites),
            "minimum_vms": str(size),
        }
        fields = {
            "AutoScalingGroupName": name,
            "LaunchConfigurationName": launch_configuration,
            "MinSize": "0",
            "MaxSize": str(max(size, sum(abs(most) for _, most in sites))),
            **_members("AvailabilityZones", [site for site, _ in sites]),
        }
        for number, (key, value) in enumerate(tags.items(), 1):
            tag = f"Tags.member.{number}"
            fields |= {f"{tag}.Key": key, f"{tag}.Value": value, f"{tag}.ResourceId": name}
            fields[f"{tag}.PropagateAtLaunch"] = "true"
            fields[f"{tag}.ResourceType"] = "auto-scaling-group"
        self.call("CreateAutoScalingGroup", fields)

    def resize_domain(self, name: str, size: int) -> None:
        """Sets how many machines a domain is to have."""
        fields = {"AutoScalingGroupName": name, "DesiredCapacity": str(size)}
        self.call("SetDesiredCapacity", fields)

    def delete_domain(self, name: str) -> None:
        """Deletes a domain; its machines end."""
        self.call("DeleteAutoScalingGroup", {"AutoScalingGroupName": name})

    def call(self, action: str, fields: Mapping[str, str]) -> ET.Element:
        """The answer to any call of the query service."""
        url = urlsplit(self._settings.url)
        host = url.netloc.lower()
        body = urlencode(self._sign(host, {"Action": action, "Version": "2011-01-01", **fields}))
        deadline = time.monotonic() + self._seconds
        try:
            with closing(self._connect(url.scheme, url.netloc)) as connection:
                kind = {"Content-Type": "application/x-www-form-urlencoded", "Host": host}
                connection.request("POST", "/", body, kind)
                answer = connection.getresponse()
                read = _read(answer, deadline)
        except TimeoutError:
            text = f"{self._settings.url} has not answered {action} in {self._seconds:g} seconds"
            raise AwayError(text) from None
        except (OSError, ValueError, http.client.HTTPException) as error:
            text = f"{self._settings.url} cannot be asked: {_line(str(error) or repr(error))}"
            raise AwayError(text) from None
        return _interpret(action, answer, read)

    def _connect(self, scheme: str, host: str) -> http.client.HTTPConnection:
        if scheme == "https":
            context = ssl.create_default_context()
            return http.client.HTTPSConnection(host, timeout=self._seconds, context=context)
        return http.client.HTTPConnection(host, timeout=self._seconds)

    def _sign(self, host: str, fields: Mapping[str, str]) -> dict[str, str]:
        """A call's fields with those of signature version 2."""
        whole = {
            **fields,
            "AWSAccessKeyId": self._settings.access_key,
            "SignatureVersion": "2",
            "SignatureMethod": "HmacSHA256",
            "Timestamp": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        }
        pairs = (f"{_quote(name)}={_quote(whole[name])}" for name in sorted(whole))
        text = "\n".join(("POST", host, "/", "&".join(pairs)))
        secret = self._settings.secret_key.encode()
        digest = hmac.digest(secret, text.encode(), hashlib.sha256)
        return {**whole, "Signature": base64.b64encode(digest).decode()}


def _read(answer: http.client.HTTPResponse, deadline: float) -> bytes:
    """An answer's body. Raises TimeoutError for one that comes too slowly, or is too long."""
    parts: list[bytes] = []
    while chunk := answer.read1(1 << 16):
        parts.append(chunk)
        if time.monotonic() > deadline or sum(map(len, parts)) > _LARGEST_ANSWER:
            raise TimeoutError
    return b"".join(parts)


def _interpret(action: str, answer: http.client.HTTPResponse, read: bytes) -> ET.Element:
    status, code = answer.status, _line(answer.reason)
    if status == http.client.OK:
        try:
            root = ET.fromstring(read)  # noqa: S314 (of the service that is trusted with the keys)
        except ET.ParseError:
            root = None
        if root is None or root.tag != f"{_NAMESPACE}{action}Response":
            raise AwayError(f"what answers {action} is not Phantom: {_told(read)}")
        return root
    text = f"Phantom refuses {action}: {status} {code}: {_told(read)}"
    if code in _CREDENTIALS:
        raise CredentialsError(text, code)
    if 400 <= status < 500:
        raise RefusedError(text, code)
    raise AwayError(text.replace("refuses", "fails at", 1))


def _told(read: bytes) -> str:
    """A body as one short line: plain text, or the text of HTML."""
    text = read[:4096].decode("utf-8", "replace")
    return _line(re.sub(r"(?s)<(style|script).*?</\1>|<[^>]*>", " ", text)) or "(nothing)"


def _line(text: str) -> str:
    plain = "".join(each if each.isprintable() else " " for each in text)
    return " ".join(plain.split())[:200]


def _quote(text: str) -> str:
    return quote(text, safe="-_~.")


def _members(name: str, values: Iterable[str]) -> dict[str, str]:
    return {f"{name}.member.{number}": value for number, value in enumerate(values, 1)}


def _list(element: ET.Element, name: str) -> list[ET.Element]:
    return element.findall(f".//{_NAMESPACE}{name}/{_NAMESPACE}member")


def _text(element: ET.Element, name: str) -> str:
    return element.findtext(f"{_NAMESPACE}{name}", "")


def _to_domain(element: ET.Element) -> Domain:
    desired = _text(element, "DesiredCapacity")
    return Domain(
        name=_text(element, "AutoScalingGroupName"),
        launch_configuration=_text(element, "LaunchConfigurationName"),
        desired=int(desired) if desired.isdecimal() else 0,
        machines=tuple(
            Machine(
                id=_text(each, "InstanceId"),
                site=_text(each, "AvailabilityZone"),
                state=_text(each, "LifecycleState"),
            )
            for each in _list(element, "Instances")
        ),
    )
