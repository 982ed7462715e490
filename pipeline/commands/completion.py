"""`phantom-image completion`: what completes the words of commands in a shell."""

from __future__ import annotations

import argparse
from argparse import ArgumentParser, Namespace
from collections.abc import Iterator

from pipeline.commands.output import print_lines

EXAMPLES = (
    "phantom-image completion bash >~/.local/share/bash-completion/completions/phantom-image",
    "phantom-image completion zsh >~/.zfunc/_phantom-image",
)

_KEYS = """\
_phantom_image_keys() {
    sed -n "/^$1:/,/^[^ #]/s/^  \\([A-Za-z0-9][A-Za-z0-9._-]*\\):.*/\\1/p" sites.yaml 2>/dev/null
}
"""
_FUNCTIONS = {
    "bash": """\
_phantom_image_appliances() {
    compgen -W "$(for file in images/*/appliance.yaml; do
        [ -e "$file" ] && file=${file%/*} && echo "${file##*/}"
    done)" -- "$1"
}
_phantom_image_sites() {
    compgen -W "$(_phantom_image_keys sites)" -- "$1"
}
_phantom_image_phantoms() {
    compgen -W "$(_phantom_image_keys phantoms) local" -- "$1"
}
""",
    "zsh": """\
_phantom_image_appliances() {
    local -a names
    names=(images/*/appliance.yaml(N:h:t))
    compadd -a names
}
_phantom_image_sites() {
    local -a names
    names=(${(f)"$(_phantom_image_keys sites)"})
    compadd -a names
}
_phantom_image_phantoms() {
    local -a names
    names=(${(f)"$(_phantom_image_keys phantoms)"} local)
    compadd -a names
}
""",
}
_COMPLETED = {
    "appliance": "_phantom_image_appliances",
    "appliances": "_phantom_image_appliances",
    "site": "_phantom_image_sites",
    "phantom": "_phantom_image_phantoms",
    "manifest": "_phantom_image_appliances",
}


def add_arguments(parser: ArgumentParser) -> None:
    """Adds the command's arguments."""
    parser.add_argument("shell", choices=sorted(_FUNCTIONS), help="the shell: bash or zsh")


def run(options: Namespace) -> None:
    """Prints the shell's functions. Appliances and sites are those of the folder in which the words
    are completed."""
    import shtab

    parser = options.make_parser()
    for action in _actions(parser):
        if action.dest in _COMPLETED:
            action.complete = dict.fromkeys(_FUNCTIONS, _COMPLETED[action.dest])  # type: ignore[attr-defined]
    functions = _KEYS + _FUNCTIONS[options.shell]
    print_lines(shtab.complete(parser, shell=options.shell, preamble=functions).splitlines())


def _actions(parser: ArgumentParser) -> Iterator[argparse.Action]:
    for action in parser._actions:
        yield action
        if isinstance(action, argparse._SubParsersAction):
            for command in action.choices.values():
                yield from _actions(command)
