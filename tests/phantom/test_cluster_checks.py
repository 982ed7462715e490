"""Cluster checks with real guests: they reach each other and a local Phantom, which starts one more
of them; none is left behind, whatever ends the build."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from cli_runs import Hello, Project, assert_nothing_runs, make_project

DEFINITION = """
boot_check:
  cluster:
    phantom: true
    guests:
      - {name: head, user_data: head.sh, script: check-pair.sh}
      - {name: worker, user_data: worker.sh}
"""
HEAD = """#!/bin/sh
cat >/run/cluster <<TEXT
own=@address:head@
worker=@address:worker@
secret=@cluster_secret@
phantom=@phantom_url@
access_key=@phantom_access_key@
secret_key=@phantom_secret_key@
site=@site@
image=@image@
kind=@instance_type@
TEXT
"""
WORKER = """#!/bin/sh
echo 'Banner /run/secret' >>/etc/ssh/sshd_config
echo @cluster_secret@ >/run/secret
systemctl restart ssh
"""
# It asks the other machine by SSH for the secret, and Phantom for a machine of the image, which
# gets the next address.
SCRIPT = r"""#!/bin/bash
set -eu
. /run/cluster
ask() { # NAME=VALUE...: a query call, signed with version 2
    local query
    query=$(printf '%s\n' "$@" "AWSAccessKeyId=$access_key" SignatureVersion=2 \
        SignatureMethod=HmacSHA256 "Timestamp=$(date -u +%Y-%m-%dT%H%%3A%M%%3A%SZ)" |
        LC_ALL=C sort | paste -sd '&')
    local signed=$'GET\n'"${phantom#http://}"$'\n/\n'"$query"
    local signature
    signature=$(printf %s "$signed" | openssl dgst -sha256 -hmac "$secret_key" -binary | base64)
    signature=$(printf %s "$signature" | sed 's/+/%2B/g; s,/,%2F,g; s/=/%3D/g')
    curl --silent --show-error --fail "$phantom/?$query&Signature=$signature"
}
greet() { # ADDRESS: what its SSH server says
    for try in $(seq 300); do
        (exec 3<>"/dev/tcp/$1/22" && read -r -t 5 line <&3 && echo "$line") 2>/dev/null && return
        sleep 1
    done
    return 1
}
ip -4 -o address | grep -q " $own/24"
greet "$worker" >/dev/null
for try in $(seq 100); do # its SSH server starts before its user-data runs
    said=$(ssh -o StrictHostKeyChecking=no -o BatchMode=yes "$worker" 2>&1 || true)
    case $said in *"$secret"*) break ;; esac
    sleep 1
done
case $said in *"$secret"*) echo 'the worker has the secret' ;; *) echo "$said"; exit 3 ;; esac
ask Action=CreateLaunchConfiguration "LaunchConfigurationName=more%40$site" "ImageId=$image" \
    "InstanceType=$kind" >/dev/null
tags='PHANTOM_DEFINITION=error_overflow_n_preserving clouds='"$site"'%3A1 minimum_vms=1'
fields=()
for tag in $tags; do
    at=Tags.member.$((${#fields[@]} / 5 + 1))
    fields+=("$at.Key=${tag%%=*}" "$at.Value=${tag#*=}" "$at.PropagateAtLaunch=true"
        "$at.ResourceId=more" "$at.ResourceType=auto-scaling-group")
done
ask Action=CreateAutoScalingGroup AutoScalingGroupName=more "LaunchConfigurationName=more%40$site" \
    MinSize=0 MaxSize=1 "AvailabilityZones.member.1=$site" "${fields[@]}" >/dev/null
echo "Phantom's machine says $(greet 10.99.0.4)"
echo "done with $secret_key"
"""


@pytest.fixture
def project(tmp_path: Path, hello: Hello) -> Iterator[Project]:
    project = make_project(tmp_path / "project", hello.store)
    project.define("pair", DEFINITION)
    project.write("images/pair/head.sh", HEAD)
    project.write("images/pair/worker.sh", WORKER)
    yield project
    assert_nothing_runs(project.folder)


@pytest.mark.boot
def test_guests_reach_each_other_and_phantom(project: Project) -> None:
    project.write("images/pair/check-pair.sh", SCRIPT, 0o755)
    running = project.start("build", "pair")
    running.wait_for_log("cluster", "Linux version")
    running.kill()
    assert_nothing_runs(project.folder)
    project.succeed("build", "pair")
    (image,) = project.manifest("pair")["images"]
    told = image["cluster_check"]
    head, worker = told["guests"]
    assert (head["name"], head["address"]) == ("head", "10.99.0.2")
    assert (worker["name"], worker["address"]) == ("worker", "10.99.0.3")
    first, second, third = head["printed"].splitlines()
    assert first == "the worker has the secret"
    assert second.startswith("Phantom's machine says SSH-2.0-")
    assert third == "done with ***"
    assert worker["printed"] is None
    assert told["started_by_phantom"] == 1
    assert told["seconds"] == max(head["seconds"], worker["seconds"])
    (log,) = (project.store / "logs").glob("cluster-*-head.log")
    assert "Linux version" in log.read_text(errors="replace")
    shown = project.succeed("show", "pair").out
    assert re.search(rf", a cluster of 2 passed in {told['seconds']:.0f} s", shown)
    again = project.succeed("plan", "pair", "--json").json
    assert {stage["action"] for stage in again["stages"]} == {"reuse"}


@pytest.mark.only_soak
@pytest.mark.boot
def test_a_script_that_fails(project: Project) -> None:
    project.write("images/pair/check-pair.sh", "#!/bin/sh\necho no worker\nexit 4\n", 0o755)
    done = project.run("image", "pair")
    assert done.status == 67
    first, second, third, *console, todo, log = project.masked(done.error).splitlines()
    assert first == (
        "error: stage cluster nimbus-sandbox: guest head: its check script check-pair.sh ended "
        "with status 4"
    )
    assert (second, third) == ("  | no worker", "  | the end of its console:")
    assert any("login:" in line for line in console)
    assert (todo, log) == (
        "  do: correct it, or the image",
        "  log: STORE/logs/cluster-HEX-head.log",
    )
    assert not (project.build / "pair").exists()
