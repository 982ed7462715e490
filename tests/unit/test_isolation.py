"""What programs get to know of the user and of the host: their environment, logs, namespaces."""

from __future__ import annotations

import os
import stat
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from pipeline.errors import PhantomError
from pipeline.model import NoProgress
from pipeline.tools import namespace, run

SECRETS = {
    "AWS_SECRET_ACCESS_KEY": "wJalrXUtnFEMI",
    "NIMBUS_S3KEY": "cumulus-secret",
    "DIB_DEV_USER_PASSWORD": "correct horse",
    "http_proxy": "http://me:proxy-secret@127.0.0.1:9",
    "SOMETHING_NEW": "unheard-of",
}
PRINT = (sys.executable, "-c", "import os; print(dict(os.environ))")
needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="namespaces need root's rights")


@pytest.fixture(autouse=True)
def secrets(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in SECRETS.items():
        monkeypatch.setenv(name, value)


@pytest.fixture
def open_umask() -> Iterator[None]:
    before = os.umask(0)
    yield
    os.umask(before)


def assert_no_secrets(text: str) -> None:
    told = [name for name, value in SECRETS.items() if name in text or value in text]
    assert told == [], text


def test_programs_get_no_credentials(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TZ", "Antarctica/Troll")
    log = tmp_path / "log"
    run.run(PRINT, log=log)
    with run.start(PRINT) as process:
        assert process.stdout is not None
        started = process.stdout.read()
    run.attach(PRINT)
    printed = [
        run.capture(PRINT),
        run.capture_head(PRINT, 100_000).decode(),
        started,
        log.read_text(),
        capfd.readouterr().out,
    ]
    for text in printed:
        assert "'PATH': " in text and "Antarctica/Troll" in text
        assert_no_secrets(text)


def test_programs_get_what_they_are_given() -> None:
    given = run.capture(PRINT, env={**run.proxy_environment(), "OWN": "yes"})
    assert "'OWN': 'yes'" in given and SECRETS["http_proxy"] in given
    assert SECRETS["NIMBUS_S3KEY"] not in given


def test_logs_are_for_the_user_alone(tmp_path: Path, open_umask: None) -> None:
    log = tmp_path / "logs" / "root.log"
    run.run(["echo", "done"], log=log)
    run.run(["echo", "again"], log=log)
    assert stat.S_IMODE(log.stat().st_mode) == 0o600
    assert log.read_text().splitlines()[1::3] == ["done", "again"]


def isolated(folder: Path, script: str, **environment: str) -> str:
    """What a script prints in namespaces of its own, where it sees `read` and `write` of the folder
    and `memory`."""
    for name in ("read", "write", "memory", "hidden"):
        (folder / name).mkdir()
        (folder / name / "file").write_text(name)
    view = namespace.View(
        readable=[folder / "read"],
        writable=[folder / "write"],
        in_memory={folder / "memory": 8},
    )
    log = folder / "log"
    try:
        namespace.run_isolated(
            ["sh", "-euc", f"echo begun\n{script}", "sh", str(folder)],
            view=view,
            folder=folder / "namespace",
            environment={"PATH": f"{namespace.PROGRAMS}:/usr/sbin:/usr/bin", **environment},
            log=log,
            progress=NoProgress(),
        )
    except PhantomError as error:
        pytest.fail(f"{error}\n{log.read_text()}")
    return log.read_text().partition("\nbegun\n")[2]


@needs_root
def test_a_build_sees_no_environment_but_its_own(tmp_path: Path) -> None:
    told = isolated(
        tmp_path,
        'cat /proc/[0-9]*/environ | tr "\\0" "\\n"; ls /run; test "$OWN" = yes',
        OWN="yes",
    )
    assert "OWN=yes" in told
    assert "environment" not in told
    assert_no_secrets(told)


@needs_root
def test_a_build_sees_no_files_but_those_for_it(tmp_path: Path) -> None:
    (tmp_path.parent / "beside").write_text("the host's")
    told = isolated(
        tmp_path,
        r"""
        ls -A "$1" | tr "\n" " "; echo
        ls -A "/proc/1/root$1" "/proc/1/cwd$1" | grep -c hidden || :
        for secret in "$1/../beside" /etc/shadow /etc/sudoers /etc/ssh /root/.ssh /home; do
            if [ -e "$secret" ]; then echo "there is $secret"; fi
        done
        for file in /proc/[0-9]*/fd/*; do
            readlink "$file" | grep -v "^pipe:\|^/dev/null\|^/proc/\|^/dev/pts" || :
        done
        cat "$1/read/file"; echo
        if touch "$1/read/new" /usr/new 2>/dev/null; then echo "not read-only"; fi
        echo brought >"$1/write/new"
        ls -A "$1/memory"
        df --output=fstype,size -k "$1/memory" | tail -1 | tr -s " "
        find /dev -type b
        """,
    )
    assert told.splitlines()[:-1] == ["memory read write ", "0", "read", "tmpfs 8192"]
    assert (tmp_path / "write" / "new").read_text() == "brought\n"
    assert not (tmp_path / "namespace" / "root" / "usr").exists()


@needs_root
def test_a_build_does_not_know_its_host(tmp_path: Path) -> None:
    told = isolated(
        tmp_path,
        "hostname; hostname --fqdn; cat /etc/hostname; ps -A -o comm= | grep -c python || :;"
        "grep -c '^search\\|^domain' /etc/resolv.conf || :;"
        "sudo -u nobody -E A=b sh -c 'echo $(id -un) $A'; sudo -n id -u",
    )
    host = 3 * ["localhost"]
    assert told.splitlines()[:-1] == [*host, "0", "0", "nobody b", "0"]


@needs_root
def test_a_build_leaves_the_host_s_kernel_alone(tmp_path: Path) -> None:
    """Neither its own /proc nor the one that diskimage-builder mounts lets scripts change it."""
    told = isolated(
        tmp_path,
        """
        mkdir /tmp/proc
        sudo mount -t proc none /tmp/proc
        for proc in /proc /tmp/proc; do
            for file in sys/kernel/core_pattern sys/vm/swappiness sysrq-trigger; do
                [ -e "$proc/$file" ] || continue
                if (: >>"$proc/$file") 2>/dev/null; then echo "$proc/$file can be written"; fi
            done
            cat "$proc/sys/kernel/hostname"
        done
        umount -R /tmp/proc
        """,
    )
    assert told.splitlines()[:-1] == ["localhost", "localhost"]


@needs_root
def test_secrets_of_a_build_are_hidden(tmp_path: Path) -> None:
    told = isolated(
        tmp_path,
        'export; echo "word: $DIB_PASSWORD, proxy $https_proxy"; echo "$DIB_RELEASE"',
        DIB_PASSWORD="hunter2hunter2",
        https_proxy="http://me:proxy-secret@127.0.0.1:9",
        DIB_RELEASE="bookworm",
    )
    assert "word: ***, proxy http://me:***@127.0.0.1:9\nbookworm\n" in told
    assert "hunter2" not in told and "proxy-secret" not in told
