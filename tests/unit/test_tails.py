"""The end of a failed program's output: what tells why, and nothing else."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path, PurePosixPath

import pytest

from pipeline.tools import dib, script_line
from pipeline.tools.run import ToolError
from pipeline.tools.tails import LAST_LINES, tail

NOISE = [
    'declare -x DIB_RELEASE="bookworm"',
    "Created symlink /etc/systemd/system/a.service -> /lib/systemd/system/b.service.",
    'Removed "/etc/systemd/system/multi-user.target.wants/a.service".',
    "Synchronizing state of ssh.service with SysV service script with /lib/systemd/systemd-sysv.",
]
WRAPPING = [
    "dib-run-parts Sourcing environment file /tmp/in_target.d/10-phantom-debian.bash",
    "+ source /tmp/in_target.d/environment.d/10-phantom-debian.bash",
    "++ export DISTRO_NAME=debian",
    "dib-run-parts 80-phantom-appliance-files completed",
    "dib-run-parts ",
    "",
]
AFTERMATH = [
    "Unmount /store/stages/build/mnt/proc",
    "INFO diskimage_builder.block_device.blockdevice [-] State already cleaned - no way to do",
]


def failed(*lines: str) -> ToolError:
    argv = ["env", "-i", sys.executable, "-I", "-S", "/checkout/isolate.py", "/store/namespace"]
    return ToolError(argv, 1, "".join(f"{line}\n" for line in lines), Path("/store/logs/root.log"))


def test_a_script_s_error_has_what_the_script_printed() -> None:
    """Its own trace too: whoever writes `set -x` wants to see it."""
    error = dib.explain_failure(
        failed(
            "Setting up openssh-server",
            *WRAPPING,
            "Running the definition's script one.sh",
            "one is done",
            "Running the definition's script two.sh",
            "+ cat /nowhere",
            *NOISE,
            "cat: /nowhere: No such file or directory",
            "phantom-appliance: the definition's script two.sh ended with status 3",
            *WRAPPING,
            *AFTERMATH,
        )
    )
    assert str(error) == (
        "the definition's script two.sh failed with status 3\n"
        "  | + cat /nowhere\n"
        "  | cat: /nowhere: No such file or directory\n"
        "  do: correct the script; the log has all that it printed\n"
        "  log: /store/logs/root.log"
    )
    assert error.exit_code == 18


def test_attributes_that_a_build_may_not_set() -> None:
    refused = "chattr: Operation not permitted while setting flags on /etc/motd"
    script = [
        "Running the definition's script one.sh",
        refused,
        "phantom-appliance: the definition's script one.sh ended with status 1",
    ]
    for lines in (script, [refused]):
        error = dib.explain_failure(failed(*lines))
        assert error.detail == refused
        assert error.todo == (
            "let the machine set the attributes at its first boot (`chattr +i`, `+a`): only root "
            "of the build host may set them, and hooks and scripts are not"
        )


def test_a_bash_script_s_error_has_its_line() -> None:
    error = dib.explain_failure(
        failed(
            "Running the definition's script two.sh",
            "cat: /nowhere: No such file or directory",
            "phantom-appliance: failed: 1 7 cat /nowhere",
            "phantom-appliance: the definition's script two.sh ended with status 1",
        ),
        {"two.sh": "images/web/two.sh"},
    )
    assert str(error).startswith(
        "images/web/two.sh:7: the definition's script two.sh failed with status 1: cat /nowhere\n"
        "  | cat: /nowhere: No such file or directory\n"
    )


def test_a_command_that_did_not_end_the_script_is_not_blamed() -> None:
    error = dib.explain_failure(
        failed(
            "Running the definition's script two.sh",
            "phantom-appliance: failed: 1 7 grep x y",
            "phantom-appliance: the definition's script two.sh ended with status 3",
        ),
        {"two.sh": "images/web/two.sh"},
    )
    assert (error.where, error.detail) == (None, "")


@pytest.mark.parametrize(
    ("script", "line"),
    [
        ("set -e\nx=1\nfalse\n", "1 4 false"),
        ("set -eu\nf() {\n  cat /nowhere\n}\nif f; then :; fi\ntrue && grep x /dev/null\n", "1 7 "),
        ("set -e\nbash -c 'exit 4'\n", "4 3 bash -c 'exit 4'"),
        ("trap 'echo mine' ERR\nfalse\nexit 1\n", ""),
        ("exit 9\n", ""),
        ("false\nexit 1\n", ""),
    ],
)
def test_bash_notes_the_command_that_failed(tmp_path: Path, script: str, line: str) -> None:
    aid, note, program = (tmp_path / name for name in ("aid", "note", "script"))
    aid.write_text(script_line.make_environment(PurePosixPath(note)))
    program.write_text(f"#!/bin/bash\n{script}")
    subprocess.run(["bash", program], env={"BASH_ENV": str(aid)}, check=False)
    told = note.read_text() if note.exists() else ""
    assert told.startswith(line) and bool(told) == bool(line)


PRINTED = {
    "not found": ("set -e\necho one\nnosuch x\n", 4),
    "not set": ("set -eu\necho one\necho $nope\necho two\n", 4),
    "syntax": ("echo one\nif true; then\n", 4),
    "not allowed": ("set -e\n/etc/passwd\n", 3),
    "handled": ("nosuch x || true\necho two\nexit 1\n", None),
    "status of its own": ("nosuch x\nexit 3\n", None),
    "silent": ("set -e\nfalse\n", None),
    "another script's": ("set -e\nsh -c 'nosuch x'\n", None),
}


@pytest.mark.parametrize("shell", ["dash", "busybox sh", "bash"])
@pytest.mark.parametrize("case", PRINTED)
def test_the_line_that_a_shell_prints(tmp_path: Path, shell: str, case: str) -> None:
    text, line = PRINTED[case]
    assert find_printed(tmp_path, shell.split(), f"#!/bin/sh\n{text}") == line


PYTHON = {
    "exception": ("print('one')\ndef f():\n    raise ValueError('no: no')\nf()\n", 4),
    "in a library": ("import json\nprint('one')\njson.loads('{')\n", 4),
    "syntax": ("print('one'\n", 2),
    "another": ("try:\n    1 / 0\nexcept OSError:\n    pass\n", 3),
    "raised again": ("try:\n    1 / 0\nexcept ZeroDivisionError:\n    raise KeyError('x')\n", 5),
    "output after it": ("import atexit\natexit.register(print, 'end')\nassert False\n", 4),
    "exit": ("import sys\nsys.exit('sorry')\n", None),
    "handled": (
        "import sys, traceback\ntry:\n    1 / 0\nexcept ZeroDivisionError:\n"
        "    traceback.print_exc()\nsys.exit(3)\n",
        None,
    ),
}


@pytest.mark.parametrize("case", PYTHON)
def test_the_line_that_python_prints(tmp_path: Path, case: str) -> None:
    text, line = PYTHON[case]
    assert find_printed(tmp_path, [sys.executable], f"#!/usr/bin/python3\n{text}") == line


def find_printed(folder: Path, interpreter: Sequence[str], text: str) -> int | None:
    """The line that is found in what a script prints into a pipe."""
    script = folder / "a script.x"
    script.write_text(text)
    ended = subprocess.run(
        [*interpreter, script],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    assert ended.returncode != 0
    lines = ended.stdout.splitlines()
    return script_line.find_printed(lines, re.escape(str(script)), ended.returncode)


def test_a_script_s_line_by_what_its_shell_said() -> None:
    error = dib.explain_failure(
        failed(
            "Running the definition's script one.sh",
            "/tmp/phantom-appliance/scripts/00-one.sh: 3: fine: not found",
            "Running the definition's script two.sh",
            "one",
            "/tmp/phantom-appliance/scripts/01-two.sh: 7: nosuch: not found",
            "phantom-appliance: the definition's script two.sh ended with status 127",
        ),
        {"one.sh": "images/web/one.sh", "two.sh": "images/web/two.sh"},
    )
    assert str(error) == (
        "images/web/two.sh:7: the definition's script two.sh failed with status 127\n"
        "  | one\n"
        "  | images/web/two.sh: 7: nosuch: not found\n"
        "  do: correct the script; the log has all that it printed\n"
        "  log: /store/logs/root.log"
    )


def test_a_script_that_printed_nothing() -> None:
    error = dib.explain_failure(
        failed(
            "Running the definition's script a b.sh",
            "phantom-appliance: the definition's script a b.sh ended with status 1",
        )
    )
    assert error.what == "the definition's script a b.sh failed with status 1"
    assert error.detail == ""


def test_a_script_that_printed_more_than_is_kept() -> None:
    """Its beginning is lost; what came before the script is not there either."""
    lines = [f"line {number}" for number in range(100)]
    end = "phantom-appliance: the definition's script long.sh ended with status 1"
    error = dib.explain_failure(failed(*lines, end))
    assert error.detail == "\n".join(lines[-LAST_LINES:])


def test_a_hook_s_error_has_the_lines_of_the_failure() -> None:
    error = dib.explain_failure(
        failed("E: no such package", "install failed", *NOISE, *WRAPPING, *AFTERMATH)
    )
    assert str(error) == (
        "diskimage-builder ended with status 1\n"
        "  | E: no such package\n"
        "  | install failed\n"
        "  do: see the log, which has all that it printed\n"
        "  log: /store/logs/root.log"
    )


def test_where_all_is_noise_it_is_shown() -> None:
    assert tail(NOISE) == "\n".join(NOISE)
    assert tail([]) == ""


def test_an_error_without_a_log_names_its_command_and_advises_nothing() -> None:
    error = ToolError(["mke2fs", "/store/a b"], 1, "mke2fs: no such file\n", None)
    assert str(error) == (
        "mke2fs ended with status 1\n  | mke2fs: no such file\n  command: mke2fs '/store/a b'"
    )
