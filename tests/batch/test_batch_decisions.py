"""What the batch cluster does by what Slurm and Phantom say."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import pytest
from batch_cluster.decide import (
    HOUR,
    LATE,
    MARGIN,
    MARK,
    REBOOTED,
    Change,
    Kept,
    Memory,
    Node,
    Plan,
    decide,
    take_out,
)
from batch_cluster.settings import Cluster, Site

NOW = 1_800_000_000.0
HOTEL = Site(name="hotel", image="i.gz", instance_type="m1", nodes=2, price=0.0)
EAST = Site(name="east", image="ami", instance_type="t3", nodes=2, price=0.1, by_hour=True)
CLUSTER = Cluster(secret="0" * 64, sites=(HOTEL, EAST), address="10.0.0.2")


def node(name: str, states: str, reason: str = "", ago: float = 0.0) -> Node:
    return Node(
        name=name,
        states=frozenset(states.split("+")),
        reason=reason,
        since=NOW - ago if reason else 0.0,
    )


def kept(**machines: tuple[str, float]) -> dict[str, Kept]:
    """The machines of hotel_1 and others, each with its id and its age."""
    return {
        name.replace("_", "-"): Kept(machine=machine, since=NOW - age)
        for name, (machine, age) in machines.items()
    }


def look(
    nodes: Sequence[Node],
    domains: Mapping[str, str] | None,
    machines: Mapping[str, Kept] | None = None,
    out: Mapping[str, float] | None = None,
) -> Plan:
    memory = Memory(looked=NOW - 30, machines=machines or {}, out=out or {})
    return decide(CLUSTER, nodes, domains, memory, NOW)


OFF = "IDLE+CLOUD+POWERED_DOWN"
COMING = "ALLOCATED+CLOUD+NOT_RESPONDING+POWERING_UP"
UP = "IDLE+CLOUD"
BUSY = "ALLOCATED+CLOUD"


def test_a_worker_that_slurm_powers_up_gets_a_domain() -> None:
    plan = look([node("hotel-1", COMING), node("hotel-2", OFF)], {})
    assert (plan.start, plan.stop, plan.changes) == (("hotel-1",), (), ())
    assert plan.memory.machines == {}  # Phantom may yet refuse it
    later = look([node("hotel-1", COMING)], {"batch.hotel-1": ""})
    assert later.memory.machines == {"hotel-1": Kept(machine="", since=NOW)}


def test_what_is_as_slurm_wants_it_stays() -> None:
    nodes = [node("hotel-1", COMING), node("hotel-2", BUSY), node("east-1", UP)]
    domains = {"batch.hotel-1": "", "batch.hotel-2": "i-2", "batch.east-1": "i-3"}
    machines = kept(hotel_1=("", 60), hotel_2=("i-2", 600), east_1=("i-3", 600))
    plan = look(nodes, domains, machines)
    assert (plan.start, plan.stop, plan.changes) == ((), (), ())
    assert plan.memory == Memory(looked=NOW, machines=machines)


@pytest.mark.parametrize("states", [OFF, "IDLE+CLOUD+POWERING_DOWN", "DOWN+CLOUD+POWERED_DOWN"])
def test_a_worker_that_slurm_has_powered_down_goes(states: str) -> None:
    plan = look([node("hotel-1", states)], {"batch.hotel-1": "i-1"}, kept(hotel_1=("i-1", 9)))
    assert (plan.start, plan.stop) == ((), ("batch.hotel-1",))
    assert plan.memory.machines == {}


@pytest.mark.parametrize(
    "states",
    [
        BUSY,
        "MIXED+CLOUD",
        "MIXED+CLOUD+DRAIN",
        "COMPLETING+CLOUD",
        "ALLOCATED+CLOUD+POWER_DOWN",
        "ALLOCATED+CLOUD+NOT_RESPONDING",
    ],
)
@pytest.mark.parametrize("age", [10.0, HOUR - MARGIN + 1, 5 * HOUR - 1])
def test_a_busy_worker_is_never_let_go(states: str, age: float) -> None:
    plan = look(
        [node("east-1", states)],
        {"batch.east-1": "i-1"},
        kept(east_1=("i-1", age)),
        {"east": NOW + 60},
    )
    assert (plan.start, plan.stop, plan.changes) == ((), (), ())


def test_domains_of_workers_that_nobody_knows_go_and_those_of_others_stay() -> None:
    domains = {"batch.gone-7": "i-1", "batch-hotel-1": "i-2", "web": "i-3", "batch2.hotel-1": "i-4"}
    assert look([node("hotel-1", OFF)], domains).stop == ("batch.gone-7",)


@pytest.mark.parametrize(
    ("age", "goes"),
    [
        (60.0, False),
        (HOUR - MARGIN - 1, False),
        (HOUR - MARGIN, True),
        (HOUR - 1, True),
        (HOUR + 1, False),
        (3 * HOUR - 1, True),
    ],
)
def test_an_idle_worker_paid_by_the_hour_goes_when_the_hour_is_nearly_over(
    age: float, goes: bool
) -> None:
    nodes, domains = [node("east-1", UP)], {"batch.east-1": "i-1"}
    plan = look(nodes, domains, kept(east_1=("i-1", age)))
    assert plan.stop == ()  # Slurm first: a job may have come meanwhile
    wanted = (Change(nodes=("east-1",), state="POWER_DOWN"),)
    assert plan.changes == (wanted if goes else ())
    drained = look([node("east-1", f"{UP}+DRAIN", "disk")], domains, kept(east_1=("i-1", age)))
    assert drained.changes == plan.changes
    # Others are Slurm's, by SuspendTime.
    other = look([node("hotel-1", UP)], {"batch.hotel-1": "i-1"}, kept(hotel_1=("i-1", age)))
    assert other.changes == ()


@pytest.mark.parametrize(
    "states", ["IDLE+CLOUD+PLANNED", "IDLE+CLOUD+RESERVED", "IDLE+CLOUD+MAINT"]
)
def test_a_worker_of_which_somebody_says_more_is_left_to_them(states: str) -> None:
    machines = kept(east_1=("i-1", HOUR - 1))
    plan = look([node("east-1", states, "disk", 60)], {"batch.east-1": "i-1"}, machines)
    assert (plan.stop, plan.changes) == ((), ())


def test_a_machine_that_was_replaced_starts_its_hour_no_later_than_it_began() -> None:
    domains = {"batch.east-1": "i-new"}
    plan = look([node("east-1", UP)], domains, kept(east_1=("i-old", HOUR - 1)))
    assert plan.memory.machines == {"east-1": Kept(machine="i-new", since=NOW - 30)}
    assert plan.changes == ()


def test_between_two_machines_the_hour_starts_with_the_loss_of_the_first() -> None:
    nodes = [node("east-1", "ALLOCATED+CLOUD+NOT_RESPONDING")]
    plan = look(nodes, {"batch.east-1": ""}, kept(east_1=("i-old", 900)))
    assert plan.memory.machines == {"east-1": Kept(machine="", since=NOW - 30)}
    later = decide(CLUSTER, nodes, {"batch.east-1": "i-new"}, plan.memory, NOW + 30)
    assert later.memory.machines == {"east-1": Kept(machine="i-new", since=NOW - 30)}


def test_a_worker_that_comes_back_on_another_machine_is_taken_again() -> None:
    nodes = [node("hotel-1", "DOWN+CLOUD", REBOOTED, 5), node("hotel-2", "DOWN+CLOUD", "disk", 5)]
    plan = look(nodes, {"batch.hotel-1": "i-new", "batch.hotel-2": "i-2"})
    assert (plan.start, plan.stop) == ((), ())
    assert plan.changes == (Change(nodes=("hotel-1",), state="RESUME"),)


@pytest.mark.parametrize(("ago", "lost"), [(CLUSTER.resume - 1, False), (CLUSTER.resume + 1, True)])
def test_a_worker_that_phantom_does_not_bring_back_is_given_up(ago: float, lost: bool) -> None:
    nodes = [
        node("hotel-1", "DOWN+CLOUD+NOT_RESPONDING", "Not responding", ago),
        node("hotel-2", OFF),
    ]
    plan = look(nodes, {"batch.hotel-1": ""}, kept(hotel_1=("", 2000)))
    if not lost:
        assert (plan.start, plan.stop, plan.changes) == ((), (), ())
        return
    assert plan.stop == ("batch.hotel-1",)
    assert [change.state for change in plan.changes] == ["POWER_DOWN", "DRAIN"]
    assert [change.nodes for change in plan.changes] == [("hotel-1",), ("hotel-2",)]
    assert plan.memory.out == {"hotel": NOW + CLUSTER.pause}


def test_a_site_whose_machine_does_not_come_is_out_for_a_while() -> None:
    nodes = [
        node("hotel-1", "DOWN+CLOUD+POWERED_DOWN", LATE, 1),
        node("hotel-2", OFF),
        node("east-1", OFF),
        node("east-2", BUSY),
    ]
    domains = {"batch.hotel-1": "i-1", "batch.east-2": "i-2"}
    machines = kept(hotel_1=("i-1", 900), east_2=("i-2", 900))
    plan = look(nodes, domains, machines)
    assert plan.stop == ("batch.hotel-1",)
    (drain,) = plan.changes
    assert (drain.nodes, drain.state) == (("hotel-1", "hotel-2"), "DRAIN")
    assert plan.memory.out == {"hotel": NOW + CLUSTER.pause}

    barred = [
        node(name, f"{states}+DRAIN", drain.reason)
        for name, states in [("hotel-1", "DOWN+CLOUD+POWERED_DOWN"), ("hotel-2", OFF)]
    ]
    soon = decide(CLUSTER, barred, {}, plan.memory, NOW + CLUSTER.pause - 1)
    assert (soon.changes, soon.memory.out) == ((), plan.memory.out)
    after = decide(CLUSTER, barred, {}, plan.memory, NOW + CLUSTER.pause + 1)
    assert after.changes == (Change(nodes=("hotel-1", "hotel-2"), state="RESUME"),)
    assert after.memory.out == {}


def test_workers_that_run_at_a_site_that_is_out_stay() -> None:
    nodes = [node("hotel-1", UP), node("hotel-2", COMING)]
    domains = {"batch.hotel-1": "i-1", "batch.hotel-2": ""}
    plan = look(nodes, domains, out={"hotel": NOW + 60})
    assert (plan.start, plan.stop, plan.changes) == ((), (), ())


def test_an_administrators_drain_stays() -> None:
    nodes = [node("hotel-1", f"{OFF}+DRAIN", "disk", 60)]
    assert look(nodes, {}).changes == ()
    assert look(nodes, {}, out={"hotel": NOW + 60}).changes == ()


def test_while_phantom_is_away_nothing_is_done_there_and_no_site_is_blamed() -> None:
    nodes = [
        node("hotel-1", COMING),
        node("hotel-2", "DOWN+CLOUD+POWERED_DOWN", LATE, 1),
        node("east-1", UP),
    ]
    plan = look(nodes, None, kept(east_1=("i-1", HOUR - 1)))
    assert (plan.start, plan.stop) == ((), ())
    assert plan.changes == (Change(nodes=("hotel-2",), state="RESUME"),)
    assert plan.memory == Memory(looked=NOW - 30, machines=kept(east_1=("i-1", HOUR - 1)))


def test_a_head_without_memory_takes_up_the_workers_that_there_are() -> None:
    nodes = [node("hotel-1", BUSY), node("east-1", UP)]
    domains = {"batch.hotel-1": "i-1", "batch.east-1": "i-2"}
    plan = decide(CLUSTER, nodes, domains, Memory(), NOW)
    assert (plan.start, plan.stop, plan.changes) == ((), (), ())
    assert plan.memory.machines == kept(hotel_1=("i-1", 0), east_1=("i-2", 0))


def test_a_site_that_was_out_gets_another_chance_and_then_another_pause() -> None:
    memory = take_out(CLUSTER, Memory(out={"east": NOW - 1}), ["hotel-2", "other-1"], NOW)
    assert memory.out == {"hotel": NOW + CLUSTER.pause}


def test_our_reasons_are_told_from_others() -> None:
    plan = look([node("hotel-1", OFF)], {}, out={"hotel": NOW + 60})
    assert plan.changes[0].reason.startswith(MARK)
