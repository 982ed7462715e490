"""The command line's own parts: a new command, help, and tables."""

from __future__ import annotations

import os
import pty
import shlex
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest
from cli_runs import REPOSITORY

from pipeline.cli import _parser, main
from pipeline.commands import COMMANDS

_TOY = '''"""`phantom-image toy`: a command of the tests."""

from argparse import ArgumentParser, Namespace


def add_arguments(parser: ArgumentParser) -> None:
    """Adds the command's arguments."""
    parser.add_argument("word", help="a word to say")


def run(options: Namespace) -> int:
    """Says the word."""
    print(f"the toy says {options.word}")
    return 7
'''
_TABLE = """
from pipeline.commands.output import cell, print_table
print_table([["a", "x" * 200, ""], ["[b]bb", "7 :smile:", "z"]], ["one", "two", "three"])
print_table([["root", cell(["build: one", "       two"])], ["a", "b\\nc"]])
"""


def run(folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    """Runs Python with the `pipeline` package that is in a folder."""
    return subprocess.run(
        [sys.executable, *words],
        cwd=folder,
        env={**os.environ, "COLUMNS": "80"},
        capture_output=True,
        text=True,
        check=False,
    )


def test_a_new_command_is_a_module_and_a_line(tmp_path: Path) -> None:
    shutil.copytree(REPOSITORY / "pipeline", tmp_path / "pipeline")
    commands = tmp_path / "pipeline/commands"
    (commands / "toy.py").write_text(_TOY)
    table = (commands / "__init__.py").read_text()
    line = 'COMMANDS = {\n    "toy": "say a word",\n'
    (commands / "__init__.py").write_text(table.replace("COMMANDS = {\n", line))

    done = run(tmp_path, "-m", "pipeline.cli", "toy", "hello")
    assert (done.returncode, done.stdout, done.stderr) == (7, "the toy says hello\n", "")
    shown = run(tmp_path, "-m", "pipeline.cli", "--help").stdout
    assert "\n  COMMAND\n    toy            say a word\n    image " in shown
    assert run(tmp_path, "-m", "pipeline.cli", "toy", "--help").stdout == (
        "usage: phantom-image toy [-h] word\n\nsay a word\n\npositional arguments:\n"
        "  word        a word to say\n\noptions:\n  -h, --help  show this help message and exit\n"
    )


def test_every_module_is_a_command_or_shared() -> None:
    files = {path.stem for path in (REPOSITORY / "pipeline/commands").glob("*.py")}
    commands = {name.replace("-", "_") for name in COMMANDS}
    assert files - commands == {
        *("__init__", "compatibility", "findings", "image_files", "night_install"),
        *("night_output", "options", "output", "tracker"),
    }
    assert commands <= files


@pytest.mark.parametrize("name", COMMANDS)
def test_a_command_s_help_ends_with_examples_that_it_takes(name: str) -> None:
    shown = run(REPOSITORY, "-m", "pipeline.cli", name, "--help").stdout
    examples = shown.partition("\n\nexample")[2].splitlines()[1:]
    assert examples
    for example in examples:
        program, *words = shlex.split(example.partition(" >")[0])
        assert (program, words[0]) == ("phantom-image", name)
        _parser().parse_args(words)


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        ("imgae", "argument COMMAND: invalid choice: 'imgae'; did you mean 'image'?"),
        ("plan web --sites places.yaml", "argument --sites: there is no file places.yaml\n"),
        ("plan --clod nimbus", "unrecognized arguments: --clod; did you mean '--cloud'?"),
        ("list --sits=hotel", "unrecognized arguments: --sits=hotel; did you mean '--site'?"),
        (
            "inspect x --fromat raw",
            "unrecognized arguments: --fromat raw; did you mean '--format'?",
        ),
        (
            "inspect x --format qcow",
            "argument --format: invalid choice: 'qcow'; did you mean 'qcow2'?",
        ),
        ("schema manifets", "argument OF: invalid choice: 'manifets'; did you mean 'manifest'?"),
        ("--versoin", "the following arguments are required: COMMAND; did you mean '--version'?"),
        ("boot web nimbus", "unrecognized arguments: nimbus\n"),
        ("doctor --frobnicate", "unrecognized arguments: --frobnicate\n"),
    ],
)
def test_a_mistyped_word_is_recognised(
    words: str, complaint: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as caught:
        main(words.split())
    assert caught.value.code == 2
    assert f"error: {complaint}" in capsys.readouterr().err


def test_help_imports_no_command() -> None:
    program = (
        "import sys; from pipeline.cli import main\n"
        "try: main(['--help'])\n"
        "except SystemExit: print(*sorted(n for n in sys.modules if n.startswith('pipeline')))"
    )
    last = run(REPOSITORY, "-c", program).stdout.splitlines()[-1]
    assert last.split() == [
        *("pipeline", "pipeline.cli", "pipeline.commands", "pipeline.errors"),
        *("pipeline.resources", "pipeline.terminal"),
    ]


# ---- tables


def test_a_table_in_a_pipe_is_plain() -> None:
    """No line is wrapped or cut, no text is taken for markup, and no line ends in blanks."""
    done = run(REPOSITORY, "-c", _TABLE)
    assert done.stdout == (
        f"one    two{'':197}  three\n"
        f"a      {'x' * 200}\n"
        f"[b]bb  7 :smile:{'':191}  z\n"
        "root  build: one\n"
        "             two\n"
        "a     b\\nc\n"
    )


def on_terminal(**env: str) -> str:
    """The table as it is printed on a terminal of 40 columns."""
    main, side = pty.openpty()
    kept: Mapping[str, str] = {**os.environ, "TERM": "xterm", "COLUMNS": "40", **env}
    with subprocess.Popen(
        [sys.executable, "-c", _TABLE], cwd=REPOSITORY, stdout=side, env=kept
    ) as process:
        os.close(side)
        text = b""
        try:
            while data := os.read(main, 4096):
                text += data
        except OSError:  # how Linux reports the end of a pseudo-terminal
            pass
        os.close(main)
    assert process.returncode == 0
    return text.decode().replace("\r\n", "\n")


def test_a_table_on_a_terminal_keeps_to_its_width() -> None:
    shown = on_terminal(NO_COLOR="1")
    assert "\x1b" not in shown
    assert max(map(len, shown.splitlines())) <= 40
    assert shown.count("x") == 200
    assert "\x1b[1m" in on_terminal(NO_COLOR="")
