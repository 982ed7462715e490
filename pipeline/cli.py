"""The command line: parses it, calls a command, prints an error, exits."""

from __future__ import annotations

import argparse
import os
import re
import signal
import sys
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import Any, NoReturn

from pipeline import __version__, resources, terminal
from pipeline.commands import COMMANDS
from pipeline.errors import NO_SPACE, NoSpaceError, PhantomError

_INTERRUPTED = 130
_UNKNOWN = "unrecognized arguments: "
_PLACES = {
    "--images": "folder of definitions (images)",
    "--sites": "file of sites (sites.yaml)",
    "--build": "folder of manifests and images (build)",
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command and returns its exit status: 0 for success, 2 for a wrong command line, and
    the statuses of `errors.py`."""
    terminal.guard()
    options = argparse.Namespace()
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, _interrupt)
    try:
        _parser().parse_args(arguments, options)
        status: int = options.run(options) or 0
        sys.stdout.flush()
        return status
    except PhantomError as error:
        return _report(error, options)
    except KeyboardInterrupt as interrupt:
        print("interrupted; the same command goes on where it can", file=sys.stderr)
        return interrupt.args[0] if interrupt.args else _INTERRUPTED
    except BrokenPipeError:  # the reader of our output has closed it
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except OSError as error:
        if error.errno not in NO_SPACE:
            raise
        return _report(_full(error), options)


def _full(error: OSError) -> NoSpaceError:
    """The error for a full disk that nothing nearer to it has explained."""
    return NoSpaceError(
        "no space is left" + ("" if error.filename else " where this command writes"),
        where=error.filename and str(error.filename),
        todo="free some space in the store, the build folder and the folder of temporary files "
        "(TMPDIR), then run the same command again",
    )


def _interrupt(number: int, _: object) -> None:
    """Treats a build server's SIGTERM and a closed terminal's SIGHUP as a control-c."""
    raise KeyboardInterrupt(128 + number)


def _report(error: PhantomError, options: argparse.Namespace) -> int:
    from pipeline.commands.output import describe_error, print_error, print_json

    if getattr(options, "json", False):
        print_json(describe_error(error))
    print_error(error)
    return error.exit_code


def _parser(*, whole: bool = False) -> argparse.ArgumentParser:
    """The parser of the command line. A command's own arguments are added when the command is
    parsed, or at once for the `whole` of it."""
    parser = _Parser(
        prog="phantom-image",
        description="Builds appliances for Phantom: images that boot, fetch their user-data and "
        "configure themselves, published to the clouds that Phantom uses.",
        epilog="The options --images, --sites and --build may stand behind the command, too.",
    )
    add = parser.add_argument
    add("--version", action=_Version, nargs=0, help="show the version and its commit, and exit")
    parser.set_defaults(images=_find_images(), sites=Path("sites.yaml"), build=Path("build"))
    _add_places(parser)
    commands = parser.add_subparsers(
        title="commands", metavar="COMMAND", required=True, parser_class=_CommandParser
    )
    for name, text in COMMANDS.items():
        module = f"pipeline.commands.{name.replace('-', '_')}"
        command = commands.add_parser(name, help=text, description=text, module=module)
        if whole:
            command.complete()
    parser.set_defaults(make_parser=lambda: _parser(whole=True))
    return parser


def _add_places(parser: argparse.ArgumentParser, *, hidden: bool = False) -> None:
    """Adds the options that name files and folders. They may stand before the command or, `hidden`
    in its help, behind it."""
    for name, text in _PLACES.items():
        if name not in parser._option_string_actions:  # `schema` has a `--sites` of its own
            help_text = argparse.SUPPRESS if hidden else text
            kind = _existing_file if name == "--sites" else Path
            parser.add_argument(name, type=kind, default=argparse.SUPPRESS, help=help_text)


def _existing_file(text: str) -> Path:
    if not os.path.exists(text):
        raise argparse.ArgumentTypeError(f"there is no file {text}")
    return Path(text)


def _find_images() -> Path:
    """The folder of definitions: here, or else the examples that come with the program."""
    here = Path("images")
    return here if here.is_dir() else resources.find("images")


class _Version(argparse.Action):
    """Prints the version; only then is git asked for the commit."""

    def __call__(self, parser: argparse.ArgumentParser, *_: object) -> NoReturn:
        from pipeline.tools.own_commit import describe_commit

        commit = describe_commit()
        told = "" if commit is None else f" ({commit})"
        print(f"phantom-image {__version__}{told}")
        parser.exit()


class _Parser(argparse.ArgumentParser):
    """A parser whose complaint about an unknown word names the word that was meant."""

    def error(self, message: str) -> NoReturn:
        """Prints the complaint and exits."""
        from pipeline.definitions.messages import suggest

        if choice := re.search(r"invalid choice: '(.*)' \(choose from (.*)\)$", message):
            known = re.findall(r"[^\s,']+", choice[2])
            message = message.replace(" (choose from", suggest(choice[1], known) + " (choose from")
        elif not message.startswith("argument --"):  # whose value is wrong
            known = re.findall(r"--[a-z-]+", self.format_usage())
            words = [word.partition("=")[0] for word in self._words if word.startswith("--")]
            wrong = [word for word in words if not any(each.startswith(word) for each in known)]
            message += next(filter(None, (suggest(word, known) for word in wrong)), "")
        super().error(message)

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        """Parses words, and keeps them for a complaint."""
        self._words: list[str] = [*(sys.argv[1:] if args is None else args)]
        return super().parse_known_args(args, namespace)


class _CommandParser(_Parser):
    """The parser of one command: it imports the command's module when the command is given."""

    def __init__(self, *, module: str, **settings: Any) -> None:
        super().__init__(**settings, formatter_class=argparse.RawDescriptionHelpFormatter)
        self._module = module

    def complete(self) -> None:
        """Adds the arguments of the command's module."""
        command = import_module(self._module)
        command.add_arguments(self)
        self.set_defaults(run=command.run)
        _add_places(self, hidden=True)
        if examples := getattr(command, "EXAMPLES", ()):
            self.epilog = "\n  ".join(["examples:" if examples[1:] else "example:", *examples])

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        """Parses a command's words, with the arguments that its module adds.

        argparse drops each `--`. Of a command that runs another one, whose words are its argument
        `command`, what stands behind the first `--` is kept as it is.
        """
        self.complete()
        words, behind = [*args], []
        if "--" in words and any(action.dest == "command" for action in self._actions):
            at = words.index("--")
            words, behind = words[:at], words[at + 1 :]
        known, unknown = super().parse_known_args(words, namespace)
        if behind:
            known.command = [*known.command, *behind]
        if unknown:
            self.error(f"{_UNKNOWN}{' '.join(unknown)}")
        return known, unknown


if __name__ == "__main__":
    sys.exit(main())
