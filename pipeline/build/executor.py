"""What runs stages: one small interface, and this host behind it.

A builder hands over a stage and what the stage needs, and gets its artifact. What runs stages may
be on other hosts: nothing but the store passes between a stage, its inputs and its output.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from pipeline.build.remains import keep_remains
from pipeline.errors import PhantomError, StageLimitError, located
from pipeline.files import make_folder
from pipeline.machine import accelerator
from pipeline.model import ContentKey, Progress
from pipeline.progress import failing
from pipeline.stages.base import Context, Stage
from pipeline.store import Artifact, Store
from pipeline.tools import run


@dataclass(frozen=True, kw_only=True)
class Built:
    """A stage's artifact, and how it came to be there."""

    artifact: Artifact
    reused: bool
    seconds: float


@dataclass(frozen=True, kw_only=True)
class Need:
    """What a stage takes of the host that it runs on."""

    cores: int
    memory: int
    """Bytes, as are those of the disk."""
    disk: int = 0
    urgency: float = 0.0
    """Seconds that what waits for it will take. Of stages that wait, the most urgent comes first.
    """

    @staticmethod
    def of(stage: Stage) -> Need:
        """What a stage says of itself."""
        return Need(cores=stage.cores, memory=stage.memory)


class Executor(Protocol):
    """Runs stages. Several threads call it."""

    def make(self, stage: Stage, need: Need, fresh: Collection[ContentKey]) -> Built:
        """A stage's artifact, which is in the store then, as its inputs are before. Inputs that are
        not `fresh` are from earlier runs, and every byte of them is checked. Raises PhantomError.
        """

    def stop(self) -> None:
        """Ends what runs, and starts nothing more. Called again until all has ended."""


class Resources:
    """The host's cores, memory and disk, given to the most urgent of those who ask, and among
    equals in the order in which they ask. A stage that asks for more than there is gets all of it,
    and runs alone."""

    def __init__(
        self, cores: int | None = None, memory: int | None = None, disk: int | None = None
    ) -> None:
        """Without `disk`, nobody waits for bytes of the disk."""
        self._all = self._free = (
            cores or os.cpu_count() or 1,
            accelerator.available_memory() if memory is None else memory,
            disk or 0,
        )
        self._waiting: list[tuple[float, int]] = []
        self._count = 0
        self._changed = threading.Condition()

    @contextmanager
    def taken(
        self, cores: int, memory: int = 0, disk: int = 0, urgency: float = 0.0
    ) -> Iterator[None]:
        """Holds that many cores and bytes, waiting until they are free."""
        wanted = (cores, memory, disk)
        mine = tuple(map(min, wanted, self._all))
        with self._changed:
            # In turn: else a stage that needs every core might wait for ever behind small ones.
            self._count += 1
            ticket = (-urgency, self._count)
            self._waiting.append(ticket)
            while min(self._waiting) != ticket or any(map(int.__lt__, self._free, mine)):
                self._changed.wait()
            self._waiting.remove(ticket)
            self._change(-1, mine)
        try:
            yield
        finally:
            with self._changed:
                self._change(1, mine)

    def _change(self, sign: int, amounts: Sequence[int]) -> None:
        cores, memory, disk = (
            free + sign * amount for free, amount in zip(self._free, amounts, strict=True)
        )
        self._free = (cores, memory, disk)
        self._changed.notify_all()


class HostExecutor:
    """Runs stages on this host, each on the thread that asks.

    While a stage runs it holds a lock in the store, so that two commands at once share the work.
    `progress` makes the progress of a stage from what `find_title` says. The folder `failed` gets
    what failed stages leave. A stage that takes longer than `limit` seconds fails.
    """

    def __init__(
        self,
        store: Store,
        progress: Callable[[str], Progress],
        *,
        failed: Path | None = None,
        resources: Resources | None = None,
        limit: float | None = None,
        find_title: Callable[[Stage], str] = lambda stage: stage.title,
    ) -> None:
        self._store = store
        self._progress = progress
        self._failed = failed
        self._resources = resources or Resources()
        self._limit = limit
        self._find_title = find_title
        self._checked: set[ContentKey] = set()
        self._stopping = threading.Event()

    def stop(self) -> None:
        """Ends the programs of this process."""
        self._stopping.set()
        run.stop_all()

    def make(self, stage: Stage, need: Need, fresh: Collection[ContentKey]) -> Built:
        """The stage's artifact, as soon as the host has what it needs."""
        with self._resources.taken(need.cores, need.memory, need.disk, need.urgency):
            if self._stopping.is_set():
                raise PhantomError(f"{stage.title} was not started")
            with located(f"stage {stage.title}"):
                return self._make_locked(stage, fresh)

    def _make_locked(self, stage: Stage, fresh: Collection[ContentKey]) -> Built:
        """Makes a stage's artifact, unless another command just did."""
        progress = self._progress(self._find_title(stage))
        started = time.monotonic()
        waiting = "another command builds this; waiting for it"
        with (
            failing(progress, self._stopping.is_set),
            self._store.lock(f"{stage.name}-{stage.key}", lambda: progress.step(waiting)),
        ):
            stored = self._store.find(stage.name, stage.key)
            if stored is not None:
                progress.finish("built by another command")
                return Built(artifact=stored, reused=True, seconds=time.monotonic() - started)
            inputs = [self._find_input(source, fresh) for source in stage.inputs]
            artifact = self._run(stage, inputs, progress)
            seconds = time.monotonic() - started
            progress.finish(f"done in {seconds:.1f} s")
        return Built(artifact=artifact, reused=False, seconds=seconds)

    def _find_input(self, stage: Stage, fresh: Collection[ContentKey]) -> Artifact:
        """A stored artifact. Unless it is fresh, every byte of it is checked; a damaged one is made
        again."""
        if stage.key in fresh or not self.renew(stage):
            stored = self._store.find(stage.name, stage.key)
            if stored is not None:
                return stored
        return self._make_locked(stage, ()).artifact

    def renew(self, stage: Stage) -> bool:
        """Removes a stage's stored artifact if it is damaged. Returns whether it was. Reads all of
        its data, once however often this is asked."""
        with self._store.lock(f"{stage.name}-{stage.key}"):
            stored = self._store.find(stage.name, stage.key)
            if stored is None or stage.key in self._checked:
                return False
            progress = self._progress(self._find_title(stage))
            progress.step("checking what is stored")
            self._checked.add(stage.key)
            with failing(progress, self._stopping.is_set):
                if stored.check():
                    progress.finish("reused: what is stored is whole")
                    return False
                progress.step("what is stored was damaged: making it anew")
                self._store.remove(stored)
                return True

    def _run(self, stage: Stage, inputs: Sequence[Artifact], progress: Progress) -> Artifact:
        log = self._store.new_log(stage.name, stage.key)
        with self._store.making(stage.name, stage.key) as folder, self._store.errors():
            out, work = Path(folder, "out"), Path(folder, "work")
            make_folder(out)
            make_folder(work)
            context = Context(
                out=out,
                work=work,
                log=log,
                store=self._store,
                progress=progress,
                keep_failed=self._failed is not None,
            )
            try:
                with _limited(self._limit, log):
                    facts = stage.run(inputs, context)
            except PhantomError:
                if self._failed is not None and not self._stopping.is_set():
                    keep_remains(stage, context, self._failed)
                raise
            return self._store.add(stage.name, stage.key, out, facts)


@contextmanager
def _limited(seconds: float | None, log: Path) -> Iterator[None]:
    """Ends what this thread runs in the block if that takes longer. Raises StageLimitError."""
    if seconds is None:
        yield
        return
    ended, late, mine = threading.Event(), threading.Event(), threading.get_ident()

    def watch() -> None:
        if ended.wait(seconds):
            return
        late.set()
        while True:  # it may start further programs
            run.stop_all(mine)
            if ended.wait(0.2):
                return

    watcher = threading.Thread(target=watch, name="stage limit", daemon=True)
    watcher.start()
    try:
        yield
    except PhantomError as error:
        if not late.is_set():
            raise
        raise StageLimitError(
            f"it had not ended after {seconds:.0f} s, and was stopped",
            todo="see the log for what it waits for; --stage-limit sets another limit",
            log=log if log.exists() else None,
        ) from error
    finally:
        ended.set()
        watcher.join()
