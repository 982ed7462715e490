"""Options and settings that take numbers, with what is no number that anybody means."""

from __future__ import annotations

from argparse import ArgumentTypeError

import pytest
from cli_runs import Project

from pipeline.commands.options import hours
from pipeline.model import parse_size

WRONG = ("nan", "inf", "-inf", "1e400", "-1", "", "x", "²", "٣", "1_0", " 1", "1\n", "9" * 5000)


@pytest.mark.parametrize("word", WRONG, ids=range(len(WRONG)))
def test_words_that_are_no_numbers(word: str) -> None:
    with pytest.raises(ArgumentTypeError):
        hours(word)
    with pytest.raises(ValueError, match="is no size"):
        parse_size(f"{word}GiB")


def test_hours(project: Project) -> None:
    assert [hours(word) for word in ("0", "0.5", "24", "999999")] == [0.0, 0.5, 24.0, 999999.0]
    done = project.run("clean", "--site", "nimbus-sandbox", "--older-than", "inf", "--remove")
    assert done.status == 2
    assert done.err.endswith(
        "error: argument --older-than: 'inf' is no number of hours from 0 to 999999\n"
    )
    project.succeed("clean", "--site", "nimbus-sandbox", "--older-than", "999999", "--remove")


def test_sizes(project: Project) -> None:
    done = project.run("gc", f"--size={'9' * 5000}B")
    assert (done.status, done.error.splitlines()[0]) == (
        24,
        f"error: {'9' * 40!r} is no size; write a number and B, KiB, MiB, GiB or TiB",
    )


@pytest.mark.parametrize("word", ["²", "9" * 5000], ids=["superscript", "long"])
def test_source_date_epoch(project: Project, word: str) -> None:
    done = project.run("plan", SOURCE_DATE_EPOCH=word)
    assert (done.status, done.error) == (
        24,
        f"error: SOURCE_DATE_EPOCH is {word[:40]!r}\n"
        "  do: set it to seconds since 1970, or unset it\n",
    )
