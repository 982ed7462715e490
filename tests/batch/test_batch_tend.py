"""`batch-cluster tend` with a local Phantom, and with a stand-in for Slurm's controller, which no
build host has: `scontrol` prints nodes as Slurm 24.11 does, and notes what it is asked.

The cluster check of images/batch-cluster has the real Slurm.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from batch_cluster.decide import LATE, MARK, Kept, Memory, Node
from batch_cluster.settings import make_user_data, parse_cluster
from batch_cluster.slurm import parse_nodes
from phantom_kit import USER, Local, local_phantom

ELEMENTS = Path(__file__).parents[2] / "elements"
SETTINGS = f"""\
[cluster]
secret = {"ab" * 32}
address = 10.0.0.2
[hotel]
image = batch-cluster.gz
instance_type = m1.small
nodes = 2
[sierra]
image = batch-cluster.gz
instance_type = m1.small
nodes = 1
price = 2
"""
SCONTROL = r"""#!/usr/bin/env python3
import json, os, sys
from pathlib import Path
here = Path(os.environ["SLURM"])
words = sys.argv[1:]
with (here / "scontrol.log").open("a") as log:
    log.write(json.dumps(words) + "\n")
if (here / "away").exists():
    sys.exit("slurm_load_node error: Unable to contact slurm controller (connect failure)")
if words == ["--oneliner", "show", "nodes"]:
    sys.stdout.write((here / "nodes").read_text())
    if (here / "wishes").exists():
        (here / "asked/later").touch()
elif words[0] != "update" or (here / "refuses").exists():
    sys.exit("slurm_update error: Invalid node state specified")
"""
LINE = (
    "NodeName={name} CoresPerSocket=1  CPUAlloc=0 CPUEfctv=1 CPUTot=1 CPULoad=0.00"
    " AvailableFeatures=(null) ActiveFeatures=(null) Gres=(null) NodeAddr={name}"
    " NodeHostName={name}  RealMemory=1 AllocMem=0 FreeMem=N/A Sockets=1 Boards=1"
    " State={states} ThreadsPerCore=1 TmpDisk=0 Weight=1 Owner=N/A MCS_label=N/A"
    " Partitions=batch,hotel  BootTime=None SlurmdStartTime=None LastBusyTime=Unknown"
    " ResumeAfterTime=None CfgTRES=cpu=1,mem=1M,billing=1 AllocTRES= CurrentWatts=0 AveWatts=0 "
)
OFF = "IDLE+CLOUD+POWERED_DOWN"
COMING = "ALLOCATED+CLOUD+NOT_RESPONDING+POWERING_UP"


@dataclass
class Head:
    """What a head has, in a folder."""

    folder: Path
    phantom: Local

    def set_nodes(self, **states: str) -> None:
        """The states of hotel_1 and others, each perhaps with a reason after a comma."""
        text = ""
        for name, said in ({"hotel_1": OFF, "hotel_2": OFF, "sierra_1": OFF} | states).items():
            state, _, reason = said.partition(",")
            more = f" Reason={reason} [slurm@2026-11-27T08:56:09]" if reason else ""
            text += LINE.format(name=name.replace("_", "-"), states=state) + more + "\n"
        (self.folder / "nodes").write_text(text)

    def tend(self) -> tuple[int, str, str]:
        """Exit status, standard output and standard error of one look."""
        code = (
            "import sys; from pathlib import Path\n"
            "from batch_cluster.settings import parse_cluster\n"
            "from batch_cluster.slurm import SlurmError\n"
            "from batch_cluster.tend import tend\n"
            "from phantom_client import Phantom, read_settings\n"
            "here = Path(sys.argv[1])\n"
            "cluster = parse_cluster((here / 'settings').read_text())\n"
            "try:\n"
            "    status = tend(cluster, Phantom(read_settings(here / 'phantom')), here)\n"
            "except SlurmError as error:\n"
            "    print(error, file=sys.stderr); status = 76\n"
            "(here / 'peak').write_text(Path('/proc/self/status').read_text())\n"
            "raise SystemExit(status)\n"
        )
        modules = ":".join(
            str(ELEMENTS / name / "static/usr/lib/python3/dist-packages")
            for name in ("batch-cluster", "phantom-client")
        )
        path = f"{self.folder / 'bin'}:{os.environ['PATH']}"
        done = subprocess.run(
            [sys.executable, "-c", code, str(self.folder)],
            env={**os.environ, "PYTHONPATH": modules, "PATH": path, "SLURM": str(self.folder)},
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        return done.returncode, done.stdout, done.stderr

    def take_updates(self) -> list[list[str]]:
        """What Slurm was asked to change since the last call."""
        log = self.folder / "scontrol.log"
        calls = [json.loads(line) for line in log.read_text().splitlines()]
        log.write_text("")
        return [words[1:] for words in calls if words[0] == "update"]

    def domains(self) -> list[str]:
        return [domain.name for domain in self.phantom.state.list_domains()]

    def types(self) -> list[str]:
        return [each.name for each in self.phantom.state.list_types(USER.access_key)]


@pytest.fixture
def head(tmp_path: Path) -> Iterator[Head]:
    (tmp_path / "settings").write_text(SETTINGS)
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin/scontrol").write_text(SCONTROL)
    (tmp_path / "bin/scontrol").chmod(0o755)
    (tmp_path / "scontrol.log").write_text("")
    (tmp_path / "asked").mkdir()
    (tmp_path / "state").mkdir()
    with local_phantom(tmp_path / "state") as phantom:
        (tmp_path / "phantom").write_text(
            f"[default]\nurl = {phantom.server.url}\naws_access_key_id = {USER.access_key}\n"
            f"aws_secret_access_key = {USER.secret_key}\n"
        )
        made = Head(tmp_path, phantom)
        made.set_nodes()
        yield made


def test_workers_come_and_go_as_slurm_wants_them(head: Head) -> None:
    head.set_nodes(hotel_1=COMING, sierra_1=COMING)
    assert head.tend() == (0, "batch.hotel-1 comes\nbatch.sierra-1 comes\n", "")
    first, second = head.phantom.state.list_domains()
    assert (first.name, first.desired, first.clouds) == ("batch.hotel-1", 1, (("hotel", 1),))
    assert (second.name, second.clouds) == ("batch.sierra-1", (("sierra", 1),))
    (launch, _) = head.phantom.state.list_types(USER.access_key)
    assert launch.user_data == make_user_data(parse_cluster(SETTINGS), "hotel-1")
    assert [(site.site, site.image_id) for site in launch.sites] == [("hotel", "batch-cluster.gz")]

    head.set_nodes(hotel_1="ALLOCATED+CLOUD", sierra_1="IDLE+CLOUD+POWERING_DOWN")
    assert head.tend() == (0, "batch.sierra-1 goes\n", "")
    assert (head.domains(), head.types()) == (["batch.hotel-1"], ["batch.hotel-1"])
    assert head.tend() == (0, "", "")
    assert head.take_updates() == []


def test_a_look_takes_less_than_30_mb(head: Head) -> None:
    head.set_nodes(hotel_1=COMING, hotel_2=COMING, sierra_1=COMING)
    assert head.tend()[0] == 0
    told = re.search(r"VmHWM:\s+(\d+) kB", (head.folder / "peak").read_text())
    assert told is not None
    assert int(told[1]) * 1024 < 30_000_000


def test_what_an_earlier_try_left_is_replaced(head: Head) -> None:
    """A head that was killed between two calls, or that has another image now."""
    head.set_nodes(hotel_1=COMING)
    assert head.tend()[0] == 0
    (domain,) = head.phantom.state.list_domains()
    head.phantom.state.delete_domain(domain.id)
    settings = head.folder / "settings"
    settings.write_text(SETTINGS.replace("batch-cluster.gz", "newer.gz"))
    assert head.tend() == (0, "batch.hotel-1 comes\n", "")
    (launch,) = head.phantom.state.list_types(USER.access_key)
    assert launch.sites[0].image_id == "newer.gz"


def test_a_site_that_phantom_refuses_is_out_at_once(head: Head) -> None:
    (head.folder / "settings").write_text(SETTINGS.replace("[hotel]", "[uc]"))
    head.set_nodes()
    nodes = head.folder / "nodes"
    nodes.write_text(nodes.read_text().replace("hotel", "uc").replace(OFF, COMING, 1))
    status, out, err = head.tend()
    assert (status, out.splitlines()[0]) == (75, "uc-1: POWER_DOWN_FORCE")
    assert err == (
        "batch-cluster: uc-1: Phantom refuses CreateLaunchConfiguration: 400"
        " InvalidParameterValue: There is no site 'uc'.\n"
    )
    assert head.take_updates() == [
        ["NodeName=uc-1", "State=POWER_DOWN_FORCE"],
        ["NodeName=uc-2", "State=DRAIN", f"Reason={MARK} the site's machines do not come"],
    ]
    assert list(json.loads((head.folder / "memory.json").read_text())["out"]) == ["uc"]


def test_a_site_whose_machines_do_not_come_is_out(head: Head) -> None:
    head.set_nodes(hotel_1=COMING)
    assert [head.tend()[0], head.tend()[0]] == [0, 0]
    head.set_nodes(hotel_1=f"DOWN+CLOUD+POWERED_DOWN,{LATE}")
    reason = f"{MARK} the site's machines do not come"
    assert head.tend() == (
        0,
        f"batch.hotel-1 goes\nhotel-1,hotel-2: DRAIN {reason}\n",
        "",
    )
    assert head.take_updates() == [["NodeName=hotel-1,hotel-2", "State=DRAIN", f"Reason={reason}"]]
    assert head.domains() == []


def test_a_phantom_that_was_away_finds_what_slurm_wants_now(head: Head) -> None:
    settings = head.folder / "phantom"
    there = settings.read_text()
    settings.write_text(there.replace(str(head.phantom.server.port), "9"))
    head.set_nodes(hotel_1=COMING)
    error = (
        "batch-cluster: http://127.0.0.1:9 cannot be asked: [Errno 111] Connection refused; the"
        " next look tries again\n"
    )
    assert head.tend() == (75, "", error)
    settings.write_text(there)
    assert head.tend() == (0, "batch.hotel-1 comes\n", "")


def test_without_slurm_no_machine_is_touched(head: Head) -> None:
    head.set_nodes(hotel_1=COMING)
    assert head.tend()[0] == 0
    (head.folder / "away").touch()
    error = (
        "scontrol --oneliner show nodes: slurm_load_node error: Unable to contact slurm controller"
        " (connect failure)\n"
    )
    assert head.tend() == (76, "", error)
    assert head.domains() == ["batch.hotel-1"]


def test_a_change_that_slurm_refuses_does_not_stop_the_others(head: Head) -> None:
    (head.folder / "refuses").touch()
    rebooted = "DOWN+CLOUD,Node unexpectedly rebooted"
    head.set_nodes(hotel_1=rebooted, sierra_1=f"DOWN+CLOUD+POWERED_DOWN,{LATE}", hotel_2=COMING)
    status, out, err = head.tend()
    assert (status, out) == (75, "batch.hotel-1 comes\nbatch.hotel-2 comes\n")
    assert err.count("slurm_update error: Invalid node state specified\n") == 2
    assert [words[0] for words in head.take_updates()] == [
        "NodeName=hotel-1",
        "NodeName=sierra-1",
    ]


def test_who_asks_during_a_look_is_heard_by_the_next(head: Head) -> None:
    asked = head.folder / "asked"
    (asked / "now").touch()
    (head.folder / "wishes").touch()
    assert head.tend() == (0, "", "")
    assert [wish.name for wish in asked.iterdir()] == ["later"]


def test_a_damaged_memory_is_none(head: Head) -> None:
    head.set_nodes(hotel_1=COMING)
    assert head.tend()[0] == 0
    for text in ("", "[]", '{"machines": {"hotel-1": 3}}', "{"):
        (head.folder / "memory.json").write_text(text)
        assert head.tend()[0] == 0
    told = json.loads((head.folder / "memory.json").read_text())
    assert (
        Memory(
            looked=told["looked"],
            machines={name: Kept(**kept) for name, kept in told["machines"].items()},
            out=told["out"],
        )
        .machines["hotel-1"]
        .machine
        == ""
    )


def test_nodes_are_read_as_slurm_prints_them() -> None:
    text = (
        LINE.format(name="a-1", states=f"{OFF}+DRAIN")
        + " Reason=batch-cluster: it's [full] [root@2026-11-27T08:51:43]\n"
        + LINE.format(name="ec2-east1-2", states="DOWN*+CLOUD")
        + "\n\n"
    )
    first, second = parse_nodes(text)
    assert first.name == "a-1"
    assert first.states == {"IDLE", "CLOUD", "POWERED_DOWN", "DRAIN"}
    assert first.reason == "batch-cluster: it's [full]"
    assert first.since > 1.7e9
    assert second == Node(name="ec2-east1-2", states=frozenset({"DOWN", "NOT_RESPONDING", "CLOUD"}))
