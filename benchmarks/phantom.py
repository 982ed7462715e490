"""What the local Phantom costs with 50 domains whose machines are processes: its requests a second,
and its memory; and how long a domain of three guests takes.

.venv/bin/python3 -m benchmarks.phantom            # prints the figures
.venv/bin/python3 -m benchmarks.phantom FOLDER     # runs the Phantom that is measured
"""

from __future__ import annotations

import http.client
import os
import re
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from urllib.parse import urlencode, urlsplit

from benchmarks.boot import boot_check_seconds
from benchmarks.measure import ROOT, Figure, phantom
from pipeline.phantom.machines import Order, ProcessMachines
from pipeline.phantom.sandbox import run_phantom
from pipeline.phantom.signature import Signed, User, sign

DOMAINS, CLIENTS, SECONDS = 50, 4, 10.0
MACHINES, CONFIGURED = 3, b"the user-data ended with status 0"
POLICY = {
    "PHANTOM_DEFINITION": "error_overflow_n_preserving",
    "clouds": "hotel:4",
    "minimum_vms": "1",
}


class Sleepers(ProcessMachines):
    """Machines that only sleep."""

    def command(self, order: Order, folder: Path) -> Sequence[str]:
        return ["sleep", "10000"]


def measure_phantom() -> Iterator[Figure]:
    """The figures that the project promises for a local Phantom."""
    with (
        tempfile.TemporaryDirectory() as folder,
        subprocess.Popen(
            [sys.executable, "-m", "benchmarks.phantom", folder],
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        ) as process,
    ):
        assert process.stdin is not None and process.stdout is not None
        url = process.stdout.readline().strip()
        told = dict(re.findall(r"(\w+) = (\w+)", Path(folder, "credentials").read_text()))
        keys = ("aws_access_key_id", "aws_secret_access_key", "phantom_token")
        user = User(**dict(zip(User.__dataclass_fields__, map(told.get, keys), strict=True)))  # type: ignore[arg-type]
        _make_domains(url, user)
        rate = _rate(url, user)
        status = Path(f"/proc/{process.pid}/status").read_text()
        peak = int(re.findall(r"VmHWM:\s+(\d+)", status)[0]) * 1024
        process.stdin.close()
    yield Figure(
        name="requests a second of a local Phantom with 50 domains",
        value=rate,
        unit="/s",
        at_least=200,
    )
    yield Figure(
        name="peak memory of a local Phantom with 50 domains",
        value=peak / 1e6,
        unit=" MB",
        at_most=100,
    )


def measure_domain(project: Path) -> Iterator[Figure]:
    """How long a domain of three guests takes until all have run their user-data, beside a boot
    check of the same image: hello-phantom, which the project has published to Nimbus's sandbox."""
    alone = boot_check_seconds(project)
    argv = [sys.executable, "-m", "pipeline.cli", "phantom-sandbox", "--site", "nimbus-sandbox"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    environment.pop("PHANTOM_STORE", None)
    with subprocess.Popen(
        argv, cwd=project, env=environment, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        next(line for line in process.stdout if line.startswith("sites: "))
        to_phantom = ("hello-phantom", "--phantom", "local")
        phantom(project, "launch-config", *to_phantom)
        started = time.monotonic()
        phantom(project, "domain", "create", *to_phantom, "--size", str(MACHINES))
        logs = project / "build/.phantom/machines"
        while sum(CONFIGURED in log.read_bytes() for log in logs.glob("*/console.log")) < MACHINES:
            time.sleep(0.1)
        seconds = time.monotonic() - started
        phantom(project, "domain", "delete", *to_phantom)
        process.terminate()
    yield Figure(
        name=f"`domain create --size {MACHINES}` to configured machines / boot check",
        value=seconds / alone,
        unit=" x",
        at_most=2.0,
    )


class Client:
    """A connection to a Phantom."""

    def __init__(self, url: str, user: User) -> None:
        self._host = urlsplit(url).netloc
        self._user = user
        self._connection = http.client.HTTPConnection(self._host, timeout=60)

    def call(self, fields: Mapping[str, str]) -> str:
        """The answer to a signed call."""
        whole = {
            "AWSAccessKeyId": self._user.access_key,
            "SignatureVersion": "2",
            "SignatureMethod": "HmacSHA256",
            "Timestamp": datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
            **fields,
        }
        signed = Signed(method="POST", host=self._host, path="/", fields=whole)
        body = urlencode({**whole, "Signature": sign(self._user, signed, self._host)})
        self._connection.request("POST", "/", body)
        answer = self._connection.getresponse()
        text = answer.read().decode()
        assert answer.status == 200, text
        return text


def _make_domains(url: str, user: User) -> None:
    """Makes the domains, and waits until each has its machine."""
    client = Client(url, user)
    client.call(
        {
            "Action": "CreateLaunchConfiguration",
            "LaunchConfigurationName": "web@hotel",
            "ImageId": "web.gz",
            "InstanceType": "m1.small",
        }
    )
    for number in range(DOMAINS):
        group = {
            "Action": "CreateAutoScalingGroup",
            "AutoScalingGroupName": f"d{number}",
            "LaunchConfigurationName": "web@hotel",
            "MinSize": "0",
            "MaxSize": "4",
            "AvailabilityZones.member.1": "hotel",
        }
        for at, (key, value) in enumerate(POLICY.items(), 1):
            named = {"Key": key, "Value": value, "PropagateAtLaunch": "true"}
            named |= {"ResourceId": f"d{number}", "ResourceType": "auto-scaling-group"}
            group |= {f"Tags.member.{at}.{name}": text for name, text in named.items()}
        client.call(group)
    while client.call({"Action": "DescribeAutoScalingGroups"}).count("InService") < DOMAINS:
        time.sleep(0.1)


def _rate(url: str, user: User) -> float:
    """How many calls a second clients get answered: one in ten changes a domain's size, the others
    describe one."""
    counts = [0] * CLIENTS
    until = time.monotonic() + SECONDS

    def work(own: int) -> None:
        client = Client(url, user)
        while time.monotonic() < until:
            name = f"d{counts[own] % DOMAINS}"
            if counts[own] % 10:
                describe = {"Action": "DescribeAutoScalingGroups"}
                client.call({**describe, "AutoScalingGroupNames.member.1": name})
            else:
                resize = {"Action": "SetDesiredCapacity", "AutoScalingGroupName": name}
                client.call({**resize, "DesiredCapacity": str(1 + counts[own] // DOMAINS % 2)})
            counts[own] += 1

    threads = [threading.Thread(target=work, args=(own,)) for own in range(CLIENTS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return sum(counts) / SECONDS


def _serve(folder: Path) -> None:
    """Runs a Phantom until standard input ends."""
    with run_phantom(folder, ["hotel"], Sleepers(folder / "machines")) as phantom:
        print(phantom.url, flush=True)
        sys.stdin.read()


if __name__ == "__main__":
    if sys.argv[1:]:
        _serve(Path(sys.argv[1]))
    else:
        for figure in measure_phantom():
            print(figure)
