"""What a failed build leaves: kept when asked for, and opened."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from base_images import Bases
from cli_runs import Project, assert_clean
from terminals import Terminal

SCRIPT = """\
#!/bin/sh
set -e
echo of-the-script >/etc/made
ls /nowhere
"""
CHECK = """\
#!/bin/sh
echo of-the-check >/etc/made
sync
exit 3
"""


@pytest.mark.slow
def test_a_shell_where_a_script_failed(copied: Callable[..., Project]) -> None:
    project = copied("packages")
    project.write("images/web/fails.sh", SCRIPT, 0o755)
    project.define("web", "scripts: [fails.sh]\n", extends="hello-phantom")
    argv = project.command("build", "web", "--cloud", "nimbus", "--shell-on-failure")
    with Terminal(argv, cwd=project.folder, env=project.env(), columns=200) as terminal:
        terminal.wait_for("kept: build/web/failed/root.ext4; `phantom-image shell web --failed` ")
        terminal.wait_for("unpacking a copy of what a failed build left in build/web/failed/root")
        terminal.wait_for("root@")
        terminal.type("cat /etc/made; exit\n")
        assert terminal.end() == 18
        printed = terminal.printed
    assert "of-the-script" in printed
    assert printed.count("the definition's script fails.sh failed with status 2") == 2
    folder = project.build / "web/failed"
    assert folder.stat().st_mode & 0o777 == 0o700
    assert project.succeed("shell", "web", "--failed", "--", "cat", "/etc/made").out == (
        "of-the-script\n"
    )
    done = project.run("build", "web", "--cloud", "nimbus", "--keep-failed", "--stop-after", "disc")
    assert done.status == 24
    assert not folder.exists()
    assert_clean(project)


@pytest.mark.only_soak
def test_what_a_script_left_in_a_base_image(bases: Bases, project: Project) -> None:
    project.write("images/web/fails.sh", SCRIPT, 0o755)
    source = f"source: {{base_image: {{location: {bases.path('simple.raw')}}}}}\ndisk_size: 2GiB\n"
    project.define("web", f"{source}scripts: [fails.sh]\n", extends=None)
    done = project.run("build", "web", "--cloud", "nimbus", "--keep-failed")
    assert done.status == 54
    assert "kept: build/web/failed/root.ext4; " in done.err
    shown = project.succeed("shell", "web", "--failed", "--", "cat", "/etc/made")
    assert shown.out == "of-the-script\n"
    assert_clean(project)


@pytest.mark.boot
@pytest.mark.only_soak
def test_a_machine_that_failed_its_check_is_started_again(copied: Callable[..., Project]) -> None:
    project = copied("packages", "root", "disk")
    project.write("images/web/check.sh", CHECK, 0o755)
    project.define("web", "boot_check: {script: check.sh}\n", extends="hello-phantom")
    argv = project.command("build", "web", "--cloud", "nimbus", "--shell-on-failure")
    with Terminal(argv, cwd=project.folder, env=project.env(), columns=200) as terminal:
        terminal.wait_for("console of web (bios)", 600)
        terminal.wait_for("~#", 600)
        terminal.type("cat /etc/made\r")
        terminal.wait_until(lambda: "of-the-check" in terminal.rows, "what the check wrote", 60)
        terminal.type("\x01x")
        assert terminal.end() == 23
    shown = project.succeed("shell", "web", "--failed", "--", "cat", "/etc/made")
    assert shown.out == "of-the-check\n"
    assert_clean(project)


def test_nothing_is_kept_unless_asked_for(project: Project) -> None:
    project.define("web", "", extends="hello-phantom")
    told = "error: nothing is kept of a failed build of web\n  do: `phantom-image build web "
    done = project.run("shell", "web", "--failed", "--", "true")
    assert done.status == 24
    assert done.err.startswith(told)
    done = project.run("build", "web", "--shell-on-failure")
    assert (done.status, done.err) == (
        24,
        "error: a shell needs a terminal as standard input and output\n  do: run it in a terminal, "
        "as by `ssh -t`; without one, `--keep-failed` keeps what `shell --failed` opens later\n",
    )
