"""Stages go to an executor, in an order that ends soon; nothing but the store is between them."""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
import threading
from collections.abc import Collection
from pathlib import Path

import pytest
from nights import RUNS, Server, find, states

from pipeline.build.builder import Builder
from pipeline.build.executor import Built, HostExecutor, Need, Resources
from pipeline.errors import PhantomError, StageFailedError
from pipeline.model import ContentKey, NoProgress
from pipeline.nightly.memory import Memory, Needs
from pipeline.stages.base import Stage
from pipeline.store import Store

_WORKER = """
import pickle, sys
from pathlib import Path
from pipeline.build.executor import HostExecutor
from pipeline.errors import PhantomError
from pipeline.model import NoProgress
from pipeline.store import Store
stage, need, fresh = pickle.load(sys.stdin.buffer)
try:
    made = HostExecutor(Store(Path(sys.argv[1])), lambda _: NoProgress()).make(stage, need, fresh)
    answer = (made.reused, made.seconds, None)
except PhantomError as error:
    answer = (False, 0.0, error)
sys.stdout.buffer.write(pickle.dumps(answer))
"""


class Processes:
    """Runs each stage in a process of its own, in a folder of its own."""

    def __init__(self, store: Store, folder: Path) -> None:
        self._store = store
        self._folder = folder
        self.ran: list[str] = []
        self._stopping = threading.Event()

    def stop(self) -> None:
        self._stopping.set()

    def make(self, stage: Stage, need: Need, fresh: Collection[ContentKey]) -> Built:
        self.ran.append(stage.title)
        done = subprocess.run(
            [sys.executable, "-c", _WORKER, str(self._store.folder)],
            input=pickle.dumps((stage, need, {*fresh})),
            env={"PATH": os.environ["PATH"], "PYTHONPATH": ":".join(sys.path)},
            cwd=self._folder,
            stdout=subprocess.PIPE,
            check=True,
        )
        reused, seconds, error = pickle.loads(done.stdout)
        if error is not None:
            raise error
        artifact = self._store.find(stage.name, stage.key)
        assert artifact is not None
        return Built(artifact=artifact, reused=reused, seconds=seconds)


@pytest.fixture
def server(tmp_path: Path) -> Server:
    RUNS.clear()
    return Server(tmp_path / "one").set_up(web="1")


def test_processes_that_share_the_store_make_the_same_builds(
    server: Server, tmp_path: Path
) -> None:
    twin = Server(tmp_path / "twin").set_up(web="1")
    for each in (server, twin):
        each.define("one")
        each.define("bad", script="break\n")
    executor = Processes(server.workspace.store, tmp_path)
    night = server.night(executor=executor, sites=["hotel"])
    assert states(night) == {"one": "built", "bad": "failed"}
    assert find(night, "bad").message == "stage root: a script failed"
    assert RUNS == [] and executor.ran.count("root") == 2
    twin.night(sites=["hotel"])
    assert server.contents() == twin.contents()


def test_the_longest_way_comes_first(server: Server, tmp_path: Path) -> None:
    """Among stages that wait, by the times of an earlier night; else in the order of asking."""
    resources = Resources(cores=1, memory=0)
    order: list[str] = []
    holding, free = threading.Event(), threading.Event()

    def work(name: str, urgency: float) -> None:
        with resources.taken(1, urgency=urgency):
            order.append(name)
            holding.set()
            free.wait(10)

    threads = [threading.Thread(target=work, args=("first", 0.0))]
    threads[0].start()
    holding.wait(10)
    for name, urgency in (("short", 1.0), ("long", 9.0), ("later", 1.0)):
        threads.append(threading.Thread(target=work, args=(name, urgency)))
        threads[-1].start()
        while len(resources._waiting) < len(threads) - 1:
            pass
    free.set()
    for thread in threads:
        thread.join(10)
    assert order == ["first", "long", "short", "later"]


def test_urgency_is_the_way_to_the_end_of_the_appliance(server: Server) -> None:
    server.define("one")
    plan = server.plan(server.order().load("one"), server.order().sites, server.snapshot())
    memory = Memory(server.folder / "nightly")
    for stage, seconds in zip(plan.stages, range(1, 100), strict=False):
        artifact = server.make_artifact(stage)
        memory.note("one", stage, Built(artifact=artifact, reused=False, seconds=seconds))
    memory.save()
    needs = Needs(Memory(server.folder / "nightly"))
    longest, added = needs.add(plan, plan.stages)
    times = {stage.title: memory.expect("one", stage).seconds for stage in plan.stages}
    chain = ["packages", "root", "disk bare", "image bare raw gzip", "boot hotel xen"]
    urgency = {stage.title: needs.find(stage).urgency for stage in plan.stages}
    assert urgency["boot hotel xen"] == times["boot hotel xen"]
    assert urgency["packages"] == longest
    assert longest >= sum(times[name] for name in chain)
    assert added == sum(memory.expect("one", stage).bytes for stage in plan.stages) > 0
    again, more = needs.add(plan, plan.stages)
    assert (again, more) == (longest, 0)
    assert needs.find_title(plan.stages[0]) == "one packages"


def test_what_a_server_never_made_is_expected_to_take_what_others_did(server: Server) -> None:
    server.define("one")
    server.define("two")
    stages = {
        name: server.plan(
            server.order().load(name), server.order().sites, server.snapshot()
        ).source.root
        for name in ("one", "two")
    }
    memory = Memory(server.folder / "nightly")
    assert memory.expect("two", stages["two"]).seconds == 0
    artifact = server.make_artifact(stages["one"])
    memory.note("one", stages["one"], Built(artifact=artifact, reused=False, seconds=7.0))
    assert memory.expect("two", stages["two"]).seconds == 7.0


def test_a_failed_stage_can_be_tried_again(server: Server) -> None:
    server.define("one", script="break\n")
    plan = server.plan(server.order().load("one"), server.order().sites, server.snapshot())
    store = server.workspace.store
    with Builder(store, lambda _: NoProgress()) as builder:
        (future,) = builder.submit([plan.source.root])
        with pytest.raises(StageFailedError, match="a script failed"):
            future.result()
        assert builder.find_failed(plan.stages) is plan.source.root
        assert builder.submit([plan.source.root]) == [future]
        runs = len(RUNS)
        builder.forget_failed([plan.source.root])
        assert builder.find_failed(plan.stages) is None
        with pytest.raises(StageFailedError, match="a script failed"):
            builder.submit([plan.source.root])[0].result()
        assert len(RUNS) == runs + 1  # and `packages` was not made again


def test_a_stopped_executor_starts_nothing(server: Server) -> None:
    server.define("one")
    plan = server.plan(server.order().load("one"), server.order().sites, server.snapshot())
    executor = HostExecutor(server.workspace.store, lambda _: NoProgress())
    executor.stop()
    with pytest.raises(PhantomError, match="root was not started"):
        executor.make(plan.source.root, Need.of(plan.source.root), ())
    assert RUNS == []
