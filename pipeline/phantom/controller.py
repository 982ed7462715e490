"""The controller: keeps each domain at its size, by the policy error_overflow_n_preserving.

Sites are filled in the domain's order, each up to its maximum. A machine that ends is replaced. A
site whose machines keep failing is left out for a while, and the next one takes its place.
"""

from __future__ import annotations

import sqlite3
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Self

from pipeline.errors import PhantomError
from pipeline.phantom.machines import Machines, Order
from pipeline.phantom.state import ENDING, STARTING, Domain, MachineRow, State


@dataclass(frozen=True, kw_only=True)
class Policy:
    """The controller's times, in seconds, and how many failures it bears."""

    interval: float = 0.5
    """From one look at the machines to the next."""
    short_life: float = 60.0
    """A machine that ends earlier has failed."""
    failures: int = 3
    """In a row, after which a site is left out."""
    pause: float = 300.0
    """For how long."""


USUAL = Policy()


class Controller:
    """Works on a thread of its own for as long as the `with` block lasts; all machines end with it.

    `tell` gets a line for people where a machine cannot be started or ended.
    """

    def __init__(
        self,
        state: State,
        machines: Machines,
        policy: Policy = USUAL,
        tell: Callable[[str], None] = lambda _: None,
    ) -> None:
        self._state = state
        self._machines = machines
        self._policy = policy
        self._tell = tell
        self._stopping = False
        self._changed = threading.Event()
        self._thread = threading.Thread(target=self._work, name="Controller", daemon=True)

    def wake(self) -> None:
        """Has the controller look at once."""
        self._changed.set()

    def __enter__(self) -> Self:
        self._machines.adopt([row.id for row in self._state.list_machines()])
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stopping = True
        self.wake()
        self._thread.join()
        for row in self._state.list_machines():
            self._end(row)

    def _work(self) -> None:
        while not self._stopping:
            self._changed.clear()
            self._look()
            self._changed.wait(self._policy.interval)

    def _look(self) -> None:
        by_domain: dict[int, list[MachineRow]] = {}
        for row in self._state.list_machines():
            by_domain.setdefault(row.domain, []).append(row)
        for domain in self._state.list_domains(deleted=True):
            if self._stopping:
                return
            try:
                self._tend(domain, by_domain.get(domain.id, []))
            except (PhantomError, OSError, sqlite3.Error) as error:
                self._tell(f"domain {domain.name}: {error}")

    def _tend(self, domain: Domain, rows: Sequence[MachineRow]) -> None:
        """Brings one domain nearer to what it is to be."""
        kept = [row for row in rows if self._keep(domain, row)]
        if domain.deleted:
            self._state.forget_domain(domain.id)
            return
        for row in choose_surplus(domain, kept):
            self._end(row)
            kept.remove(row)
        while len(kept) < domain.desired and not self._stopping:
            started = self._start(domain, kept)
            if started is None:
                return
            kept.append(started)

    def _keep(self, domain: Domain, row: MachineRow) -> bool:
        """Whether a machine runs and is to go on; it is ended otherwise."""
        alive = self._machines.alive(row.id)
        if alive and row.state != ENDING and not domain.deleted:
            if row.state == STARTING:  # of a process that was killed before it noted the start
                self._state.set_running(row.id)
            self._note_success(row)
            return True
        if row.state != ENDING and not domain.deleted:
            self._note_end(row)
        self._end(row)
        return False

    def _end(self, row: MachineRow) -> None:
        try:
            self._machines.end(row.id)
        except OSError as error:
            self._tell(f"machine {row.id} cannot be ended: {error}")
            return
        self._state.remove_machine(row.id)

    # ---- where the next machine starts

    def _start(self, domain: Domain, kept: Sequence[MachineRow]) -> MachineRow | None:
        """Starts a machine at the first site that has room and does not fail; None where there is
        none, or where it could not be started."""
        launch = self._state.find_type(domain.owner, domain.type)
        known = {site.site for site in launch.sites} if launch else set()
        failing, now = self._state.find_failures(domain.id), time.time()
        out = {site for site, (_, until) in failing.items() if until > now}
        site = choose_site(domain, [row.site for row in kept], known - out)
        at = launch.find_site(site) if launch and site else None
        if launch is None or at is None:
            return None
        row = self._state.add_machine(domain.id, at.site, at.image_id)
        if row is None:
            return None
        order = Order(
            machine=row.id,
            domain=domain.id,
            site=at.site,
            image_id=at.image_id,
            instance_type=at.instance_type,
            user_data=launch.user_data_at(at.site),
        )
        try:
            self._machines.start(order)
        except (PhantomError, OSError) as error:
            self._tell(f"domain {domain.name}: no machine at {at.site}: {error}")
            self._note_failure(row)
            self._end(row)
            return None
        self._state.set_running(row.id)
        return row

    def _note_end(self, row: MachineRow) -> None:
        self._tell(f"machine {row.id} at {row.site} has ended")
        if time.time() - row.created < self._policy.short_life:
            self._note_failure(row)

    def _note_failure(self, row: MachineRow) -> None:
        failures = self._state.find_failures(row.domain).get(row.site, (0, 0.0))[0] + 1
        out = failures >= self._policy.failures
        until = time.time() + self._policy.pause if out else 0.0
        self._state.set_failures(row.domain, row.site, failures, until)
        if out:
            self._tell(f"site {row.site} is left out for {self._policy.pause:g} s")

    def _note_success(self, row: MachineRow) -> None:
        """A machine that has lived long enough shows that its site is well."""
        if time.time() - row.created < self._policy.short_life:
            return
        failures, until = self._state.find_failures(row.domain).get(row.site, (0, 0.0))
        if failures and until <= time.time():
            self._state.set_failures(row.domain, row.site, 0, 0.0)


def choose_site(domain: Domain, used: Sequence[str], usable: set[str]) -> str | None:
    """The first site of a domain's order that may be used and has room beside the machines at the
    sites `used`."""
    for site, most in domain.clouds:
        if site in usable and (most < 0 or used.count(site) < most):
            return site
    return None


def choose_surplus(domain: Domain, rows: Sequence[MachineRow]) -> list[MachineRow]:
    """The machines that a domain has too many: of its last site first, and there the youngest."""
    order = {site: number for number, (site, _) in enumerate(domain.clouds)}
    ranked = sorted(rows, key=lambda row: (order.get(row.site, len(order)), row.created))
    return ranked[domain.desired :]
