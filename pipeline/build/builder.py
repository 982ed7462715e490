"""Walks a plan: reuses what is stored, and has the other stages made.

Each stage is handed to the executor, on a thread of its own, as soon as its inputs exist.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Self

from pipeline.build.executor import Built, Executor, HostExecutor, Need
from pipeline.model import ContentKey, Progress
from pipeline.stages.base import Stage
from pipeline.store import Store

__all__ = ["Builder", "Built"]


class Builder:
    """Builds stages, each at most once, however many others need it.

    When a stage fails, only those that need its output fail with it. `progress` makes the progress
    of a stage from its title; `stopping` is set when the build is interrupted. Used as a context,
    the builder waits at the end for the stages that it started. The folder `failed` gets what
    failed stages leave.
    """

    def __init__(
        self,
        store: Store,
        progress: Callable[[str], Progress],
        failed: Path | None = None,
        *,
        executor: Executor | None = None,
        find_need: Callable[[Stage], Need] = Need.of,
    ) -> None:
        """`find_need` tells what a stage needs of the `executor`, which is this host unless another
        one is given."""
        self._store = store
        self._host = HostExecutor(store, progress, failed=failed)
        self._executor = executor or self._host
        self._find_need = find_need
        self._pool = ThreadPoolExecutor(max_workers=64, thread_name_prefix="stage")
        self._futures: dict[ContentKey, Future[Built]] = {}
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
        self._executor.stop()
        self._pool.shutdown(wait=False, cancel_futures=True)
        while not all(future.done() for future in list(self._futures.values())):
            self._executor.stop()
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

    def find_failed(self, stages: Sequence[Stage]) -> Stage | None:
        """The first of these stages that failed."""
        for stage in stages:
            future = self._futures.get(stage.key)
            if future is None or not future.done() or future.cancelled():
                continue
            if future.exception() is not None:
                return stage
        return None

    def forget_failed(self, stages: Sequence[Stage]) -> None:
        """Lets these stages, and their inputs, be tried again where they failed."""
        with self._lock:
            left = [*stages]
            while left:
                stage = left.pop()
                left += (*stage.after, *stage.inputs)
                future = self._futures.get(stage.key)
                if future is None or not future.done() or future.cancelled():
                    continue
                if future.exception() is not None:
                    del self._futures[stage.key]

    def renew(self, stage: Stage) -> bool:
        """Removes a stage's stored artifact if it is damaged. Returns whether it was. Reads all of
        its data, once however often this is asked."""
        return self._host.renew(stage)

    def _make(self, stage: Stage, before: Sequence[Future[Built]]) -> Built:
        built = [future.result() for future in before]
        fresh = {each.artifact.key for each in built if not each.reused}
        return self._executor.make(stage, self._find_need(stage), fresh)
