"""`boot`: a person at the console of a real machine."""

from __future__ import annotations

import socket
import subprocess
import time
from pathlib import Path

import pytest
from cli_runs import Hello, make_project, remove_tree
from machines import BOOT_SECONDS
from terminals import Terminal

pytestmark = [pytest.mark.boot, pytest.mark.only_soak]


def test_a_person_at_the_console(tmp_path: Path, hello: Hello) -> None:
    """Root is logged in, the hint stands above the prompt, and the short ssh command works."""
    image = hello.artifact("image")
    before = {file.name: file.stat().st_mtime_ns for file in image.iterdir()}
    project = make_project(tmp_path / "project", hello.store)
    argv, env = project.command("boot"), project.env()
    with Terminal(argv, cwd=project.folder, env=env, columns=100, lines=40) as terminal:
        terminal.wait_for("root@")
        rows = terminal.rows
        where = next(at for at, row in enumerate(rows) if "login: root (automatic login)" in row)
        assert rows[where + 1 : where + 3] == [
            "console of hello-phantom (bios), where root is logged in; control-a x ends it",
            "to log in from another terminal: ssh -F build/hello-phantom/ssh appliance",
        ]
        terminal.type("id -un; tty\r")
        terminal.wait_for("/dev/ttyS0")
        ssh = ["ssh", "-F", "build/hello-phantom/ssh", "appliance", "cat /proc/sys/kernel/hostname"]
        deadline = time.monotonic() + BOOT_SECONDS
        while True:  # the console may come up before sshd
            told = subprocess.run(
                ssh, cwd=project.folder, env=env, capture_output=True, text=True, check=False
            )
            if told.returncode == 0 or time.monotonic() > deadline:
                break
            time.sleep(1)
        assert (told.returncode, told.stderr) == (0, ""), told.stderr
        assert told.stdout.strip()
        terminal.type("\x01x")
        assert terminal.end() == 0
        assert "the machine has ended, and its disk is thrown away" in terminal.printed
    assert not (project.build / "hello-phantom/ssh").exists()
    assert {file.name: file.stat().st_mtime_ns for file in image.iterdir()} == before
    remove_tree(tmp_path)


def test_own_user_data_a_forwarded_port_and_the_check(tmp_path: Path, hello: Hello) -> None:
    """The machine gets the user-data of the command line, which this host then asks over a port;
    the check script runs in it, and its status is told."""
    project = make_project(tmp_path / "project", hello.store)
    project.write(
        "mine.sh",
        "#!/bin/sh\nmkdir -p /run/hello-phantom\n"
        "echo 'Hello from Phantom.' >/run/hello-phantom/greeting\n",
    )
    (port,) = free_ports(1)
    argv = project.command("boot", "--user-data", "mine.sh", "--forward", f"{port}:22")
    with Terminal(argv, cwd=project.folder, env=project.env(), columns=100, lines=40) as terminal:
        terminal.wait_for("root@")
        assert f"127.0.0.1:{port} leads to the machine's port 22" in terminal.printed
        deadline = time.monotonic() + BOOT_SECONDS
        while True:  # the console may come up before sshd
            done = project.run("check")
            if "does not answer" not in done.err or time.monotonic() > deadline:
                break
            time.sleep(1)
        assert (done.status, done.err) == (0, "")
        assert "ok: the default user-data has greeted\n" in done.out
        assert done.out.endswith("the check script check.sh has passed\n")
        with socket.create_connection(("127.0.0.1", port), 30) as server:
            assert server.recv(8).startswith(b"SSH-2.0-")

        check = project.folder / "images/hello-phantom/check.sh"
        check.write_text("#!/bin/sh\nprintf 'no \\033[31m line end'\nexit 7\n")
        done = project.run("check")
        assert done.out == "no \\x1b[31m line end\n"
        assert (done.status, done.error) == (
            23,
            "error: the check script check.sh ended with status 7\n"
            "  do: correct it, or the image; this command runs the script as it is then\n",
        )
        terminal.type("\x01x")
        assert terminal.end() == 0
    assert project.run("check").status == 24
    remove_tree(tmp_path)


def free_ports(count: int) -> list[int]:
    """Ports of the loopback that nobody has."""
    servers = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [server.getsockname()[1] for server in servers]
    for server in servers:
        server.close()
    return ports
