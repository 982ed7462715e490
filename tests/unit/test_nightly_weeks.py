"""Weeks of nights on one server: packages and definitions change, things fail, nights are killed,
the disk fills up and the clock jumps. Every night, the right things are built, kept and let go."""

from __future__ import annotations

import os
import random
import subprocess
import time
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from nights import DAY, RUNS, Server, states

from pipeline.model import MIB
from pipeline.nightly.night import Night

_PACKAGES = ("web", "mail", "data")
_LIMIT = 60 * MIB
_GOOD = {"built", "reused", "unchanged"}


@dataclass
class Weeks:
    """A server, and what a person who looks after it knows."""

    server: Server
    count: int
    """Appliances."""
    drawn: random.Random
    texts: dict[str, str] = field(default_factory=dict)
    """What the file of each appliance says; one that begins with a bad word fails its build."""
    versions: dict[str, int] = field(default_factory=dict)
    had: dict[str, str] = field(default_factory=dict)
    """What the sites have of each appliance, as `wanted` says it."""
    killed: bool = False

    def set_up(self) -> None:
        """Thirty appliances, or fewer, of one definition with small differences."""
        self.versions = dict.fromkeys(_PACKAGES, 1)
        self.server.set_up(**dict.fromkeys(_PACKAGES, "1"))
        for number in range(self.count):
            self.texts[f"app{number}"] = "first"
            self.write(f"app{number}")

    def packages(self, name: str) -> list[str]:
        number = int(name.removeprefix("app"))
        return [each for bit, each in enumerate(_PACKAGES) if number >> bit & 1]

    def write(self, name: str) -> None:
        text = f"packages: [{', '.join(self.packages(name))}]\n"
        self.server.define(name, text, own=f"{self.texts[name]} of {name}\n")

    def wanted(self, name: str) -> str:
        """What an appliance is made of now."""
        versions = [f"{each} {self.versions[each]}" for each in self.packages(name)]
        return f"{self.texts[name]}: {versions}"

    def fails(self, name: str) -> bool:
        return self.texts[name].startswith(("break", "fill"))

    def change(self) -> None:
        """What people and the archive do in a day."""
        for name in self.drawn.sample(sorted(self.texts), 2):
            word = self.drawn.choice(["edit", "edit", "edit", "break", "fill"])
            self.texts[name] = f"{word} {self.drawn.randrange(1000)}"
            self.write(name)
        if self.drawn.random() < 0.4:
            package = self.drawn.choice(_PACKAGES)
            self.versions[package] += 1
            self.server.release(**{package: str(self.versions[package])})
        if self.drawn.random() < 0.3:
            self.server.clock += self.drawn.choice([-40, -1, 40]) * DAY
        for name in self.texts:  # somebody mends within a day or two
            if self.fails(name) and self.drawn.random() < 0.5:
                self.texts[name] = f"mended {self.drawn.randrange(1000)}"
                self.write(name)

    def kill(self) -> None:
        """Starts a night, and kills it somewhere."""
        artifacts = self.server.workspace.store.folder / "artifacts"
        most = len([*artifacts.glob("*")]) + self.drawn.randrange(12)
        process = self.server.start()
        deadline = time.monotonic() + self.drawn.uniform(3, 15)
        while process.poll() is None and time.monotonic() < deadline:
            if len([*artifacts.glob("*")]) > most:
                break
            time.sleep(0.005)
        process.kill()
        process.communicate()
        self.killed = True

    def check(self, night: Night) -> None:
        """Holds a night against what it should have done."""
        assert night.could_not_run is None
        told = states(night)
        for name in self.texts:
            if self.fails(name):
                assert told[name] == "failed", name
            elif self.had.get(name) == self.wanted(name):
                assert told[name] == "unchanged", name
            elif self.killed:  # before or after it was made
                assert told[name] in _GOOD, name
            else:
                assert told[name] in ("built", "reused"), name
            if not self.fails(name):
                self.had[name] = self.wanted(name)
                self.check_content(name)
        self.killed = False
        self.check_kept(night)

    def check_content(self, name: str) -> None:
        """What the last build's image holds, read by another program."""
        folder = self.server.workspace.folder(name) / "latest"
        (image,) = folder.glob("*.gz")
        raw = self.server.folder / "unpacked.raw"
        with raw.open("wb") as file:
            subprocess.run(["gzip", "-dc", image], stdout=file, check=True)
        shown = {
            path: subprocess.run(
                ["debugfs", "-R", f"cat {path}", raw], capture_output=True, text=True, check=True
            ).stdout
            for path in ("/etc/own", "/etc/packages")
        }
        assert shown["/etc/own"] == f"{self.texts[name]} of {name}\n"
        versions = {each: str(self.versions[each]) for each in self.packages(name)} | {"sh": "1"}
        lines = "".join(f"{each} {version}\n" for each, version in sorted(versions.items()))
        assert shown["/etc/packages"] == lines

    def check_kept(self, night: Night) -> None:
        """Builds go as `keep` says, and never the one that sites have; the store has a limit."""
        assert night.store_bytes <= _LIMIT + MIB
        for name in self.texts:
            builds = [*self.server.workspace.folder(name).glob("*/manifest.json")]
            made = {path.parent.name for path in builds} - {"latest"}
            assert len(made) <= 6, (name, made)
            if name in self.had:
                assert (self.server.workspace.folder(name) / "latest").readlink().name in made
        moment = self.server.clock
        for path in self.server.workspace.build.glob("app*/*/stages.json"):
            if path.stat().st_mtime > time.time() - DAY:  # of this night
                os.utime(path, (moment, moment))


def run_nights(folder: Path, *, appliances: int, nights: int, seed: int) -> None:
    RUNS.clear()
    weeks = Weeks(Server(folder), appliances, random.Random(seed))
    weeks.set_up()
    for number in range(nights):
        if number:
            weeks.change()
        if number in (2, 5) or (number > 7 and weeks.drawn.random() < 0.2):
            weeks.kill()
        weeks.check(weeks.server.night(store_bytes=_LIMIT))
    quiet = [*RUNS]
    for name in weeks.texts:
        if weeks.fails(name):
            weeks.texts[name] = "mended at last"
            weeks.write(name)
    weeks.check(weeks.server.night(store_bytes=_LIMIT))
    RUNS.clear()
    weeks.check(weeks.server.night(store_bytes=_LIMIT))
    assert RUNS == [] and quiet


@pytest.mark.slow
def test_a_week_of_nights(tmp_path: Path) -> None:
    run_nights(tmp_path, appliances=6, nights=7, seed=1)


@pytest.mark.only_soak
@pytest.mark.parametrize("seed", [1, 2, 3])
def test_a_month_of_nights(tmp_path: Path, seed: int) -> None:
    run_nights(tmp_path, appliances=30, nights=31, seed=seed)
