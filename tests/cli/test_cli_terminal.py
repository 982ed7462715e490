"""Progress as a person sees it: the real command on a pseudo-terminal, its screen compared."""

from __future__ import annotations

import re
import signal
import sys
from collections.abc import Callable

import pytest
from cli_runs import REPOSITORY, Project
from terminals import Terminal

# Work of every kind, as commands report it.
WORK = """
import signal, sys, time
from pipeline.progress import shown
signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGUSR1])
with shown(sys.stderr, verbose=False) as start:
    unknown, boot, sent = start("unknown size"), start("boot"), start("sent")
    unknown.step("computing [b]the[/b] digest " + "x" * 200)
    boot.step("booting (tcg)", seconds=900)
    sent.step("uploading")
    sent.advance(0, 1000)
    time.sleep(1.5)
    sent.advance(500, 1000)
    signal.sigwait([signal.SIGUSR1])
    sent.step("publishing")
    boot.finish("done in 1.5 s")
    again = start("sent")
    again.step("checking")
    if sys.argv[1] == "fail":
        raise ValueError
"""


def working(how: str = "", **env: str) -> Terminal:
    argv = [sys.executable, "-c", WORK, how]
    return Terminal(argv, cwd=REPOSITORY, env={"PATH": "/usr/bin:/bin", "LC_ALL": "C.UTF-8", **env})


def plain(rows: list[str]) -> list[str]:
    """Rows with what differs from run to run replaced by words."""
    rows = [re.sub(r"\b\d+:\d\d:\d\d\b", "TIME", row) for row in rows]
    rows = [re.sub(r"\d+\.\d s\b", "N s", row) for row in rows]
    return [re.sub(r" +", " ", re.sub("^[⠀-⣿] ", "* ", row)) for row in rows]


def test_rows_of_work_that_runs_and_of_work_that_has_ended() -> None:
    """A bar shows only what is known of; limited time is shown; nothing is wrapped or left open."""
    with working() as terminal:
        shown: list[str] = []

        def half_sent() -> bool:
            shown[:] = terminal.rows
            return len(shown) == 3 and "━" * 10 in shown[2] and "0:00 of" not in shown[1]

        terminal.wait_until(half_sent, "half of a bar")
        unknown, boot, sent = plain(shown)
        assert unknown.startswith("* unknown size TIME computing [b]the[/b] digest xxx")
        assert unknown.endswith("…")
        assert re.fullmatch(r"\* boot TIME booting \(tcg\): 0:\d\d of at most 15:00", boot)
        assert re.fullmatch("\\* sent TIME ━{10}[╸╺ ]?━* uploading", sent)
        terminal.process.send_signal(signal.SIGUSR1)
        assert terminal.end() == 0
        unknown, *others = [row for row in plain(terminal.rows) if row.strip()]
        assert unknown.startswith("✓ unknown size TIME computing")
        assert others == ["✓ boot TIME done in N s", "✓ sent TIME checking"]


def test_rows_of_work_that_an_error_ended() -> None:
    with working("fail") as terminal:
        terminal.wait_for("of at most")
        terminal.process.send_signal(signal.SIGUSR1)
        assert terminal.end() == 1
        unknown, boot, sent = plain(terminal.rows)[:3]
        assert unknown == "✗ unknown size TIME stopped"
        assert boot == "✓ boot TIME done in N s"
        assert sent == "✗ sent TIME stopped"


@pytest.mark.parametrize("terminal", ["dumb", ""])
def test_a_terminal_that_can_only_print_gets_lines(terminal: str) -> None:
    with working(TERM=terminal) as shown:
        shown.wait_for("sent: uploading")
        shown.process.send_signal(signal.SIGUSR1)
        assert shown.end() == 0
        assert "\x1b" not in shown.printed
        assert "boot: booting (tcg), at most 900 s\n" in shown.printed
        assert shown.printed.endswith("sent: publishing\nboot: done in 1.5 s\nsent: checking\n")


def test_marks_where_the_terminal_knows_no_unicode() -> None:
    with working(LC_ALL="C", PYTHONIOENCODING="latin-1", PYTHONUTF8="0") as terminal:
        terminal.wait_for("of at most")
        terminal.process.send_signal(signal.SIGUSR1)
        assert terminal.end() == 0
        assert terminal.text.isascii()
        assert plain(terminal.rows)[1:] == ["+ boot TIME done in N s", "+ sent TIME checking"]


@pytest.mark.slow
def test_a_build_of_which_a_part_is_reused_and_a_part_fails(copied: Callable[..., Project]) -> None:
    """The machine has five seconds: too few for any."""
    project = copied("root", "disk", "image", "hash", "inventory", "gate", "drivers")
    project.define("short", "boot_check: {seconds: 5}\n")
    argv, env = project.command("build", "short"), project.env()
    with Terminal(argv, cwd=project.folder, env=env, columns=100) as terminal:
        terminal.wait_for(": 0:02 of at most 0:05")
        assert terminal.end() == 20
        text = terminal.printed
        assert plain([row for row in terminal.rows if re.match("[✓✗⠀-⣿]", row)]) == [
            "✗ boot nimbus-sandbox bios TIME failed",
            "✓ image mbr raw gzip TIME reused: what is stored is whole",
        ]
        assert "the guest did not boot: the machine did not report within 5 s" in text
