"""Text from outside on its way to a terminal."""

from __future__ import annotations

import io
import json
import subprocess
import sys
import unicodedata

import pytest
from hypothesis import given, strategies

from pipeline.errors import StageFailedError
from pipeline.progress import shown
from pipeline.terminal import escape

PLANTED = "\x1b]0;owned\x07\x1b[2J\x9b31m\u202egnp.exe\u2069\r\n\x08\x7f\u2028\U000e0041\ufeff"


def is_safe(character: str) -> bool:
    return unicodedata.category(character) not in ("Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp")


@pytest.mark.parametrize(
    ("text", "escaped"),
    [
        ("plain text", "plain text"),
        ("a\ttab and Ümläute, 日本語 and 5\u00a0000", "a\ttab and Ümläute, 日本語 and 5\u00a0000"),
        ("\x1b[31mred", "\\x1b[31mred"),
        ("\x9b31mred", "\\u009b31mred"),
        ("one\r\ntwo", "one\\r\\ntwo"),
        ("\u202egnp.exe", "\\u202egnp.exe"),
        ("caf\udce9", "caf\\udce9"),
        ("\x7f\U000e0041", "\\u007f\\udb40\\udc41"),
        (r"C:\x1b stays", r"C:\x1b stays"),
    ],
)
def test_escapes(text: str, escaped: str) -> None:
    assert escape(text) == escaped


@given(strategies.text())
def test_any_text_becomes_one_safe_line(text: str) -> None:
    shown = escape(text)
    assert all(character == "\t" or is_safe(character) for character in shown)
    assert escape(shown) == shown


@given(strategies.text())
def test_json_keeps_its_meaning(text: str) -> None:
    for ascii_only in (True, False):
        told = escape(json.dumps([text], indent=2, ensure_ascii=ascii_only), keep="\n")
        assert json.loads(told) == [text]


def test_an_error_is_safe_to_print() -> None:
    error = StageFailedError(
        f"what {PLANTED}", where=f"where {PLANTED}", todo=f"do {PLANTED}", detail=PLANTED
    )
    lines = str(error).split("\n")
    assert lines[0] == f"where {escape(PLANTED)}: what {escape(PLANTED)}"
    assert lines[-1] == f"  do: do {escape(PLANTED)}"
    assert all(line.startswith("  | ") for line in lines[1:-1])
    assert all(is_safe(character) for line in lines for character in line)


def test_progress_is_safe() -> None:
    stream = io.StringIO()
    with shown(stream, verbose=True) as start:
        progress = start(f"stage {PLANTED}")
        progress.step(PLANTED)
        progress.output("half of a bar\r")
        progress.output(PLANTED)
        progress.finish(PLANTED)
    title = f"stage {escape(PLANTED)}"
    assert stream.getvalue().split("\n") == [
        f"{title}: {escape(PLANTED)}",
        f"{title} |: half of a bar",
        f"{title} |: {escape(PLANTED)}",
        f"{title}: {escape(PLANTED)}",
        "",
    ]


def test_what_forgets_to_escape_is_guarded() -> None:
    """Also in an encoding that lacks the characters, and for what Python itself prints."""
    program = (
        "import sys; from pipeline import terminal; terminal.guard(); terminal.guard()\n"
        "print('\\x1b[31m', 'é\\u202e', sep='\\n')\n"
        "sys.stderr.writelines(['\\x9b', '\\udcff\\n'])\n"
        "raise ValueError('\\x1b[2J')"
    )
    ended = subprocess.run(
        [sys.executable, "-c", program],
        env={"PYTHONIOENCODING": "ascii", "PYTHONPATH": ":".join(filter(None, sys.path))},
        capture_output=True,
        check=False,
    )
    assert ended.stdout == b"\\x1b[31m\n\\xe9\\u202e\n"
    told = ended.stderr.decode("ascii")
    assert told.startswith("\\u009b\\udcff\n")
    assert told.endswith("ValueError: \\x1b[2J\n")
