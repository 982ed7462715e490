"""What a night's command prints of it: a table on a terminal, plain lines elsewhere."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path

from pipeline.commands.output import cell, print_line, print_lines, print_table
from pipeline.nightly.night import Night, State
from pipeline.nightly.summary import (
    alike,
    describe,
    describe_help,
    headline,
    to_last_lines,
    to_lines,
)
from pipeline.pages import format_duration

_STYLES: Mapping[State, str] = {
    State.FAILED: "bold red",
    State.SKIPPED: "yellow",
    State.BUILT: "green",
    State.REUSED: "cyan",
    State.UNCHANGED: "",
}


def print_night(night: Night, page: Path) -> None:
    """Prints what came of a night, and where its page is. Of what is unchanged, only the number."""
    if not sys.stdout.isatty():
        print_lines(to_lines(night, page))
        return
    told = [each for each in alike(night.outcomes) if each.first.state is not State.UNCHANGED]
    rows = [
        (
            cell([each.first.state], _STYLES[each.first.state]),
            each.first.appliance,
            ", ".join(each.sites),
            format_duration(each.first.seconds) if each.first.seconds else "",
            cell([describe(each.first), *describe_help(each.first)]),
        )
        for each in told
    ]
    print_line(f"night {night.name}: {headline(night)}")
    if rows:
        print_line()
        print_table(rows, ("what", "appliance", "sites", "time", "why"))
        print_line()
    print_lines(to_last_lines(night, page))
