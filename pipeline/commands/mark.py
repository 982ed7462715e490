"""`phantom-image mark`: says that a build is deprecated or withdrawn, or takes that back."""

from __future__ import annotations

from argparse import ArgumentParser, ArgumentTypeError, Namespace
from dataclasses import asdict

from pipeline.build.lifecycle import REPLACEMENT, Mark, State, write_mark
from pipeline.commands import options as shared
from pipeline.commands.output import print_json, print_line
from pipeline.errors import UsageError

EXAMPLES = (
    "phantom-image mark deprecated web --replacement web2",
    "phantom-image mark withdrawn web --of 0123456789ab --reason 'CVE-2024-6387 in sshd'",
    "phantom-image mark published web --of 0123456789ab",
)
_STATES = (State.PUBLISHED, State.DEPRECATED, State.WITHDRAWN)
_MOST = 1000  # characters of a reason


def add_arguments(parser: ArgumentParser) -> None:
    """Adds the command's arguments."""
    parser.add_argument(
        "state",
        choices=[state.value for state in _STATES],
        metavar="STATE",
        help="published, deprecated (use something else) or withdrawn (do not use it)",
    )
    parser.add_argument("appliance", metavar="APPLIANCE", help="the appliance's name")
    shared.add(parser, "of")
    parser.add_argument(
        "--replacement",
        type=_replacement,
        metavar="NAME",
        help="what to use in its place: APPLIANCE or APPLIANCE/BUILD",
    )
    parser.add_argument("--reason", type=_reason, default="", metavar="TEXT", help="why: one line")
    shared.add(parser, "json")


def _replacement(text: str) -> str:
    if not REPLACEMENT.fullmatch(text):
        raise ArgumentTypeError(f"{text[:40]!r} is neither APPLIANCE nor APPLIANCE/BUILD")
    return text


def _reason(text: str) -> str:
    if len(text) > _MOST or not text.isprintable():
        raise ArgumentTypeError(f"it must be one line of at most {_MOST:,} characters")
    return text


def run(options: Namespace) -> None:
    """Marks a build. Sites are not told: `retire` removes images there."""
    workspace = shared.open_workspace(options)
    about = shared.read_manifest(options, options.appliance, workspace)["appliance"]
    name, build = about["name"], about["build"]
    state = State(options.state)
    if state is State.PUBLISHED and (options.replacement or options.reason):
        raise UsageError(
            "a published build has neither a replacement nor a reason",
            todo="leave out --replacement and --reason, or mark it as deprecated or withdrawn",
        )
    mark = Mark(state=state, replacement=options.replacement, reason=options.reason)
    with workspace.manifests(name), workspace.errors():
        write_mark(workspace.folder(name) / build, mark)
    if options.json:
        print_json({"appliance": name, "build": build, **asdict(mark)})
    else:
        print_line(f"{name} {about['version']}, build {build}: {state}")
