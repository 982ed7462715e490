"""`phantom-image man`: the manual page, made from the parser."""

from __future__ import annotations

import argparse
import re
from argparse import ArgumentParser, Namespace
from collections.abc import Iterator

from pipeline import __version__
from pipeline.commands.output import print_lines

EXAMPLES = ("phantom-image man >phantom-image.1",)


def add_arguments(parser: ArgumentParser) -> None:
    """Adds the command's arguments: there are none."""


def run(options: Namespace) -> None:
    """Prints the page, in the macros of man(7)."""
    print_lines(_page(options.make_parser()))


def _page(parser: ArgumentParser) -> Iterator[str]:
    yield f'.TH PHANTOM\\-IMAGE 1 "" "phantom\\-image {__version__}" "User Commands"'
    yield ".SH NAME"
    yield "phantom\\-image \\- build appliances for Phantom"
    yield ".SH SYNOPSIS"
    yield ".B phantom\\-image"
    yield r"[\fIOPTION\fR]... \fICOMMAND\fR [\fIARGUMENT\fR]..."
    yield ".SH DESCRIPTION"
    yield _plain(parser.description or "")
    yield ".SH OPTIONS"
    yield from _arguments(parser)
    yield ".SH COMMANDS"
    (commands,) = (each for each in parser._actions if isinstance(each, argparse._SubParsersAction))
    for name, command in commands.choices.items():
        usage = " ".join(command.format_usage().split()).removeprefix("usage: ")
        yield f".SS {_plain(name)}"
        text = command.description or ""
        yield f"{_plain(text[:1].upper() + text[1:])}."
        yield ".PP"
        yield _plain(usage)
        yield from _arguments(command)
        if command.epilog:
            yield ".PP"
            yield ".nf"
            yield from map(_plain, command.epilog.splitlines())
            yield ".fi"
    yield ".SH FILES"
    for file, what in (
        ("images/*/appliance.yaml", "the definitions of appliances"),
        ("sites.yaml", "the sites"),
        ("build/", "manifests, images and the store"),
    ):
        yield ".TP"
        yield f".I {_plain(file)}"
        yield _plain(what)


def _arguments(parser: ArgumentParser) -> Iterator[str]:
    formatter = parser._get_formatter()
    for action in parser._actions:
        if action.help == argparse.SUPPRESS or isinstance(action, argparse._SubParsersAction):
            continue
        yield ".TP"
        yield f".B {_plain(formatter._format_action_invocation(action))}"
        yield _plain(formatter._expand_help(action) if action.help else "")


def _plain(text: str) -> str:
    """Text that roff prints as it is."""
    text = text.replace("\\", "\\e").replace("-", "\\-")
    return re.sub(r"(?m)^(?=[.'])", r"\\&", text)
