"""Walks a plan: reuses what is stored, runs the other stages, and stores their output.

Each stage runs on a thread of its own as soon as its inputs exist and the host has the cores and
the memory that it asks for. While it runs it holds a lock in the store, so that two commands at
once share the work.
"""

from __future__ import annotations

import os
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from pipeline.build.remains import keep_remains
from pipeline.errors import PhantomError, located
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


class Resources:
    """The host's cores and memory, given to stages in the order in which they ask. A stage that
    asks for more than the host has gets all of it, and runs alone."""

    def __init__(self, cores: int | None = None, memory: int | None = None) -> None:
        self._all = self._free = (
            cores or os.cpu_count() or 1,
            accelerator.available_memory() if memory is None else memory,
        )
        self._waiting: deque[object] = deque()
        self._changed = threading.Condition()

    @contextmanager
    def taken(self, cores: int, memory: int = 0) -> Iterator[None]:
        """Holds that many cores and bytes of memory, waiting until they are free."""
        cores, memory = min(cores, self._all[0]), min(memory, self._all[1])
        ticket = object()
        with self._changed:
            # In turn: else a stage that needs every core might wait for ever behind small ones.
            self._waiting.append(ticket)
            while self._waiting[0] is not ticket or self._free[0] < cores or self._free[1] < memory:
                self._changed.wait()
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

    When a stage fails, only those that need its output fail with it. `progress` makes the progress
    of a stage from its title; `stopping` is set when the build is interrupted. Used as a context,
    the builder waits at the end for the stages that it started. The folder `failed` gets what
    failed stages leave.
    """

    def __init__(
        self, store: Store, progress: Callable[[str], Progress], failed: Path | None = None
    ) -> None:
        self._store = store
        self._progress = progress
        self._failed = failed
        self._resources = Resources()
        self._pool = ThreadPoolExecutor(max_workers=64, thread_name_prefix="stage")
        self._futures: dict[ContentKey, Future[Built]] = {}
        self._checked: set[ContentKey] = set()
        self._lock = threading.Lock()
        self.stopping = threading.Event()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is not None and issubclass(kind, KeyboardInterrupt):
            self.stop()
        self._pool.shutdown(wait=True, cancel_futures=True)

    def stop(self) -> None:
        """Starts no more stages, and ends the programs of those that run until all have ended."""
        self.stopping.set()
        self._pool.shutdown(wait=False, cancel_futures=True)
        while not all(future.done() for future in list(self._futures.values())):
            run.stop_all()
            time.sleep(0.05)

    def build(self, stages: Sequence[Stage]) -> list[Built]:
        """The artifacts of these stages. Inputs that no missing artifact needs are not made.

        Raises the first stage's error, after all running stages have ended.
        """
        with self:
            futures = self.submit(stages)
            errors = [future.exception() for future in futures]
        for error in filter(None, errors):
            raise error
        return [future.result() for future in futures]

    def submit(self, stages: Sequence[Stage]) -> list[Future[Built]]:
        """Starts these stages; may be called from several threads."""
        with self._lock:
            return [self._submit(stage) for stage in stages]

    def results(self) -> dict[ContentKey, Built]:
        """What was built or reused so far, inputs too, by key."""
        return {
            key: future.result()
            for key, future in list(self._futures.items())
            if future.done() and not future.cancelled() and future.exception() is None
        }

    def _submit(self, stage: Stage) -> Future[Built]:
        if stage.key not in self._futures:
            stored = self._store.find(stage.name, stage.key)
            if stored is not None:
                self._store.touch(stored)
                future: Future[Built] = Future()
                future.set_result(Built(artifact=stored, reused=True, seconds=0.0))
            else:
                before = [self._submit(earlier) for earlier in (*stage.after, *stage.inputs)]
                future = self._pool.submit(self._make, stage, before)
            self._futures[stage.key] = future
        return self._futures[stage.key]

    def _make(self, stage: Stage, before: Sequence[Future[Built]]) -> Built:
        built = [future.result() for future in before]
        with self._resources.taken(stage.cores, stage.memory):
            if self.stopping.is_set():
                raise PhantomError(f"{stage.title} was not started")
            with located(f"stage {stage.title}"):
                fresh = {each.artifact.key: each.artifact for each in built if not each.reused}
                return self._make_locked(stage, fresh)

    def _make_locked(self, stage: Stage, fresh: Mapping[ContentKey, Artifact]) -> Built:
        """Makes a stage's artifact, unless another command just did. `fresh` are the inputs that
        this run made; the others are from earlier runs, and every byte of them is checked."""
        progress = self._progress(stage.title)
        started = time.monotonic()
        waiting = "another command builds this; waiting for it"
        with (
            failing(progress, self.stopping.is_set),
            self._store.lock(f"{stage.name}-{stage.key}", lambda: progress.step(waiting)),
        ):
            stored = self._store.find(stage.name, stage.key)
            if stored is not None:
                progress.finish("built by another command")
                return Built(artifact=stored, reused=True, seconds=time.monotonic() - started)
            inputs = [fresh.get(source.key) or self._reverify(source) for source in stage.inputs]
            artifact = self._run(stage, inputs, progress)
            seconds = time.monotonic() - started
            progress.finish(f"done in {seconds:.1f} s")
        return Built(artifact=artifact, reused=False, seconds=seconds)

    def _reverify(self, stage: Stage) -> Artifact:
        """A stored artifact, after checking every byte of it; a damaged one is made again."""
        if not self.renew(stage):
            stored = self._store.find(stage.name, stage.key)
            if stored is not None:
                return stored
        return self._make_locked(stage, {}).artifact

    def renew(self, stage: Stage) -> bool:
        """Removes a stage's stored artifact if it is damaged. Returns whether it was. Reads all of
        its data, once however often this is asked."""
        with self._store.lock(f"{stage.name}-{stage.key}"):
            stored = self._store.find(stage.name, stage.key)
            if stored is None or stage.key in self._checked:
                return False
            progress = self._progress(stage.title)
            progress.step("checking what is stored")
            self._checked.add(stage.key)
            with failing(progress, self.stopping.is_set):
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
                facts = stage.run(inputs, context)
            except PhantomError:
                if self._failed is not None and not self.stopping.is_set():
                    keep_remains(stage, context, self._failed)
                raise
            return self._store.add(stage.name, stage.key, out, facts)
