"""Whatever comes from outside, each parser soon gives an answer or an error for people, and takes
little memory."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import untrusted_parsers
from soak import SOAKING
from test_disk_readers import AWKWARD, PLAIN, TEXT_READERS
from untrusted_parsers import TEXTS

from pipeline.errors import PhantomError
from pipeline.model import KIB, MIB
from pipeline.sources.transport import Broken

MEMORY = 200_000_000  # bytes
COUNT = 200_000 if SOAKING else 5_000
ROOT = Path(__file__).parents[2]

# ---- changed samples


@pytest.mark.soak
def test_changed_samples_do_no_harm() -> None:
    """In a process of its own, whose memory is known."""
    told = run_parsers("changes", str(COUNT), "1")
    assert told["defects"] == {}
    assert told["memory"] < MEMORY
    name, seconds = told["slowest"]
    assert seconds < 20, name  # of processor time; most take a thousandth of one
    # The samples are sound, but those of two: a text is no disk, and the kernel has no initramfs.
    assert {*TEXTS, *untrusted_parsers.FILES} - {*told["taken"]} <= {"format", "kernel"}


def run_parsers(*words: str) -> dict[str, Any]:
    """What a process of its own tells."""
    path = ":".join(str(ROOT / folder) for folder in (".", "tests", "tests/unit"))
    ran = subprocess.run(
        [sys.executable, untrusted_parsers.__file__, *words],
        check=True,
        stdout=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": path},
    )
    told = json.loads(ran.stdout)
    assert isinstance(told, dict)
    return told


@pytest.mark.parametrize("parser", ["fstab", "foreign kernel", "modules"])
def test_the_largest_texts_take_little_memory(parser: str) -> None:
    assert run_parsers("largest", parser)["memory"] < MEMORY


# ---- time

PIECES = (
    *AWKWARD,
    *("a", "\x1b", "\x1b[", "\x1b]", "a=", "a=1\n b\n", "\n\n", "\\\n", "a\\\n", "- ", "0-"),
    *("### BEGIN INIT INFO\n", "# a:\n", "console=", "root=/dev/ ", "error: file ", "a: ", "size="),
    *("kernel --a ", "Acquire::http::", '""', "connect to ", "\n{", "HTTP/1.1 200\r\n\r\n"),
)


def measure(read: Callable[[str], object], text: str) -> float:
    """Seconds of processor time."""
    started = time.process_time()
    with suppress(PhantomError, Broken):
        read(text)
    return time.process_time() - started


def repeat(piece: str, size: int) -> str:
    return piece * (size // len(piece))


OTHERS = [name for name in TEXTS if name not in TEXT_READERS]


@pytest.fixture(scope="module")
def plain_seconds() -> float:
    """What the slowest parser takes for a megabyte of plain text."""
    return max(measure(TEXTS[name][0], repeat(PLAIN, MIB)) for name in OTHERS)


@pytest.mark.soak
@pytest.mark.parametrize("parser", OTHERS)
def test_a_megabyte_of_anything_is_parsed_soon(parser: str, plain_seconds: float) -> None:
    """A smaller text comes first; in `make test` only what was slow there comes as a megabyte."""
    read = TEXTS[parser][0]
    seconds = {piece: measure(read, repeat(piece, 64 * KIB)) for piece in PIECES}
    slow = sorted(PIECES, key=lambda piece: seconds[piece], reverse=True)
    assert seconds[slow[0]] < 20 * plain_seconds, repr(slow[0])
    for piece in slow if SOAKING else slow[:1]:
        assert measure(read, repeat(piece, MIB)) < 20 * plain_seconds, repr(piece)
