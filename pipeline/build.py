"""Walks a plan: a stored key is reused, else the stage runs and its output is stored.

Stages are run on threads, each as soon as its inputs are there and the host has the cores and the
memory that it asks for. What holds a stage's place is a lock in the store, so that two commands at
once share the work.
"""

from __future__ import annotations

import os
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from pipeline import host
from pipeline.errors import PhantomError
from pipeline.model import ContentKey, Progress
from pipeline.stages.base import Context, Stage
from pipeline.store import Artifact, Store
from pipeline.tools import run


@dataclass(frozen=True, kw_only=True)
class Built:
    """A stage's artifact, and how it came to be there."""

    artifact: Artifact
    reused: bool
    seconds: float


class Resources:
    """The host's cores and memory, handed out to stages in the order in which they ask; one that
    asks for more than there is gets all of it, and runs alone."""

    def __init__(self, cores: int | None = None, memory: int | None = None) -> None:
        self._all = self._free = (
            cores or os.cpu_count() or 1,
            host.available_memory() if memory is None else memory,
        )
        self._waiting: deque[object] = deque()
        self._changed = threading.Condition()

    @contextmanager
    def taken(self, cores: int, memory: int = 0) -> Iterator[None]:
        """Holds that many cores and bytes of memory, waiting until they are free."""
        cores, memory = min(cores, self._all[0]), min(memory, self._all[1])
        ticket = object()
        with self._changed:
            # In turn, or one that needs every core would wait for ever behind many that need one.
            self._waiting.append(ticket)
            self._changed.wait_for(
                lambda: (
                    self._waiting[0] is ticket
                    and self._free[0] >= cores
                    and self._free[1] >= memory
                )
            )
            self._waiting.popleft()
            self._change(-cores, -memory)
        try:
            yield
        finally:
            with self._changed:
                self._change(cores, memory)

    def _change(self, cores: int, memory: int) -> None:
        self._free = (self._free[0] + cores, self._free[1] + memory)
        self._changed.notify_all()


class Builder:
    """Builds stages, each at most once, however many others need it.

    A stage that fails takes only those with it that need its output. `progress` makes the progress
    of a stage from its title. Used as a context, it waits at the end for all that was begun.
    """

    def __init__(self, store: Store, progress: Callable[[str], Progress]) -> None:
        self._store = store
        self._progress = progress
        self._resources = Resources()
        self._pool = ThreadPoolExecutor(max_workers=64, thread_name_prefix="stage")
        self._futures: dict[ContentKey, Future[Built]] = {}
        self._checked: set[ContentKey] = set()
        self._lock = threading.Lock()
        self._stopping = threading.Event()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is not None and issubclass(kind, KeyboardInterrupt):
            self.stop()
        self._pool.shutdown(wait=True, cancel_futures=True)

    def stop(self) -> None:
        """Begins nothing more, and ends the programs that stages run until all of them let go."""
        self._stopping.set()
        self._pool.shutdown(wait=False, cancel_futures=True)
        while not all(future.done() for future in list(self._futures.values())):
            run.stop_all()
            time.sleep(0.05)

    def build(self, stages: Sequence[Stage]) -> list[Built]:
        """The artifacts of these stages. Inputs that nobody needs are not made.

        Raises the first error that a stage raised, after the stages that run have ended.
        """
        with self:
            futures = self.submit(stages)
            errors = [future.exception() for future in futures]
        for error in filter(None, errors):
            raise error
        return [future.result() for future in futures]

    def submit(self, stages: Sequence[Stage]) -> list[Future[Built]]:
        """Begins with these stages; may be called from several threads."""
        with self._lock:
            return [self._submit(stage) for stage in stages]

    def results(self) -> dict[ContentKey, Built]:
        """What has been built or found, inputs too, by key."""
        return {
            key: future.result()
            for key, future in list(self._futures.items())
            if future.done() and not future.cancelled() and future.exception() is None
        }

    def _submit(self, stage: Stage) -> Future[Built]:
        if stage.key not in self._futures:
            found = self._store.find(stage.name, stage.key)
            if found is not None:
                self._store.touch(found)
                future: Future[Built] = Future()
                future.set_result(Built(artifact=found, reused=True, seconds=0.0))
            else:
                before = [self._submit(each) for each in (*stage.after, *stage.inputs)]
                future = self._pool.submit(self._make, stage, before)
            self._futures[stage.key] = future
        return self._futures[stage.key]

    def _make(self, stage: Stage, before: Sequence[Future[Built]]) -> Built:
        built = [future.result() for future in before]
        with self._resources.taken(stage.cores, stage.memory):
            if self._stopping.is_set():
                raise PhantomError(f"{stage.title} was not started")
            try:
                return self._make_locked(
                    stage, [each.artifact for each in built if not each.reused]
                )
            except PhantomError as error:
                raise error.located(f"stage {stage.title}") from error

    def _make_locked(self, stage: Stage, fresh: Sequence[Artifact]) -> Built:
        """Makes a stage's artifact, unless somebody else just did. `fresh` are the inputs that
        this run made; the others are from earlier runs, and every byte of them is checked."""
        progress = self._progress(stage.title)
        started = time.monotonic()
        waiting = "another command builds this; waiting for it"
        with self._store.lock(f"{stage.name}-{stage.key}", lambda: progress.step(waiting)):
            found = self._store.find(stage.name, stage.key)
            if found is not None:
                return Built(artifact=found, reused=True, seconds=time.monotonic() - started)
            known = {artifact.key: artifact for artifact in fresh}
            inputs = [known.get(each.key) or self._sound(each) for each in stage.inputs]
            artifact = self._run(stage, inputs, progress)
        seconds = time.monotonic() - started
        progress.step(f"done in {seconds:.1f} s")
        return Built(artifact=artifact, reused=False, seconds=seconds)

    def _sound(self, stage: Stage) -> Artifact:
        """A stored artifact whose every byte is as it was stored; a damaged one is made anew."""
        if self.renew(stage):
            self._progress(stage.title).step("what is stored was damaged: making it anew")
        return self._make_locked(stage, []).artifact

    def renew(self, stage: Stage) -> bool:
        """Removes a stage's stored artifact if it is not as it was stored; whether it was not.
        Reads all of its data, once for all who ask."""
        with self._store.lock(f"{stage.name}-{stage.key}"):
            found = self._store.find(stage.name, stage.key)
            if found is None or stage.key in self._checked:
                return False
            self._progress(stage.title).step("checking what is stored")
            self._checked.add(stage.key)
            if found.check():
                return False
            self._store.remove(found)
            return True

    def _run(self, stage: Stage, inputs: Sequence[Artifact], progress: Progress) -> Artifact:
        log = self._store.log(stage.name, stage.key)
        log.unlink(missing_ok=True)
        with self._store.making(stage.name, stage.key) as folder, self._store.errors():
            out, work = Path(folder, "out"), Path(folder, "work")
            out.mkdir()
            work.mkdir()
            facts = stage.run(
                inputs,
                Context(out=out, work=work, log=log, store=self._store.folder, progress=progress),
            )
            return self._store.add(stage.name, stage.key, out, facts)
