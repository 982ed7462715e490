"""`phantom-image shell`: a shell, or one command, in the root file system of an appliance's last
build."""

from __future__ import annotations

import sys
from argparse import ArgumentParser, Namespace

from pipeline.build.partial import stages_called
from pipeline.build.plan import make_plan
from pipeline.build.remains import Remains, copy_root, find_remains
from pipeline.build.run import read_stages
from pipeline.commands import options as shared
from pipeline.commands.output import print_line
from pipeline.definitions.yaml import shown
from pipeline.errors import UsageError
from pipeline.machine import host
from pipeline.machine.tree_shell import run_in_copy
from pipeline.model import Appliance, ContentKey
from pipeline.store import Artifact
from pipeline.tools.namespace import find_way
from pipeline.workspace import Workspace

_ROOT = "root"
_FILE = "root.ext4"

EXAMPLES = (
    "phantom-image shell web",
    "phantom-image shell web -- dpkg -l",
    "phantom-image shell web --as-defined",
    "phantom-image shell web --failed",
)


def add_arguments(parser: ArgumentParser) -> None:
    """Adds the command's arguments."""
    shared.add(parser, "appliance", "sites")
    parser.add_argument(
        "--as-defined",
        action="store_true",
        help="what is built of the definition as it is now, as when its boot check failed",
    )
    parser.add_argument(
        "--failed",
        action="store_true",
        help="what the last build left that failed with `--keep-failed`",
    )
    text = "run this instead of a shell, behind `--`, and end with its status"
    parser.add_argument("command", nargs="*", metavar="COMMAND", help=text)


def run(options: Namespace) -> int:
    """Runs the shell or the command; returns its status. Nothing of the build is changed.

    Raises UsageError where nothing is built, and for a shell without a terminal.
    """
    terminal = sys.stdin.isatty() and sys.stdout.isatty()
    appliance = shared.load_appliance(options)
    if not terminal and not options.command:
        raise UsageError(
            "a shell needs a terminal as standard input and output",
            todo="run it in a terminal, as by `ssh -t`; without one, name a command: "
            f"`phantom-image shell {appliance.name} -- COMMAND`",
        )
    workspace = shared.open_workspace(options)
    store = workspace.store
    with store.used(), store.errors():
        remains = _find_failed(appliance, options) if options.failed else None
        if remains is None:
            file = _find_root(appliance, options, workspace).file(_FILE)
        else:
            file = remains.file
        host.require_isolation(store.folder)
        store.check_space(file.stat().st_blocks * 512)
        if not options.command:
            print_line(
                f"unpacking a copy of {_describe(remains, appliance)}; what is changed there is "
                "thrown away at the end of the shell",
                file=sys.stderr,
            )
        with store.temporary("shell") as work:
            if remains is not None:
                file = work / _FILE
                copy_root(remains, file)
            if not find_way(work).mapped:
                told = "warning: the shell is root on this host, in a namespace of its own"
                print_line(told, file=sys.stderr)
            status = run_in_copy(file, options.command, work, terminal=terminal)
    if not options.command:
        print_line("the shell has ended, and the copy is thrown away", file=sys.stderr)
    return status


def _describe(remains: Remains | None, appliance: Appliance) -> str:
    if remains is None:
        return f"the root file system of {appliance.name}"
    return f"what a failed build left in {shown(remains.file)}"


def _find_failed(appliance: Appliance, options: Namespace) -> Remains:
    """What the last failed build left. Raises UsageError where nothing is kept."""
    kept = find_remains(shared.failed_folder(options, appliance.name))
    if not kept:
        raise UsageError(
            f"nothing is kept of a failed build of {appliance.name}",
            todo=f"`phantom-image build {appliance.name} --keep-failed` keeps what a failing stage "
            "leaves",
        )
    return kept[0]


def _find_root(appliance: Appliance, options: Namespace, workspace: Workspace) -> Artifact:
    """The root file system of the appliance's last build, or of the appliance as it is defined.
    Raises UsageError where it is not there, and what planning raises."""
    name, store = appliance.name, workspace.store
    todo = f"build it: `phantom-image build {name}`"
    if options.as_defined:
        sites = shared.load_sites(options)
        plan = make_plan(appliance, sites, store, builds=workspace.build, keep=False)
        (root,) = stages_called(plan, _ROOT)
        found = store.find(_ROOT, root.key)
        if found is None:
            raise UsageError(f"{name} is not built as it is defined now", todo=todo)
        return found
    stages = read_stages(workspace, name)
    if _ROOT not in stages:
        raise UsageError(
            f"{name} has no build yet",
            todo=f"{todo}; `--as-defined` takes what a failed build has made",
        )
    found = store.find(_ROOT, ContentKey(stages[_ROOT]["key"]))
    if found is None:
        told = f"the root file system of {name}'s last build is not in the store any more"
        raise UsageError(told, todo=f"build it again: `phantom-image build {name}`")
    return found
