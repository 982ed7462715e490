"""The controller, with machines that are real processes: `sleep`."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest
from phantom_kit import USER, SleepMachines, alive

from pipeline.errors import StageFailedError
from pipeline.phantom.controller import Controller, Policy, choose_site, choose_surplus
from pipeline.phantom.machines import Order
from pipeline.phantom.state import Domain, LaunchType, MachineRow, State, TypeSite

QUICK = Policy(interval=0.02, short_life=0.0)
SITES = ("hotel", "sierra")
OWNER = USER.access_key
SECONDS = 60.0  # for what takes milliseconds on a host with time


def wait(done: Callable[[], bool]) -> None:
    deadline = time.monotonic() + SECONDS
    while not done():
        assert time.monotonic() < deadline
        time.sleep(0.01)


class Cluster:
    """A state, machines and their controller."""

    def __init__(self, folder: Path, machines: SleepMachines, told: list[str]) -> None:
        self.state = State(folder)
        self.machines = machines
        self.told = told

    def domain(self, name: str, size: int, clouds: tuple[tuple[str, int], ...]) -> Domain:
        if self.state.find_type(OWNER, "web") is None:
            sites = tuple(TypeSite(site=site, image_id="i", instance_type="t") for site in SITES)
            self.state.add_type(LaunchType(owner=OWNER, name="web", sites=sites))
        made = Domain(owner=OWNER, name=name, type="web", desired=size, clouds=clouds)
        return self.state.add_domain(made)

    def sites(self, domain: Domain) -> list[str]:
        """Where the domain's machines run."""
        rows = self.state.list_machines(domain.id)
        return sorted(row.site for row in rows if row.state == "running")

    def pids(self) -> list[int]:
        found = [self.machines.find_pid(row.id) for row in self.state.list_machines()]
        return [pid for pid in found if pid is not None]


@contextmanager
def cluster(
    folder: Path, policy: Policy = QUICK, machines: SleepMachines | None = None
) -> Iterator[Cluster]:
    told: list[str] = []
    made = Cluster(folder, machines or SleepMachines(folder / "machines"), told)
    with Controller(made.state, made.machines, policy, told.append):
        yield made
    made.state.close()


def test_sites_are_filled_in_their_order(tmp_path: Path) -> None:
    with cluster(tmp_path) as local:
        domain = local.domain("workers", 5, (("hotel", 2), ("sierra", -1)))
        wait(lambda: local.sites(domain) == ["hotel"] * 2 + ["sierra"] * 3)
        local.state.resize(domain.id, 3)
        wait(lambda: local.sites(domain) == ["hotel", "hotel", "sierra"])
        local.state.resize(domain.id, 0)
        wait(lambda: local.sites(domain) == [])
        assert list((tmp_path / "machines").iterdir()) == []


def test_a_maximum_is_kept(tmp_path: Path) -> None:
    with cluster(tmp_path) as local:
        domain = local.domain("workers", 5, (("hotel", 1), ("sierra", 2)))
        wait(lambda: len(local.sites(domain)) == 3)
        time.sleep(0.2)
        assert local.sites(domain) == ["hotel", "sierra", "sierra"]


def test_a_machine_that_ends_is_replaced(tmp_path: Path) -> None:
    with cluster(tmp_path) as local:
        domain = local.domain("workers", 2, (("hotel", 2),))
        wait(lambda: len(local.sites(domain)) == 2)
        first = {row.id for row in local.state.list_machines()}
        pid = local.machines.find_pid(min(first))
        assert pid is not None
        os.kill(pid, signal.SIGKILL)
        wait(lambda: len(local.sites(domain)) == 2 and min(first) not in ids(local))
        assert len(first & ids(local)) == 1
        assert local.told == [f"machine {min(first)} at hotel has ended"]


def ids(local: Cluster) -> set[str]:
    return {row.id for row in local.state.list_machines()}


def test_a_released_machine_is_replaced_unless_the_domain_shrinks(tmp_path: Path) -> None:
    with cluster(tmp_path) as local:
        domain = local.domain("workers", 2, (("hotel", 2),))
        wait(lambda: len(local.sites(domain)) == 2)
        one, other = sorted(ids(local))
        assert local.state.release(OWNER, one, shrink=True) is not None
        assert local.state.release(OWNER, one, shrink=True) is None  # it ends already
        wait(lambda: ids(local) == {other})
        local.state.release(OWNER, other, shrink=False)
        wait(lambda: len(local.sites(domain)) == 1 and other not in ids(local))


class Failing(SleepMachines):
    """Machines that end at once at one site, or do not start."""

    def __init__(self, folder: Path, how: str) -> None:
        super().__init__(folder)
        self.how = how
        self.asked: list[str] = []

    def command(self, order: Order, folder: Path) -> Sequence[str]:
        self.asked.append(order.site)
        if order.site == "hotel" and self.how == "refused":
            raise StageFailedError("there is no such image")
        if order.site == "hotel":
            return ["true"] if self.how == "ends" else [str(folder / "no-such-program")]
        return super().command(order, folder)


@pytest.mark.parametrize("how", ["ends", "refused", "missing"])
def test_a_site_that_keeps_failing_is_left_out(tmp_path: Path, how: str) -> None:
    machines = Failing(tmp_path / "machines", how)
    policy = Policy(interval=0.02, short_life=30.0, failures=3, pause=1000.0)
    with cluster(tmp_path, policy, machines) as local:
        domain = local.domain("workers", 1, (("hotel", 5), ("sierra", 5)))
        wait(lambda: local.sites(domain) == ["sierra"] and len(machines.asked) == 4)
        assert machines.asked == ["hotel"] * 3 + ["sierra"]
        assert local.told[-1] == "site hotel is left out for 1000 s"
        local.state.resize(domain.id, 2)
        wait(lambda: local.sites(domain) == ["sierra", "sierra"])


def test_a_site_is_tried_again_after_its_pause(tmp_path: Path) -> None:
    machines = Failing(tmp_path / "machines", "refused")
    policy = Policy(interval=0.02, short_life=0.0, failures=1, pause=0.2)
    with cluster(tmp_path, policy, machines) as local:
        domain = local.domain("workers", 1, (("hotel", 5),))
        wait(lambda: len(machines.asked) >= 2)
        machines.how = "well"
        machines.command = lambda *_: ["sleep", "1000"]  # type: ignore[method-assign]
        wait(lambda: local.sites(domain) == ["hotel"])
        wait(lambda: local.state.find_failures(domain.id) == {})


def test_no_process_is_left_of_a_deleted_domain(tmp_path: Path) -> None:
    with cluster(tmp_path) as local:
        domain = local.domain("workers", 3, (("hotel", 3),))
        wait(lambda: len(local.sites(domain)) == 3)
        pids = local.pids()
        local.state.delete_domain(domain.id)
        again = local.domain("workers", 1, (("sierra", 3),))
        wait(lambda: local.sites(again) == ["sierra"] and not local.sites(domain))
        assert not any(map(alive, pids))
        wait(lambda: [each.id for each in local.state.list_domains(deleted=True)] == [again.id])


def test_machines_end_with_the_controller(tmp_path: Path) -> None:
    with cluster(tmp_path) as local:
        domain = local.domain("workers", 3, (("hotel", 3),))
        wait(lambda: len(local.sites(domain)) == 3)
        pids = local.pids()
    assert not any(map(alive, pids))
    with cluster(tmp_path) as local:  # and start anew with the next one
        wait(lambda: len(local.sites(domain)) == 3)


PROGRAM = """
import sys, time
from pathlib import Path
sys.path[:0] = sys.argv[2:]
from phantom_kit import SleepMachines
from pipeline.phantom.controller import Controller, Policy
from pipeline.phantom.state import State
folder = Path(sys.argv[1])
controller = Controller(State(folder), SleepMachines(folder / "machines"), Policy(interval=0.02))
with controller:
    time.sleep(1000)
"""


@contextmanager
def killed_controller(folder: Path) -> Iterator[subprocess.Popen[bytes]]:
    """A controller in a process of its own, which is killed at the end."""
    paths = [str(Path(__file__).parent), str(Path(__file__).parents[2])]
    process = subprocess.Popen([sys.executable, "-c", PROGRAM, str(folder), *paths])
    try:
        yield process
    finally:
        process.kill()
        process.wait()


def test_machines_are_taken_up_after_a_kill(tmp_path: Path) -> None:
    machines = SleepMachines(tmp_path / "machines")
    local = Cluster(tmp_path, machines, [])
    domain = local.domain("workers", 4, (("hotel", 4),))
    with killed_controller(tmp_path):
        wait(lambda: len(local.sites(domain)) == 4)
        before = ids(local)
    with cluster(tmp_path) as again:
        pids = again.pids()
        assert len(pids) == 4 and all(map(alive, pids))
        os.kill(pids[0], signal.SIGKILL)  # one that is no child of ours
        wait(lambda: len(again.sites(domain)) == 4 and len(before & ids(again)) == 3)
        assert all(map(alive, pids[1:]))
        again.state.delete_domain(domain.id)
        wait(lambda: not again.state.list_domains(deleted=True))
        assert not any(map(alive, pids))
    local.state.close()


def test_kills_at_any_moment_leave_no_stray_machine(tmp_path: Path) -> None:
    """A kill between the start of a process and the note of it in the database, too."""
    local = Cluster(tmp_path, SleepMachines(tmp_path / "machines"), [])
    domain = local.domain("workers", 40, (("hotel", -1),))
    for count in (0, 3, 17, 29):
        with killed_controller(tmp_path):
            wait(lambda count=count: len(ids(local)) > count)  # type: ignore[misc]
    with cluster(tmp_path) as again:
        wait(lambda: len(again.sites(domain)) == 40)
        mine = set(again.pids())
        assert len(mine) == 40
        assert processes_of(tmp_path) == mine
        again.state.delete_domain(domain.id)
        wait(lambda: not again.state.list_domains(deleted=True))
        assert processes_of(tmp_path) == set()
    local.state.close()


def processes_of(folder: Path) -> set[int]:
    """The processes that hold a lock of a machine's folder open."""
    found = set()
    for each in Path("/proc").glob("[0-9]*/fd/*"):
        try:
            if os.readlink(each).startswith(f"{folder}/machines/"):
                found.add(int(each.parts[2]))
        except OSError:
            continue
    return found - {os.getpid()}


def test_another_process_with_the_same_id_is_no_machine(tmp_path: Path) -> None:
    """As after a restart of the host."""
    place = tmp_path / "machines/i-00000001"
    place.mkdir(parents=True)
    with subprocess.Popen(["sleep", "1000"]) as stranger:
        stat = Path(f"/proc/{stranger.pid}/stat").read_text()
        boot = Path("/proc/sys/kernel/random/boot_id").read_text()
        fields = stat.split(" ")
        (place / "process").write_text(" ".join([*fields[:21], "1", *fields[22:]]) + boot)
        machines = SleepMachines(tmp_path / "machines")
        machines.adopt(["i-00000001"])
        assert not machines.alive("i-00000001")
        machines.end("i-00000001")
        assert stranger.poll() is None
        stranger.kill()


def row(site: str, created: float) -> MachineRow:
    return MachineRow(
        id=f"i-{created}", domain=1, site=site, image_id="i", state="running", created=created
    )


def test_choices() -> None:
    clouds = (("hotel", 1), ("sierra", 0), ("ec2", -1))
    domain = Domain(owner=OWNER, name="d", type="web", desired=1, clouds=clouds)
    usable = {"hotel", "sierra", "ec2"}
    assert choose_site(domain, [], usable) == "hotel"
    assert choose_site(domain, ["hotel"], usable) == "ec2"
    assert choose_site(domain, ["hotel"], {"hotel", "sierra"}) is None
    rows = [row("ec2", 1), row("hotel", 2), row("ec2", 3), row("hotel", 4)]
    assert [each.created for each in choose_surplus(domain, rows)] == [4, 1, 3]


def test_fifty_domains(tmp_path: Path) -> None:
    with cluster(tmp_path) as local:
        domains = [local.domain(f"d{number}", 2, (("hotel", -1),)) for number in range(50)]
        wait(lambda: all(len(local.sites(domain)) == 2 for domain in domains))
        pids = local.pids()
        assert len(set(pids)) == 100
        for domain in domains:
            local.state.delete_domain(domain.id)
        wait(lambda: not local.state.list_domains(deleted=True))
        assert not any(map(alive, pids))
