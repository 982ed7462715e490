"""Runs a command while this process serves EC2's fixed address in its own network namespace.

Prints as JSON the command's status and output, and the requests that the service got.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys

from pipeline.clouds.ec2.metadata import Ec2Metadata
from pipeline.machine.metadata import MetadataServer

ADDRESS = "169.254.169.254"


def main() -> None:
    ip = shutil.which("ip", path="/usr/sbin:/usr/bin:/sbin:/bin")
    assert ip is not None, "this test needs iproute2"
    subprocess.run([ip, "link", "set", "lo", "up"], check=True)
    subprocess.run([ip, "address", "add", f"{ADDRESS}/32", "dev", "lo"], check=True)
    service = Ec2Metadata(user_data=b"#!/bin/sh\nexit 7\n")
    with MetadataServer(service, host=ADDRESS, port=80) as server:
        ended = subprocess.run(sys.argv[1:], capture_output=True, text=True, check=False)
    requests = [(request.method, request.path) for request in server.requests]
    print(json.dumps({"status": ended.returncode, "output": ended.stdout, "requests": requests}))


if __name__ == "__main__":
    main()
