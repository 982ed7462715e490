"""What a local Phantom knows: launch configurations, domains and machines, in one SQLite file.

Each method is one transaction, so a `kill -9` leaves all of it or nothing. The methods may be
called from any thread.
"""

from __future__ import annotations

import json
import secrets
import sqlite3
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pipeline import records

FILE = "phantom.sqlite"
"""The name of the file in a Phantom's folder."""
UNLIMITED = -1
STARTING, RUNNING, ENDING = "starting", "running", "ending"

_TABLES = """
CREATE TABLE IF NOT EXISTS type (
    owner TEXT, name TEXT, method TEXT, user_data TEXT, appliance TEXT, created REAL,
    PRIMARY KEY (owner, name));
CREATE TABLE IF NOT EXISTS type_site (
    owner TEXT, type TEXT, site TEXT, image_id TEXT, instance_type TEXT, max_vms INTEGER,
    common INTEGER, rank INTEGER, user_data TEXT, created REAL,
    PRIMARY KEY (owner, type, site));
CREATE TABLE IF NOT EXISTS domain (
    id INTEGER PRIMARY KEY AUTOINCREMENT, owner TEXT, name TEXT, type TEXT, desired INTEGER,
    clouds TEXT, more TEXT, created REAL, deleted INTEGER DEFAULT 0);
CREATE UNIQUE INDEX IF NOT EXISTS domain_name ON domain (owner, name) WHERE NOT deleted;
CREATE TABLE IF NOT EXISTS machine (
    id TEXT PRIMARY KEY, domain INTEGER, site TEXT, image_id TEXT, state TEXT, created REAL);
CREATE INDEX IF NOT EXISTS machine_domain ON machine (domain);
CREATE TABLE IF NOT EXISTS failing (
    domain INTEGER, site TEXT, failures INTEGER, until REAL, PRIMARY KEY (domain, site));
"""


class TakenError(Exception):
    """The name exists already."""


class UsedError(Exception):
    """A domain uses the launch configuration."""


@dataclass(frozen=True, kw_only=True)
class TypeSite:
    """What a launch configuration says of one site."""

    site: str
    image_id: str
    instance_type: str
    max_vms: int = UNLIMITED
    common: bool = False
    rank: int = 1
    user_data: str | None = None
    """The site's own, which only the web API can set."""
    created: float = 0.0


@dataclass(frozen=True, kw_only=True)
class LaunchType:
    """A launch configuration with all its sites, which are in the order of their ranks."""

    owner: str
    name: str
    method: str = "user_data"
    user_data: str | None = None
    appliance: str | None = None
    sites: tuple[TypeSite, ...] = ()
    created: float = 0.0

    def find_site(self, site: str) -> TypeSite | None:
        """What it says of a site; None where it has none of that name."""
        return next((each for each in self.sites if each.site == site), None)

    def user_data_at(self, site: str) -> str | None:
        """The user-data of machines at a site."""
        own = self.find_site(site)
        return self.user_data if own is None or own.user_data is None else own.user_data


@dataclass(frozen=True, kw_only=True)
class Domain:
    """A group of machines."""

    id: int = 0
    owner: str
    name: str
    type: str
    desired: int
    """How many machines it is to have."""
    clouds: tuple[tuple[str, int], ...]
    """The sites in the order in which they are filled, each with its maximum (-1: no limit)."""
    more: Mapping[str, Any] = field(default_factory=dict)
    """What its interface wants to show again."""
    created: float = 0.0
    deleted: bool = False


@dataclass(frozen=True, kw_only=True)
class MachineRow:
    """A machine of a domain."""

    id: str
    domain: int
    site: str
    image_id: str
    state: str
    created: float


class State:
    """The state in a folder. Raises sqlite3.Error, OSError."""

    def __init__(self, folder: Path) -> None:
        self._lock = threading.RLock()
        self._db = sqlite3.connect(
            folder / FILE, isolation_level=None, timeout=30, check_same_thread=False
        )
        self._db.row_factory = sqlite3.Row
        self._db.execute("PRAGMA journal_mode=WAL")
        self._db.execute("PRAGMA synchronous=NORMAL")
        self._db.executescript(_TABLES)

    def close(self) -> None:
        """Closes the file."""
        with self._lock:
            self._db.close()

    @contextmanager
    def _change(self) -> Iterator[sqlite3.Connection]:
        with self._lock, self._db:
            self._db.execute("BEGIN IMMEDIATE")
            yield self._db

    def _rows(self, query: str, *values: object) -> list[sqlite3.Row]:
        with self._lock:
            return self._db.execute(query, values).fetchall()

    # ---- launch configurations

    def add_type_site(self, made: LaunchType) -> None:
        """Adds the one site of `made` to the launch configuration of its name, whose user-data it
        changes for all sites. Raises TakenError where that has the site already."""
        (site,) = made.sites
        with self._change():
            known = self.find_type(made.owner, made.name)
            if known is not None and known.find_site(site.site) is not None:
                raise TakenError
            rank = 1 + max((each.rank for each in known.sites), default=0) if known else 1
            self._put_type(made)
            self._put_site(made, site, rank)

    def add_type(self, made: LaunchType) -> None:
        """Adds a launch configuration. Raises TakenError."""
        with self._change():
            if self.find_type(made.owner, made.name) is not None:
                raise TakenError
            self._put_type(made)
            for site in made.sites:
                self._put_site(made, site, site.rank)

    def replace_type(self, made: LaunchType) -> None:
        """Puts a launch configuration in the place of the one of its name."""
        with self._change():
            self._remove_type(made.owner, made.name)
            self._put_type(made)
            for site in made.sites:
                self._put_site(made, site, site.rank)

    def _put_type(self, made: LaunchType) -> None:
        self._db.execute(
            "INSERT INTO type VALUES (?,?,?,?,?,?) ON CONFLICT DO UPDATE SET"
            " method=excluded.method, user_data=excluded.user_data",
            (made.owner, made.name, made.method, made.user_data, made.appliance, time.time()),
        )

    def _put_site(self, made: LaunchType, site: TypeSite, rank: int) -> None:
        values = (site.site, site.image_id, site.instance_type, site.max_vms, site.common, rank)
        self._db.execute(
            "INSERT INTO type_site VALUES (?,?,?,?,?,?,?,?,?,?)",
            (made.owner, made.name, *values, site.user_data, time.time()),
        )

    def find_type(self, owner: str, name: str) -> LaunchType | None:
        """The launch configuration of a name, without `@site`."""
        return next((each for each in self.list_types(owner) if each.name == name), None)

    def list_types(self, owner: str) -> list[LaunchType]:
        """The launch configurations of a user, by name."""
        with self._lock:
            types = self._rows("SELECT * FROM type WHERE owner=? ORDER BY name", owner)
            sites = self._rows("SELECT * FROM type_site WHERE owner=? ORDER BY rank, site", owner)
        by_type: dict[str, list[TypeSite]] = {}
        for row in sites:
            kept = {key: row[key] for key in row.keys() if key not in ("owner", "type")}  # noqa: SIM118 (a Row iterates over values)
            kept["common"] = bool(kept["common"])
            by_type.setdefault(row["type"], []).append(TypeSite(**kept))
        return [LaunchType(**row, sites=tuple(by_type.get(row["name"], ()))) for row in types]

    def remove_type(self, owner: str, name: str, site: str | None = None) -> bool:
        """Removes a launch configuration, or one site of it, and the rest with its last site.
        Returns whether there was any. Raises UsedError."""
        with self._change():
            known = self.find_type(owner, name)
            if known is None or (site is not None and known.find_site(site) is None):
                return False
            uses = "SELECT 1 FROM domain WHERE owner=? AND type=? AND NOT deleted"
            if self._rows(uses, owner, name):
                raise UsedError
            if site is None or len(known.sites) == 1:
                self._remove_type(owner, name)
            else:
                self._db.execute(
                    "DELETE FROM type_site WHERE owner=? AND type=? AND site=?", (owner, name, site)
                )
        return True

    def _remove_type(self, owner: str, name: str) -> None:
        self._db.execute("DELETE FROM type WHERE owner=? AND name=?", (owner, name))
        self._db.execute("DELETE FROM type_site WHERE owner=? AND type=?", (owner, name))

    # ---- domains

    def add_domain(self, made: Domain) -> Domain:
        """Adds a domain, and returns it with its id. Raises TakenError."""
        clouds, more = json.dumps(made.clouds), json.dumps(made.more)
        values = (made.owner, made.name, made.type, made.desired, clouds, more, time.time())
        try:
            with self._change() as db:
                added = db.execute(
                    "INSERT INTO domain (owner,name,type,desired,clouds,more,created)"
                    " VALUES (?,?,?,?,?,?,?)",
                    values,
                )
        except sqlite3.IntegrityError as error:
            raise TakenError from error
        return self._to_domain(self._rows("SELECT * FROM domain WHERE id=?", added.lastrowid)[0])

    def list_domains(self, owner: str | None = None, *, deleted: bool = False) -> list[Domain]:
        """The domains of a user, or of all; with `deleted`, those too whose machines end."""
        rows = self._rows("SELECT * FROM domain ORDER BY id")
        domains = map(self._to_domain, rows)
        return [
            domain
            for domain in domains
            if owner in (None, domain.owner) and (deleted or not domain.deleted)
        ]

    def find_domain(self, owner: str, name: str) -> Domain | None:
        """The domain of a name."""
        query = "SELECT * FROM domain WHERE owner=? AND name=? AND NOT deleted"
        rows = self._rows(query, owner, name)
        return self._to_domain(rows[0]) if rows else None

    def _to_domain(self, row: sqlite3.Row) -> Domain:
        said = dict(row)
        clouds = records.parse(said["clouds"].encode(), [[(str, int)]])
        said["clouds"] = tuple((str(site), int(most)) for site, most in clouds)
        said["more"] = records.parse(said["more"].encode(), dict)
        said["deleted"] = bool(said["deleted"])
        return Domain(**said)

    def resize(self, domain: int, desired: int) -> None:
        """Sets how many machines a domain is to have."""
        with self._change() as db:
            db.execute("UPDATE domain SET desired=? WHERE id=?", (desired, domain))

    def delete_domain(self, domain: int) -> None:
        """Hides a domain; it goes when its machines have."""
        with self._change() as db:
            db.execute("UPDATE domain SET deleted=1 WHERE id=?", (domain,))

    def forget_domain(self, domain: int) -> None:
        """Removes a deleted domain."""
        with self._change() as db:
            db.execute("DELETE FROM domain WHERE id=?", (domain,))
            db.execute("DELETE FROM failing WHERE domain=?", (domain,))

    # ---- machines

    def add_machine(self, domain: int, site: str, image_id: str) -> MachineRow | None:
        """Notes that a machine is about to start; None where the domain is deleted."""
        made = MachineRow(
            id=f"i-{secrets.token_hex(4)}",
            domain=domain,
            site=site,
            image_id=image_id,
            state=STARTING,
            created=time.time(),
        )
        values = (made.id, domain, site, image_id, made.state, made.created)
        with self._change() as db:
            if not self._rows("SELECT 1 FROM domain WHERE id=? AND NOT deleted", domain):
                return None
            db.execute("INSERT INTO machine VALUES (?,?,?,?,?,?)", values)
        return made

    def list_machines(self, domain: int | None = None) -> list[MachineRow]:
        """The machines of a domain, or of all, the oldest first."""
        rows = self._rows(
            "SELECT * FROM machine WHERE ? IS NULL OR domain=? ORDER BY created, rowid",
            domain,
            domain,
        )
        return [MachineRow(**row) for row in rows]

    def set_running(self, machine: str) -> None:
        """Notes that a machine has started, unless it is to end meanwhile."""
        with self._change() as db:
            db.execute(
                "UPDATE machine SET state=? WHERE id=? AND state=?", (RUNNING, machine, STARTING)
            )

    def release(self, owner: str, machine: str, *, shrink: bool) -> MachineRow | None:
        """Marks a machine to end; with `shrink`, its domain gets one machine fewer. None where the
        user has no such machine."""
        with self._change() as db:
            rows = self._rows(
                "SELECT machine.* FROM machine JOIN domain ON machine.domain = domain.id"
                " WHERE machine.id=? AND owner=? AND state!=? AND NOT deleted",
                machine,
                owner,
                ENDING,
            )
            if not rows:
                return None
            found = MachineRow(**rows[0])
            db.execute("UPDATE machine SET state=? WHERE id=?", (ENDING, machine))
            if shrink:
                db.execute(
                    "UPDATE domain SET desired=max(desired-1, 0) WHERE id=?", (found.domain,)
                )
        return found

    def remove_machine(self, machine: str) -> None:
        """Forgets a machine that has ended."""
        with self._change() as db:
            db.execute("DELETE FROM machine WHERE id=?", (machine,))

    # ---- sites that fail

    def find_failures(self, domain: int) -> dict[str, tuple[int, float]]:
        """Of each site that fails for a domain: how often in a row, and until when it is left out
        (seconds since 1970)."""
        rows = self._rows("SELECT * FROM failing WHERE domain=?", domain)
        return {row["site"]: (row["failures"], row["until"]) for row in rows}

    def set_failures(self, domain: int, site: str, failures: int, until: float) -> None:
        """Notes how a site does for a domain; 0 failures forget it."""
        with self._change() as db:
            db.execute("DELETE FROM failing WHERE domain=? AND site=?", (domain, site))
            if failures:
                db.execute("INSERT INTO failing VALUES (?,?,?,?)", (domain, site, failures, until))
