"""Times whole commands, as a user waits for them."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


@dataclass(frozen=True, kw_only=True)
class Figure:
    """A measured value and its upper or lower bound."""

    name: str
    value: float
    unit: str
    at_most: float | None = None
    at_least: float | None = None

    @property
    def reached(self) -> bool:
        """Whether the value is within its bound."""
        return (self.at_most is None or self.value <= self.at_most) and (
            self.at_least is None or self.value >= self.at_least
        )

    def __str__(self) -> str:
        bound = "at most" if self.at_most is not None else "at least"
        limit = self.at_most if self.at_most is not None else self.at_least
        verdict = "" if self.reached else "  NOT REACHED"
        wanted = "" if limit is None else f"({bound} {limit:g}{self.unit})"
        return f"{self.name:62} {self.value:8.2f}{self.unit:3} {wanted:20}{verdict}"


@dataclass
class Run:
    """One run of `phantom-image`: its lines with the second at which each came, and its memory."""

    seconds: float = 0.0
    lines: list[tuple[float, str]] = field(default_factory=list)
    peak_bytes: int = 0
    answer: dict[str, object] = field(default_factory=dict)

    def time_of(self, pattern: str) -> float:
        """When the first line that matches came."""
        return next(when for when, line in self.lines if re.search(pattern, line))


def phantom(folder: Path, *words: str) -> Run:
    """Runs `phantom-image --json ...` in a project folder. Raises CalledProcessError."""
    run, started = Run(), time.monotonic()
    argv = [sys.executable, "-m", "pipeline.cli", *words, "--json"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    environment.pop("PHANTOM_STORE", None)
    with subprocess.Popen(
        argv,
        cwd=folder,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        threads = [
            threading.Thread(target=_read_lines, args=(process, run, started)),
            threading.Thread(target=_watch_memory, args=(process, run)),
        ]
        for thread in threads:
            thread.start()
        assert process.stdout is not None
        printed = process.stdout.read()
        status = process.wait()
        run.seconds = time.monotonic() - started
        for thread in threads:
            thread.join()
    if status != 0:
        raise subprocess.CalledProcessError(status, argv, printed, _text(run))
    run.answer, _ = json.JSONDecoder().raw_decode(printed)  # of several appliances, the first
    return run


def seconds_of(argv: Sequence[str], **keywords: object) -> float:
    """How long a command takes. Raises CalledProcessError."""
    started = time.monotonic()
    subprocess.run(  # type: ignore[call-overload]
        list(argv), check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, **keywords
    )
    return time.monotonic() - started


def launches_of(run: Run) -> int:
    """How often a run started libguestfs's appliance."""
    return sum("starting libguestfs" in line for _, line in run.lines)


def make_project(folder: Path, **definitions: str) -> Path:
    """Makes a project folder with our images and further definitions, by name."""
    images = folder / "images"
    images.mkdir(parents=True)
    (images / "hello-phantom").symlink_to(ROOT / "images" / "hello-phantom")
    for name, text in definitions.items():
        (images / name).mkdir()
        (images / name / "appliance.yaml").write_text(text)
    return folder


def _read_lines(process: subprocess.Popen[str], run: Run, started: float) -> None:
    assert process.stderr is not None
    for line in process.stderr:
        run.lines.append((time.monotonic() - started, line.rstrip("\n")))


def _watch_memory(process: subprocess.Popen[str], run: Run) -> None:
    """Records the kernel's high-water mark of the process, without its children."""
    while process.poll() is None:
        try:
            status = Path(f"/proc/{process.pid}/status").read_text()
        except OSError:
            return
        found = re.search(r"VmHWM:\s+(\d+) kB", status)
        if found:
            run.peak_bytes = max(run.peak_bytes, int(found[1]) * 1024)
        time.sleep(0.05)


def _text(run: Run) -> str:
    return "\n".join(line for _, line in run.lines)
