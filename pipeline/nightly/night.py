"""What came of one night: the value that the run makes and that all reports are made of."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum


class State(StrEnum):
    """What became of one appliance at one site."""

    BUILT = "built"
    """Something of it was made, and the build is new."""
    REUSED = "reused"
    """The build is new at this site, and all of it was in the store."""
    UNCHANGED = "unchanged"
    """Nothing that is in the image changed since the build that the site has."""
    FAILED = "failed"
    SKIPPED = "skipped"
    """Not tried, because of something else that failed, or because the night had to end."""


class NightState(StrEnum):
    """What became of a night."""

    WELL = "well"
    FAILED = "failed"
    """Something failed or was skipped."""
    COULD_NOT_RUN = "could_not_run"


@dataclass(frozen=True, kw_only=True)
class StageTime:
    """One stage that was needed."""

    title: str
    reused: bool
    seconds: float


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """One appliance at one site."""

    appliance: str
    version: str = ""
    site: str
    cloud: str
    state: State
    build: str | None = None
    """The build that the site has after the night; None where it has none."""
    before: str | None = None
    """The build that the site had before."""
    reasons: tuple[str, ...] = ()
    """Why it was built anew: a package's old and new version, an edited hook, a moved base."""
    because: str | None = None
    """Why it was skipped, or since when it is unchanged: one line."""
    stage: str | None = None
    """The title of the stage that failed."""
    message: str | None = None
    """The error's line."""
    todo: str | None = None
    """What the error says to do."""
    error: str | None = None
    """The error's class, such as NoSpaceError."""
    exit_status: int = 0
    log: str | None = None
    """The path of the failed stage's log."""
    tries: int = 1
    seconds: float = 0.0
    """From the start of its first stage to its publication."""
    stages: tuple[StageTime, ...] = ()
    image_id: str | None = None
    image_bytes: int | None = None
    root_bytes: int | None = None
    boot_seconds: float | None = None
    bytes_built: int = 0
    """Of artifacts that were made."""
    bytes_sent: int = 0
    bytes_saved: int = 0
    """Of artifacts that were reused, and of data that the site had already."""
    changes: tuple[str, ...] = ()
    """What differs from the build before: packages' old and new versions, files, size; lines."""
    warnings: tuple[str, ...] = ()
    last_success: float | None = None
    """When this appliance was last neither failed nor skipped at the site; None where no report of
    an earlier night says so. The reports fill it in."""


@dataclass(frozen=True, kw_only=True)
class Kept:
    """What retention did, or would do."""

    appliance: str
    build: str
    action: str
    """"removed", "retired" or "kept"."""
    reason: str
    bytes: int = 0


@dataclass(frozen=True, kw_only=True)
class Night:
    """All of one night. Times are seconds since 1970, of the host's clock."""

    name: str
    """When it began, as a name of files: 20260131T023000Z."""
    started: float
    ended: float
    host_cores: int = 0
    jobs: int = 0
    outcomes: tuple[Outcome, ...] = ()
    kept: tuple[Kept, ...] = ()
    warnings: tuple[str, ...] = ()
    store_bytes: int = 0
    store_limit: int | None = None
    free_bytes: int = 0
    forecast_bytes: int = 0
    """What the night was expected to need of the store's file system."""
    could_not_run: str | None = None
    """Why nothing ran at all: one line."""
    interrupted: int = 0
    """The exit status of the interrupt that ended it early; 0: none did."""
    environment: dict[str, str] = field(default_factory=dict)
    """What the reader of a report wants to know of the host: host name, version of the program."""

    @property
    def state(self) -> NightState:
        if self.could_not_run is not None:
            return NightState.COULD_NOT_RUN
        bad = any(each.state in (State.FAILED, State.SKIPPED) for each in self.outcomes)
        return NightState.FAILED if bad else NightState.WELL

    @property
    def seconds(self) -> float:
        """How long it took; 0 where the host's clock went backwards."""
        return max(self.ended - self.started, 0.0)

    @property
    def failed(self) -> tuple[Outcome, ...]:
        return tuple(each for each in self.outcomes if each.state is State.FAILED)
