"""The end of a failed program's output: what tells why, and nothing else."""

from __future__ import annotations

import sys
from pathlib import Path

from pipeline.tools import dib
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
    "Unmount /store/work/build/mnt/proc",
    "INFO diskimage_builder.block_device.blockdevice [-] State already cleaned - no way to do",
]


def failed(*lines: str) -> ToolError:
    argv = ["env", "-i", sys.executable, "-I", "-S", "/checkout/isolate.py", "/work/namespace"]
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
    error = ToolError(["mke2fs", "/store/work/a b"], 1, "mke2fs: no such file\n", None)
    assert str(error) == (
        "mke2fs ended with status 1\n  | mke2fs: no such file\n  command: mke2fs '/store/work/a b'"
    )
