"""A local Phantom for tests, and clients of it."""

from __future__ import annotations

import http.client
import json
import subprocess
import sys
from base64 import b64encode
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import boto3
from botocore.config import Config

from pipeline.phantom.machines import Order, ProcessMachines
from pipeline.phantom.service import PhantomServer
from pipeline.phantom.signature import Signed, User, sign
from pipeline.phantom.state import State

USER = User(access_key="AKalice", secret_key="alice/s+cret", token="alice-token")
OTHER = User(access_key="AKbob", secret_key="bob-secret", token="bob-token")
SITES = ("hotel", "sierra", "ec2-east")
TIME = "%Y-%m-%dT%H:%M:%SZ"


@dataclass(frozen=True)
class Got:
    """An answer."""

    status: int
    reason: str
    text: str
    headers: Mapping[str, str]

    @property
    def json(self) -> Any:
        return json.loads(self.text)


@dataclass
class Local:
    """A running Phantom."""

    server: PhantomServer
    state: State
    changes: list[None] = field(default_factory=list)

    def request(
        self, method: str, path: str, body: str | None = None, headers: Mapping[str, str] = {}
    ) -> Got:
        connection = http.client.HTTPConnection("127.0.0.1", self.server.port, timeout=30)
        try:
            connection.request(method, path, body, dict(headers))
            answer = connection.getresponse()
            text = answer.read().decode()
            return Got(answer.status, answer.reason, text, dict(answer.headers))
        finally:
            connection.close()

    def signed(self, fields: Mapping[str, str], user: User = USER) -> dict[str, str]:
        """A call's fields with those of a signature."""
        whole = {
            "AWSAccessKeyId": user.access_key,
            "SignatureVersion": "2",
            "SignatureMethod": "HmacSHA256",
            "Timestamp": datetime.now(UTC).strftime(TIME),
            **fields,
        }
        host = f"127.0.0.1:{self.server.port}"
        signature = sign(user, Signed(method="POST", host=host, path="/", fields=whole), host)
        return {**whole, "Signature": signature}

    def post(self, fields: Mapping[str, str]) -> Got:
        """The answer to these fields as they are."""
        kind = {"Content-Type": "application/x-www-form-urlencoded"}
        return self.request("POST", "/", urlencode(fields), kind)

    def query(self, *users: User, **fields: str) -> Got:
        """The answer to a call of a user, or of the first one."""
        return self.post(self.signed(fields, *users))

    def web(
        self,
        method: str,
        path: str,
        said: object = None,
        user: User = USER,
        token: str | None = None,
    ) -> Got:
        """The answer of the web API."""
        coded = b64encode(f"{user.access_key}:{token or user.token}".encode()).decode()
        body = None if said is None else json.dumps(said)
        return self.request(method, f"/api/dev{path}", body, {"Authorization": f"Basic {coded}"})

    def boto3(self, user: User = USER, **config: Any) -> Any:
        """A client as a user of boto3 makes one."""
        settings = {"signature_version": "v2", "retries": {"max_attempts": 0}, **config}
        return boto3.client(
            "autoscaling",
            endpoint_url=self.server.url,
            region_name="us-east-1",
            aws_access_key_id=user.access_key,
            aws_secret_access_key=user.secret_key,
            config=Config(**settings),
        )


class SleepMachines(ProcessMachines):
    """Machines that only sleep."""

    def command(self, order: Order, folder: Path) -> Sequence[str]:
        return ["sleep", "1000"]


def alive(pid: int) -> bool:
    """Whether a process runs; one that nobody has waited for yet does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


@contextmanager
def local_phantom(folder: Path, sites: tuple[str, ...] = SITES) -> Iterator[Local]:
    """A Phantom without a controller."""
    state = State(folder)
    changes: list[None] = []
    server = PhantomServer(state, [USER, OTHER], sites, changed=lambda: changes.append(None))
    with server:
        yield Local(server, state, changes)
    state.close()


def tags(group: str, *, clouds: str = "hotel:2,sierra:-1", size: int = 1) -> list[dict[str, Any]]:
    """A group's tags, as boto3 has them."""
    told = {
        "PHANTOM_DEFINITION": "error_overflow_n_preserving",
        "clouds": clouds,
        "minimum_vms": str(size),
    }
    kind = "auto-scaling-group"
    return [
        {
            "Key": key,
            "Value": value,
            "PropagateAtLaunch": True,
            "ResourceId": group,
            "ResourceType": kind,
        }
        for key, value in told.items()
    ]


def run_python(script: str, *words: str) -> str:
    """What a script prints in a Python of its own: boto 2 does what newer Pythons warn of."""
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", script, *words],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout
