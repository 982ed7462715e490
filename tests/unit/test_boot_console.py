"""The console of `boot`: programs in a machine's place, on a pseudo-terminal."""

from __future__ import annotations

import os
import re
import socket
import sys
from pathlib import Path

import pytest
from cli_runs import REPOSITORY, Project
from terminals import Terminal

from pipeline.build.partial import find_missing
from pipeline.commands.boot import _free_forwards, _read_user_data
from pipeline.definitions.appliance import load_appliance
from pipeline.errors import UsageError
from pipeline.layouts import LAYOUTS
from pipeline.machine.console import Hints
from pipeline.model import GIB
from pipeline.stages.disk import AssembleDisk
from pipeline.stages.image import CompressImage
from pipeline.store import Store

HINT = "control-a x ends it\nssh -F FILE appliance"
SHOWN = b"\x1b[7mcontrol-a x ends it\x1b[0m\r\n\x1b[7mssh -F FILE appliance\x1b[0m\r\n"
ATTACH = """
import sys
from pipeline.machine.console import attach
print("status", attach(["sh", "-c", sys.argv[1]], sys.argv[2]))
input("echo is back: ")
"""


def attached(script: str) -> Terminal:
    argv = [sys.executable, "-c", ATTACH, script, HINT]
    return Terminal(argv, cwd=REPOSITORY, env={"PATH": os.environ["PATH"]})


def test_the_hint_comes_after_the_boot_loader_and_at_the_prompt() -> None:
    """The prompt comes again below the hint; keys reach the machine, control-c among them."""
    script = (
        r"printf 'SeaBIOS\033[2J\033[HGRUB\033[2J\033[H'; sleep 0.2; "
        r"printf '[    0.00] Linux version 6.1\r\n'; printf 'hello lo'; sleep 0.2; printf 'gin: '; "
        r"read -r name; printf 'welcome %s\r\n' $name; dd bs=1 count=1 2>/dev/null | od -An -c; "
        r"exit 7"
    )
    with attached(script) as terminal:
        terminal.wait_until(lambda: terminal.rows[-1:] == ["hello login:"], "the prompt")
        terminal.wait_until(lambda: len(terminal.rows) == 7, "the hint below it")
        hint = ["control-a x ends it", "ssh -F FILE appliance"]
        prompt = "hello login:"
        assert terminal.rows == ["[    0.00] Linux version 6.1", *hint, prompt, *hint, prompt]
        terminal.type("root\n\x03")
        terminal.wait_for("welcome root")
        terminal.wait_for("003")
        terminal.wait_for("status 7")
        terminal.type("yes\n")
        assert terminal.end() == 0
        assert "echo is back: yes" in terminal.printed


def test_a_console_that_logs_in_by_itself() -> None:
    hints = Hints(HINT)
    assert hints.pass_on(b"hello login: root (auto") == b"hello login: root (auto"
    assert not hints.is_waiting()
    assert hints.pass_on(b"matic login)\r\n\r\nroot@") == b"matic login)\r\n" + SHOWN + b"\r\nroot@"
    assert hints.pass_on(b"\r\nhello login: ") == b"\r\nhello login: "
    assert not hints.is_waiting(), "once is enough"


def test_however_the_output_is_cut_the_hint_comes_once() -> None:
    text = b"[    0.0] Linux version 6\r\nsystemd[1]: x\r\n\x1b[0mhello login: root\r\n# "
    whole = Hints(HINT).pass_on(text)
    assert whole.count(SHOWN) == 2
    assert whole.replace(SHOWN, b"") == text
    for size in range(1, len(text)):
        hints = Hints(HINT)
        parts = [hints.pass_on(text[at : at + size]) for at in range(0, len(text), size)]
        assert b"".join(parts) == whole


def test_what_has_to_be_built_first_is_named_once(tmp_path: Path) -> None:
    store, layout = Store(tmp_path), LAYOUTS["mbr"]
    root = AssembleDisk(layout=layout, size=GIB, tools={"sfdisk": "2"}, label="root")
    disks = [AssembleDisk(inputs=(root,), layout=layout, size=size, tools={}) for size in (1, 2)]
    image = CompressImage(inputs=(*disks, root), tools={"isal": "1"})
    assert find_missing([image], store) == [root, *disks, image]
    out = tmp_path / "out"
    out.mkdir()
    store.add(disks[0].name, disks[0].key, out, {})
    assert find_missing([image], store) == [root, disks[1], image]


def test_without_a_terminal_it_is_refused_before_anything_is_built(tmp_path: Path) -> None:
    (tmp_path / "images").symlink_to(REPOSITORY / "images")
    (tmp_path / "tmp").mkdir()
    done = Project(folder=tmp_path, store=tmp_path / "store").run("boot")
    assert done.status == 24
    assert done.error == (
        "error: `boot` shows a machine's console, and needs a terminal as standard input and "
        "output\n"
        "  do: run it in a terminal, as by `ssh -t`; without one, `phantom-image build` boots the "
        "image and checks it\n"
    )
    assert not (tmp_path / "store").exists()


def test_user_data_that_no_machine_can_get(tmp_path: Path) -> None:
    absent, long = tmp_path / "absent", tmp_path / "long"
    long.write_bytes(b"x" * 16385)
    appliance = load_appliance("hello-phantom", REPOSITORY / "images")
    with pytest.raises(UsageError) as error:
        _read_user_data(absent, appliance)
    assert str(error.value) == (
        f"{absent}: the user-data cannot be read: No such file or directory\n"
        "  do: let --user-data name a file that this user may read"
    )
    with pytest.raises(UsageError) as error:
        _read_user_data(long, appliance)
    assert str(error.value) == (
        f"{long}: the user-data has 16385 bytes; EC2 takes at most 16384\n"
        "  do: shorten it, or let it fetch the rest"
    )
    long.write_bytes(b"\x00binary")
    assert _read_user_data(long, appliance) == b"\x00binary"
    own = _read_user_data(None, appliance)
    assert own == (REPOSITORY / "images/hello-phantom/user-data.sh").read_bytes()


def test_a_port_that_is_taken_is_told_beforehand() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        taken = server.getsockname()[1]
        with pytest.raises(UsageError) as error:
            _free_forwards([(taken, 80)])
    what, _, todo = str(error.value).partition("\n")
    assert what == f"port {taken} of 127.0.0.1 cannot be forwarded: Address already in use"
    assert re.fullmatch(r"  do: choose another port, as in --forward [0-9]+:80", todo)
    assert _free_forwards([(taken, 80), (taken, 80)]) == ((taken, 80),)
