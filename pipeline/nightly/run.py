"""A night of a build server: what changed is built and sent, what matters is kept, and what
happened is told."""

from __future__ import annotations

import os
import platform
import shutil
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import replace

from pipeline import __version__
from pipeline.build.builder import Builder
from pipeline.build.delivery import check_sites
from pipeline.build.executor import HostExecutor, Resources
from pipeline.build.run import STAGES
from pipeline.errors import DefinitionError, NightNotRunError, PhantomError
from pipeline.files import disk_usage
from pipeline.machine import accelerator
from pipeline.model import Appliance, format_size
from pipeline.nightly.memory import Memory, Needs
from pipeline.nightly.night import Night, Outcome, State
from pipeline.nightly.order import OF_THE_NETWORK, Order
from pipeline.nightly.places import Done, Places, make_name
from pipeline.nightly.survey import Task, check_bases, fail, find_base, make_failure, survey
from pipeline.nightly.upkeep import Upkeep, let_go
from pipeline.nightly.work import ENDED, make_defect, work
from pipeline.store import RESERVE
from pipeline.tools.snapshot import Snapshot
from pipeline.workspace import Workspace

_GOOD = (State.BUILT, State.REUSED, State.UNCHANGED)
_LOOK = 0.5  # seconds between looks for an interrupt, which another thread may have got
_INTERRUPTED = 130  # the exit status after a control-c


def run_night(order: Order, workspace: Workspace, *, now: Callable[[], float] = time.time) -> Night:
    """Runs a night and returns what came of it, whatever that is: also where it was interrupted, or
    where nothing could run. `now` is the host's clock."""
    places, started = Places(workspace), now()
    try:
        with places.alone():
            return _Run(order, workspace, places, started, now).run()
    except NightNotRunError as error:
        night = _make_night(order, places.make_name(started), started, now())
        return replace(night, could_not_run=f"{error.where}: {error.what}")


def look_ahead(order: Order, workspace: Workspace) -> list[Task]:
    """What a night would do about each appliance; builds nothing."""
    with workspace.store.used():
        return _Run(order, workspace, Places(workspace), time.time(), time.time).plan()


def _make_night(order: Order, name: str, started: float, ended: float) -> Night:
    cores = os.cpu_count() or 1
    return Night(
        name=name,
        started=started,
        ended=ended,
        host_cores=cores,
        jobs=order.jobs or cores,
        store_limit=order.store_bytes,
        environment={"host": platform.node(), "version": __version__},
    )


class _Run:
    """One night."""

    def __init__(
        self,
        order: Order,
        workspace: Workspace,
        places: Places,
        started: float,
        now: Callable[[], float],
    ) -> None:
        self._order = order
        self._workspace = workspace
        self._places = places
        self._started = started
        self._now = now
        self._name = places.make_name(started)
        self._killed = places.find_unfinished()
        self._memory = Memory(places.folder)
        self._needs = Needs(self._memory)
        self._snapshot = Snapshot()
        self._appliances: dict[str, Appliance] = {}
        self._outcomes: list[Outcome] = []
        self._done: list[Done] = []
        self._upkeep = Upkeep()
        self._forecast = 0
        self._site_errors: dict[str, PhantomError] = {}
        self._warnings = [*self._warn_of_the_past()]

    def run(self) -> Night:
        """The whole night."""
        self._places.note(self._name, self._done)
        accelerator.give_memory_back()
        store, could_not, interrupted = self._workspace.store, None, 0
        store.sweep()
        try:
            with store.used():
                tasks = self.plan()
            self._check_space()
            with store.used():
                self._build(tasks)
            self._let_go()
        except NightNotRunError as error:
            could_not = f"{error.where}: {error.what}" if error.where else error.what
        except KeyboardInterrupt as interrupt:
            interrupted = interrupt.args[0] if interrupt.args else _INTERRUPTED
        with self._workspace.errors():
            self._memory.save()
        self._places.finish()
        return replace(
            _make_night(self._order, self._name, self._started, self._now()),
            outcomes=tuple(sorted(self._outcomes, key=lambda each: (each.appliance, each.site))),
            kept=self._upkeep.kept,
            warnings=(*self._warnings, *self._upkeep.warnings),
            store_bytes=disk_usage(store.folder),
            free_bytes=shutil.disk_usage(store.folder).free,
            forecast_bytes=self._forecast,
            could_not_run=could_not,
            interrupted=interrupted,
        )

    def _warn_of_the_past(self) -> Iterator[str]:
        if self._killed is not None:
            count = len(self._killed.done)
            yield f"the night {self._killed.name} was killed after {count} builds; this one goes on"
        if self._name > make_name(self._started):
            yield "the host's clock was set back since the last night"

    # ---- what there is to do

    def plan(self) -> list[Task]:
        """What the night does about each appliance. What the network was in the way of is planned
        again, with all else, so that everything sees archives at one moment."""
        loaded = [*self._load()]
        for pause in (*self._order.pauses, None):
            self._snapshot, self._needs = Snapshot(), Needs(self._memory)
            tasks = [*loaded, *self._survey_all()]
            if pause is None or not any(isinstance(each.error, OF_THE_NETWORK) for each in tasks):
                break
            time.sleep(pause)
        self._forecast = sum(
            self._needs.add(task.plan, task.missing)[1] for task in tasks if task.plan is not None
        )
        return tasks

    def _load(self) -> Iterator[Task]:
        """Loads the definitions. Those with mistakes become tasks that failed."""
        for name in self._order.names:
            try:
                appliance = self._order.load(name)
            except PhantomError as error:
                yield fail(name, self._order, error)
            else:
                if self._is_recent(name):
                    self._warnings.append(f"{name} is left alone: it was built lately")
                else:
                    self._appliances[name] = appliance

    def _is_recent(self, name: str) -> bool:
        """Whether an appliance was built since the moment that the order names."""
        stages = self._workspace.folder(name) / STAGES
        since = self._order.since
        return since is not None and stages.is_file() and stages.stat().st_mtime > since

    def _survey_all(self) -> Iterator[Task]:
        """Plans the appliances, each after the one that it is made of."""
        tasks: dict[str, Task] = {}
        circles = check_bases([*self._appliances.values()])
        left = [*self._appliances.values()]
        for appliance in left:
            base = find_base(appliance)
            if appliance.name in circles:
                circle = " of ".join(circles[appliance.name])
                error = DefinitionError(f"it is made of itself: {circle}", where=appliance.name)
                task = fail(appliance.name, self._order, error, appliance)
            elif base in self._appliances and base not in tasks and base not in circles:
                left.append(appliance)
                continue
            elif base in tasks and tasks[base].error is not None:
                outcomes = self._make_skips(appliance, f"{base} failed, and it is made of that")
                task = Task(name=appliance.name, outcomes=tuple(outcomes))
            elif base in tasks and (tasks[base].plan is not None or tasks[base].base is not None):
                task = Task(name=appliance.name, appliance=appliance, base=base)
            else:
                task = self._survey(appliance)
            tasks[appliance.name] = task
        yield from tasks.values()

    def _survey(self, appliance: Appliance) -> Task:
        order = self._order
        try:
            return survey(appliance, order, self._workspace, self._memory, self._snapshot)
        except Exception as defect:  # noqa: BLE001 # it must not end the night of all others
            error = PhantomError(f"a mistake of this program: {defect!r}")
            return fail(appliance.name, order, error, appliance)

    def _check_space(self) -> None:
        """Raises NightNotRunError where the disk will not do, even after old things went."""
        folder, needed = self._workspace.store.path("work"), self._forecast + RESERVE
        if self._forecast and shutil.disk_usage(folder).free < needed:
            self._let_go()
            free = shutil.disk_usage(folder).free
            if free < needed:
                raise NightNotRunError(
                    f"{format_size(free)} are free, and about {format_size(needed)} are needed",
                    where=str(self._workspace.store.folder),
                )

    def _let_go(self) -> None:
        done = let_go(self._appliances, self._order, self._workspace)
        removed = [each for each in self._upkeep.kept if each.action == "removed"]
        self._upkeep = Upkeep(kept=(*removed, *done.kept), warnings=done.warnings)

    # ---- the work

    def _build(self, tasks: Sequence[Task]) -> None:
        """Builds what there is to do, the longest first, and each appliance after the one that it
        is made of."""
        order, store = self._order, self._workspace.store
        resources = Resources(order.jobs, disk=self._find_room())
        executor = order.executor or HostExecutor(
            store,
            self._workspace.progress,
            resources=resources,
            limit=order.stage_seconds,
            find_title=self._needs.find_title,
        )
        builder = Builder(
            store, self._workspace.progress, executor=executor, find_need=self._needs.find
        )
        running: dict[Future[list[Outcome]], Task] = {}
        window = 2 * (order.jobs or os.cpu_count() or 1) + 2
        queue = self._sort(self._take(tasks))
        waiting = [task for task in tasks if task.base is not None]
        with builder, ThreadPoolExecutor(window, thread_name_prefix="appliance") as pool:
            try:
                while queue or running:
                    while queue and len(running) < window:
                        task = queue.pop(0)
                        running[pool.submit(work, task, builder, order, self._workspace)] = task
                    for future in wait(running, _LOOK, return_when=FIRST_COMPLETED).done:
                        task = running.pop(future)
                        self._note(task, future, builder)
                        queue = self._sort([*queue, *self._release(task, waiting)])
            except KeyboardInterrupt:
                builder.stop()
                for future in wait(running).done:
                    self._note(running[future], future, builder)
                for task in (*queue, *waiting):
                    self._skip(task, ENDED)
                raise

    def _find_room(self) -> int:
        """Bytes of the disk that stages may use beside what they leave there."""
        free = shutil.disk_usage(self._workspace.store.path("work")).free
        return max(free - self._forecast - RESERVE, RESERVE)

    def _take(self, tasks: Sequence[Task]) -> Iterator[Task]:
        """The tasks that there is work for, without the sites that do not answer."""
        if self._order.publish:
            plans = [task.plan for task in tasks if task.plan is not None]
            clouds = {each.site.name: each.cloud for plan in plans for each in plan.targets}
            self._site_errors = check_sites([*clouds.values()], self._workspace)
        for task in tasks:
            yield from self._start(task)

    def _start(self, task: Task) -> Iterator[Task]:
        """Notes the outcomes that are known already. Yields the task if there is work left."""
        self._outcomes += map(self._mark_killed, task.outcomes)
        if task.plan is None:
            return
        left = []
        for target in task.plan.targets:
            error = self._site_errors.get(target.site.name)
            if error is None:
                left.append(target)
                continue
            failure = make_failure(task.name, target.site, error, task.plan.appliance.version)
            wanted = task.wanted[target.site.name]
            before = None if wanted.before is None else wanted.before.build
            self._outcomes.append(
                replace(failure, build=before, before=before, reasons=wanted.reasons)
            )
        if left:
            yield replace(task, plan=replace(task.plan, targets=tuple(left)))

    def _mark_killed(self, outcome: Outcome) -> Outcome:
        """Says of what the killed night had done that it had."""
        done = Done(outcome.appliance, outcome.site, outcome.build or "")
        if self._killed is None or done not in self._killed.done:
            return outcome
        by = f", which the night {self._killed.name} made before it was killed"
        return replace(outcome, because=f"{outcome.because}{by}")

    def _sort(self, tasks: Iterable[Task]) -> list[Task]:
        """The longest first."""
        timed = [(self._needs.add(each.plan, each.missing)[0], each) for each in tasks if each.plan]
        return [each for _, each in sorted(timed, key=lambda pair: pair[0], reverse=True)]

    def _note(self, task: Task, future: Future[list[Outcome]], builder: Builder) -> None:
        """Notes what came of a task, also on the disk, for the night after a `kill -9`."""
        assert task.plan is not None
        error = future.exception()
        if error is None:
            outcomes = future.result()
        else:
            outcomes = [make_defect(task, each.site, error) for each in task.plan.targets]
        self._outcomes += outcomes
        results = builder.results()
        for stage in task.plan.stages:
            if stage.key in results and not results[stage.key].reused:
                self._memory.note(task.name, stage, results[stage.key])
        sites = {target.site.name: target.site for target in task.plan.targets}
        for each in outcomes:
            if each.state in _GOOD:
                self._memory.note_site(task.name, sites[each.site])
                self._done.append(Done(task.name, each.site, each.build or ""))
        self._places.note(self._name, self._done)

    def _release(self, ended: Task, waiting: list[Task]) -> Iterator[Task]:
        """The tasks that waited for one that has ended, planned now."""
        outcomes = [each for each in self._outcomes if each.appliance == ended.name]
        for task in [each for each in waiting if each.base == ended.name]:
            waiting.remove(task)
            assert task.appliance is not None
            if any(each.state in _GOOD for each in outcomes):
                planned = self._survey(task.appliance)
                yield from self._start(planned)
                if planned.plan is None:
                    yield from self._release(task, waiting)
            else:
                self._skip(task, f"{ended.name} failed, and it is made of that")
                yield from self._release(task, waiting)

    def _skip(self, task: Task, because: str) -> None:
        """Notes that a task was not tried."""
        if task.appliance is not None:
            known = {site: wanted.before for site, wanted in task.wanted.items()}
            for each in self._make_skips(task.appliance, because):
                if task.plan is None or each.site in known:
                    before = known.get(each.site)
                    build = None if before is None else before.build
                    self._outcomes.append(replace(each, build=build, before=build))

    def _make_skips(self, appliance: Appliance, because: str) -> Iterator[Outcome]:
        for site in self._order.sites:
            yield Outcome(
                appliance=appliance.name,
                version=appliance.version,
                site=site.name,
                cloud=site.cloud,
                state=State.SKIPPED,
                because=because,
            )
