"""The builder and the store: each stage at most once, whatever happens in between."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import pytest

from pipeline.build.builder import Builder
from pipeline.build.executor import Resources
from pipeline.errors import NoSpaceError, StageFailedError, StoreError
from pipeline.model import NoProgress
from pipeline.stages.base import HERE_ONLY, Context, Stage, to_json
from pipeline.store import Artifact, Store, write_atomically
from pipeline.tools import run

RUNS: list[str] = []


@pytest.fixture(autouse=True)
def _no_runs() -> None:
    RUNS.clear()


@dataclass(frozen=True, kw_only=True)
class Text(Stage):
    """Appends its text to those of its inputs."""

    name: ClassVar[str] = "text"

    text: str
    fails: bool = field(default=False, metadata=HERE_ONLY)
    seconds: float = field(default=0.0, metadata=HERE_ONLY)

    def run(self, inputs: Sequence[Artifact], context: Context) -> Mapping[str, Any]:
        RUNS.append(self.text)
        time.sleep(self.seconds)
        (context.out / "half").write_text("half")
        if self.fails:
            raise StageFailedError("it failed")
        (context.out / "half").unlink()
        before = "".join(each.file("text").read_text() for each in inputs)
        (context.out / "text").write_text(before + self.text)
        return {"length": len(before + self.text)}


@dataclass(frozen=True, kw_only=True)
class Sleeper(Text):
    """Waits some seconds, then runs a program that would not end during the test."""

    name: ClassVar[str] = "sleeper"

    def run(self, inputs: Sequence[Artifact], context: Context) -> Mapping[str, Any]:
        time.sleep(self.seconds)
        run.run(["sleep", "1000"], log=context.log)
        return {}


def build(store: Store, *stages: Stage) -> list[str]:
    built = Builder(store, lambda _: NoProgress()).build(stages)
    return [each.artifact.file("text").read_text() for each in built]


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "store")


def test_a_stage_runs_once_for_all_that_need_it(store: Store) -> None:
    root = Text(text="a", seconds=0.1)
    left, right = Text(text="b", inputs=(root,)), Text(text="c", inputs=(root,))
    assert build(store, left, right) == ["ab", "ac"]
    assert sorted(RUNS) == ["a", "b", "c"]
    assert build(store, left, right) == ["ab", "ac"]
    assert len(RUNS) == 3


def test_inputs_that_nobody_needs_are_not_made(store: Store) -> None:
    leaf = Text(text="b", inputs=(Text(text="a"),))
    build(store, leaf)
    found = store.find("text", leaf.inputs[0].key)
    assert found is not None
    store.remove(found)
    assert build(store, leaf) == ["ab"]
    assert RUNS == ["a", "b"]


def test_the_key_is_made_of_fields_and_inputs_and_of_nothing_else() -> None:
    base = Text(text="a")
    assert Text(text="a", label="elsewhere", seconds=1.0).key == base.key
    assert Text(text="b").key != base.key
    assert Text(text="a", inputs=(base,)).key != base.key
    assert Text(text="a", after=(base,)).key == base.key
    assert base.fields() == {"text": "a"}


def test_a_host_path_does_not_belong_in_a_key() -> None:
    with pytest.raises(TypeError, match="does not belong in a stage's key"):
        to_json({"path": Path("/somewhere")})


def test_a_failed_stage_leaves_nothing_and_the_others_stay(store: Store) -> None:
    root = Text(text="a")
    with pytest.raises(StageFailedError) as caught:
        build(store, Text(text="b", inputs=(root,), fails=True, label="of a site"))
    assert str(caught.value) == "stage text of a site: it failed"
    assert list(store.path("work").iterdir()) == []
    assert build(store, Text(text="b", inputs=(root,))) == ["ab"]
    assert RUNS == ["a", "b", "b"]


def test_a_failed_stage_takes_only_those_that_need_it(store: Store) -> None:
    slow = Text(text="slow", seconds=0.2)
    later = Text(text="later", inputs=(slow,))
    broken = Text(text="broken", fails=True)
    with pytest.raises(StageFailedError, match="it failed"):
        build(store, Text(text="never", inputs=(broken,)), later)
    assert sorted(RUNS) == ["broken", "later", "slow"]
    assert build(store, later) == ["slowlater"]


def test_stages_that_share_a_failed_one_share_its_error(store: Store) -> None:
    broken = Text(text="broken", fails=True)
    left, right = Text(text="b", inputs=(broken,)), Text(text="c", after=(broken,))
    with Builder(store, lambda _: NoProgress()) as builder:
        errors = [future.exception() for future in builder.submit([left, right])]
    assert errors[0] is errors[1]
    assert RUNS == ["broken"]


def test_an_interrupted_builder_starts_nothing_more(store: Store) -> None:
    slow = Text(text="slow", seconds=0.2)
    later = Text(text="later", inputs=(slow,))

    def interrupt() -> None:
        with Builder(store, lambda _: NoProgress()) as builder:
            builder.submit([later])
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupt()
    assert "later" not in RUNS
    assert list(store.path("work").iterdir()) == []


@pytest.mark.parametrize("hidden", [False, True])
def test_a_damaged_artifact_is_made_anew(store: Store, hidden: bool) -> None:
    """Damage that the file's time shows, and damage that only its bytes show."""
    root = Text(text="a")
    build(store, root)
    found = store.find("text", root.key)
    assert found is not None
    file = found.file("text")
    before = file.stat()
    file.chmod(0o644)
    file.write_text("x")
    if hidden:
        os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert build(store, Text(text="b", inputs=(root,))) == ["ab"]
    assert RUNS == ["a", "a", "b"]


def test_two_builders_share_the_work(store: Store) -> None:
    root = Text(text="a", seconds=0.5)
    results: list[list[str]] = []
    threads = [
        threading.Thread(target=lambda: results.append(build(store, root))) for _ in range(2)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results == [["a"], ["a"]]
    assert RUNS == ["a"]


def test_debris_of_a_killed_run_goes_and_what_runs_stays(store: Store) -> None:
    root = Text(text="a")
    (store.path("work") / f"text-{root.key}" / "out").mkdir(parents=True)
    (store.path("work") / f"text-{root.key}" / "out" / "half").write_text("half")
    with store.temporary("machine") as folder:
        assert store.sweep()[0] == 1
        assert folder.is_dir()
    assert build(store, root) == ["a"]
    assert list(store.path("work").iterdir()) == []


def test_eviction_takes_what_was_used_longest_ago(store: Store) -> None:
    old, new = Text(text="old"), Text(text="new")
    build(store, old)
    build(store, new)
    found = store.find("text", old.key)
    assert found is not None
    os.utime(found.folder / "artifact.json", (1, 1))
    total = sum(size for _, size, _ in store._entries())
    assert store.evict(total - 1)[0] == 1
    assert store.find("text", old.key) is None
    assert store.find("text", new.key) is not None
    store.evict(0)
    assert store.find("text", new.key) is None


def test_a_store_that_is_a_file_says_what_to_do(tmp_path: Path) -> None:
    (tmp_path / "store").write_text("")
    with pytest.raises(StoreError) as caught:
        Store(tmp_path / "store").path("work")
    assert "set PHANTOM_STORE to a folder that this user may write to" in str(caught.value)


def test_too_little_space_is_found_before_work_starts(store: Store) -> None:
    with pytest.raises(NoSpaceError, match="are free, and about"):
        store.check_space(1 << 60)


def test_a_file_is_replaced_whole_or_not_at_all(tmp_path: Path) -> None:
    write_atomically(tmp_path / "file", "first")
    with pytest.raises(UnicodeEncodeError):
        write_atomically(tmp_path / "file", "\udcff")
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
    assert (tmp_path / "file").read_text() == "first"


@pytest.mark.parametrize(
    ("cores", "memory"), [([1, 2, 3], [0]), ([1], [600, 1000, 5000]), ([1, 2], [300, 1000])]
)
def test_resources_are_never_handed_out_twice(cores: list[int], memory: list[int]) -> None:
    resources = Resources(cores=2, memory=1000)
    taken, most = [0, 0], [0, 0]
    lock = threading.Lock()

    def work(number: int) -> None:
        wanted = cores[number % len(cores)], memory[number % len(memory)]
        mine = min(wanted[0], 2), min(wanted[1], 1000)
        with resources.taken(*wanted):
            with lock:
                for each in (0, 1):
                    taken[each] += mine[each]
                    most[each] = max(most[each], taken[each])
            time.sleep(0.02)
            with lock:
                for each in (0, 1):
                    taken[each] -= mine[each]

    threads = [threading.Thread(target=work, args=(number,)) for number in range(12)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(10)
    assert taken == [0, 0]
    assert 1 <= most[0] <= 2
    assert most[1] <= 1000


def test_resources_are_handed_out_in_turn() -> None:
    """Work that needs every core gets them, although work that needs one core keeps coming."""
    resources = Resources(cores=2, memory=0)
    order: list[str] = []
    first = threading.Event()

    def work(name: str, cores: int) -> None:
        with resources.taken(cores):
            order.append(name)
            first.wait(5) if name == "first" else time.sleep(0.01)

    threads = [threading.Thread(target=work, args=("first", 1))]
    threads += [threading.Thread(target=work, args=("whole", 2))]
    threads += [threading.Thread(target=work, args=(f"small {n}", 1)) for n in range(4)]
    for thread in threads:
        thread.start()
        time.sleep(0.02)
    first.set()
    for thread in threads:
        thread.join(10)
    assert order[:2] == ["first", "whole"]
    assert len(order) == 6


def test_an_interrupted_builder_ends_what_runs(store: Store) -> None:
    """A program that starts after the interrupt is ended, too."""
    late = Sleeper(text="late", seconds=0.3)

    def interrupt() -> None:
        with Builder(store, lambda _: NoProgress()) as builder:
            builder.submit([late])
            time.sleep(0.1)
            raise KeyboardInterrupt

    started = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        interrupt()
    assert time.monotonic() - started < 500  # the program itself takes 1000 s


@pytest.mark.parametrize("threads", [1, 8])
def test_damage_is_mended_once(store: Store, threads: int) -> None:
    """Several stages find at the same time that their common input is damaged."""
    root = Text(text="a")
    build(store, root)
    found = store.find("text", root.key)
    assert found is not None
    file = found.file("text")
    before = file.stat()
    file.chmod(0o644)
    file.write_text("x")
    os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))
    leaves = [Text(text=f"b{number}", inputs=(root,)) for number in range(threads)]
    assert build(store, *leaves) == [f"ab{number}" for number in range(threads)]
    assert RUNS.count("a") == 2
