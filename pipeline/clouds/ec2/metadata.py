"""EC2's metadata service, version 2."""

from __future__ import annotations

import secrets
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import ClassVar

from pipeline.disk.untrusted import to_number
from pipeline.machine.metadata import USER_DATA_PATH, Answer, Request, find_meta_data

TOKEN_PATH = "/latest/api/token"
PUBLIC_KEYS_PATH = "/latest/meta-data/public-keys"
_TOKEN = "x-aws-ec2-metadata-token"

EC2_USER_DATA_BYTES = 16_384
EC2_VERSIONS = (
    *("1.0", "2007-01-19", "2007-03-01", "2007-08-29", "2007-10-10", "2007-12-15", "2008-02-01"),
    *("2008-09-01", "2009-04-04", "2011-01-01", "2011-05-01", "2012-01-12", "2014-02-25"),
    *("2014-11-05", "2015-10-20", "2016-04-19", "2016-06-30", "2016-09-02", "2018-03-28"),
    *("2018-08-17", "2018-09-24", "2019-10-01", "2020-10-27", "2021-01-03", "2021-03-23"),
)
"""What may stand in place of `latest` in a path, as EC2's documentation lists them."""
EC2_TOKEN_SECONDS = 21_600  # the longest life of a token
IDENTITY_PATH = "/latest/dynamic/instance-identity/"

EC2_META_DATA: Mapping[str, str] = {
    "ami-id": "ami-0123456789abcdef0",
    "ami-launch-index": "0",
    "instance-id": "i-0123456789abcdef0",
    "local-ipv4": "10.0.0.2",
    # cloud-init asks for the card again and again where it is not told.
    "mac": "52:54:00:12:34:56",
    "network/interfaces/macs/52:54:00:12:34:56/device-number": "0",
    "network/interfaces/macs/52:54:00:12:34:56/local-ipv4s": "10.0.0.2",
    "network/interfaces/macs/52:54:00:12:34:56/mac": "52:54:00:12:34:56",
    "placement/availability-zone": "us-east-1a",
}
"""The card is the one that QEMU gives a machine."""
EC2_IDENTITY: Mapping[str, str] = {
    "document": '{"instanceId": "i-0123456789abcdef0", "region": "us-east-1"}'
}


@dataclass(frozen=True, kw_only=True)
class Ec2Metadata:
    """EC2's metadata service, version 2, as its documentation describes it (docs/facts/ec2.md).

    - `PUT /latest/api/token` needs a time to live of 1 to 21,600 seconds, else 400.
    - Every GET needs a token that lives, else 401.
    - Without user-data, `/latest/user-data` is a 404.
    - `/latest/meta-data/public-keys/` lists key pairs, `0=NAME` a line; 404 without any.
    - The version of an interface may stand in place of `latest`: cloud-init asks for one.

    Raises ValueError for user-data that EC2 would not take at launch.
    """

    LATE: ClassVar[Answer | None] = None
    """A reset, and not an error of HTTP: cloud-init takes any such error, at the token call, to
    mean that the service is off, and it is that call which cloud-init repeats."""
    LIMIT: ClassVar[int] = EC2_USER_DATA_BYTES
    ANY_BYTES: ClassVar[bool] = True

    user_data: bytes | None = None
    public_key: str | None = None
    """Of the launch's key pair; None: it has none."""
    meta_data: Mapping[str, str] = field(default_factory=lambda: EC2_META_DATA)
    _token_ends: dict[str, float] = field(default_factory=dict, init=False, repr=False)

    def __post_init__(self) -> None:
        if len(self.user_data or b"") > self.LIMIT:
            raise ValueError(f"user-data for EC2 has at most {self.LIMIT} bytes")

    def lacks_token(self, request: Request) -> bool:
        """Whether it asks for data without any token. A wrong token is not a missing one."""
        return (
            request.method == "GET" and request.path != TOKEN_PATH and _TOKEN not in request.headers
        )

    def answer(self, request: Request) -> Answer:
        """The answer of the real service."""
        if request.path == TOKEN_PATH:
            return self._answer_token(request)
        if request.method != "GET":
            return make_xhtml_page(405, "Method Not Allowed")
        if not self._is_allowed(request):
            return make_xhtml_page(401, "Unauthorized")
        version, _, rest = request.path.removeprefix("/").partition("/")
        path = f"/latest/{rest}" if version in EC2_VERSIONS else request.path
        if path == USER_DATA_PATH and self.user_data is not None:
            return Answer(status=200, body=self.user_data, content_type="application/octet-stream")
        if path.rstrip("/") == PUBLIC_KEYS_PATH and self.public_key is not None:
            return Answer(status=200, body=b"0=launch")
        for name in (path, f"{path}/"):  # folders are listed without their slash too
            answer = find_meta_data(self._all_meta_data, name)
            answer = answer or find_meta_data(EC2_IDENTITY, name, IDENTITY_PATH)
            if answer is not None:
                return answer
        return make_xhtml_page(404, "Not Found")

    @property
    def _all_meta_data(self) -> Mapping[str, str]:
        if self.public_key is None:
            return self.meta_data
        return {**self.meta_data, "public-keys/0/openssh-key": f"{self.public_key}\n"}

    def _answer_token(self, request: Request) -> Answer:
        if request.method != "PUT":
            return make_xhtml_page(405, "Method Not Allowed")
        seconds = to_number(request.headers.get("x-aws-ec2-metadata-token-ttl-seconds", ""))
        if seconds is None or not 1 <= seconds <= EC2_TOKEN_SECONDS:
            return make_xhtml_page(400, "Bad Request")
        token = secrets.token_urlsafe(40) + "=="
        self._token_ends[token] = time.monotonic() + seconds
        return Answer(status=200, body=token.encode())

    def _is_allowed(self, request: Request) -> bool:
        token = request.headers.get(_TOKEN)
        if token is None:
            return not self.lacks_token(request)
        return time.monotonic() < self._token_ends.get(token, 0)


def make_xhtml_page(status: int, title: str) -> Answer:
    """Return an error page in the form of EC2's."""
    page = (
        '<?xml version="1.0" encoding="iso-8859-1"?>\n'
        '<!DOCTYPE html PUBLIC "-//W3C//DTD XHTML 1.0 Transitional//EN"\n'
        '         "http://www.w3.org/TR/xhtml1/DTD/xhtml1-transitional.dtd">\n'
        '<html xmlns="http://www.w3.org/1999/xhtml" xml:lang="en" lang="en">\n'
        f" <head>\n  <title>{status} - {title}</title>\n </head>\n"
        f" <body>\n  <h1>{status} - {title}</h1>\n </body>\n</html>\n"
    )
    return Answer(status=status, body=page.encode(), content_type="text/html")
