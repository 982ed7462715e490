"""What programs get to know of the user and of the host: their environment, logs, namespaces."""

from __future__ import annotations

import os
import socket
import stat
import sys
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

from pipeline.errors import PhantomError
from pipeline.model import NoProgress
from pipeline.tools import isolate, namespace, run

SECRETS = {
    "AWS_SECRET_ACCESS_KEY": "wJalrXUtnFEMI",
    "NIMBUS_S3KEY": "cumulus-secret",
    "DIB_DEV_USER_PASSWORD": "correct horse",
    "http_proxy": "http://me:proxy-secret@127.0.0.1:9",
    "SOMETHING_NEW": "unheard-of",
}
PRINT = (sys.executable, "-c", "import os; print(dict(os.environ))")
needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="namespaces need root's rights")


@pytest.fixture(params=[True, False], ids=["mapped", "by-root"])
def mapped(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> bool:
    """Whether programs run as the root of a user namespace, or as this host's."""
    way = namespace.Way(mapped=request.param)
    monkeypatch.setattr(namespace, "find_way", lambda folder: way)
    return way.mapped


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


def isolated(
    folder: Path,
    script: str,
    *,
    network: bool = False,
    secrets: Mapping[str, bytes] | None = None,
    **environment: str,
) -> str:
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
            network=network,
            secrets=secrets,
        )
    except PhantomError as error:
        pytest.fail(f"{error}\n{log.read_text()}")
    return log.read_text().partition("\nbegun\n")[2]


@needs_root
def test_a_build_sees_no_environment_but_its_own(tmp_path: Path, mapped: bool) -> None:
    told = isolated(
        tmp_path,
        'cat /proc/[0-9]*/environ | tr "\\0" "\\n"; ls /run; test "$OWN" = yes',
        OWN="yes",
    )
    assert "OWN=yes" in told
    assert "environment" not in told
    assert_no_secrets(told)


@needs_root
def test_a_build_sees_no_files_but_those_for_it(tmp_path: Path, mapped: bool) -> None:
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
    assert (tmp_path / "write" / "new").stat().st_uid == os.getuid()


@needs_root
def test_a_build_does_not_know_its_host(tmp_path: Path, mapped: bool) -> None:
    told = isolated(
        tmp_path,
        "hostname; hostname --fqdn; cat /etc/hostname; ps -A -o comm= | grep -c python || :;"
        "grep -c '^search\\|^domain' /etc/resolv.conf || :;"
        "sudo -u nobody -E A=b sh -c 'echo $(id -un) $A'; sudo -n id -u",
    )
    host = 3 * ["localhost"]
    assert told.splitlines()[:-1] == [*host, "0", "0", "nobody b", "0"]


@needs_root
def test_a_build_leaves_the_host_s_kernel_alone(tmp_path: Path, mapped: bool) -> None:
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
def test_a_build_reaches_no_network(tmp_path: Path, mapped: bool) -> None:
    """Neither the host's own services nor others; a service of its own it reaches."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        told = isolated(
            tmp_path,
            f"""
            ls /sys /proc/net/dev
            tail -n +3 /proc/net/dev | cut -d : -f 1 | tr -d " "
            /usr/bin/python3 -IS - <<"END"
            import socket
            try:
                socket.create_connection(("127.0.0.1", {port}), 5)
                print("reached")
            except ConnectionRefusedError:
                print("refused")
            with socket.create_server(("127.0.0.1", 0)) as own:
                socket.create_connection(own.getsockname(), 5)
            END
            """.replace("\n            ", "\n"),
        )
    assert told.splitlines()[:-1] == ["/proc/net/dev", "", "/sys:", "lo", "refused"]


@needs_root
def test_a_build_with_the_network_has_the_host_s(tmp_path: Path) -> None:
    told = isolated(tmp_path, "tail -n +3 /proc/net/dev | cut -d : -f 1 | tr -d ' '", network=True)
    interfaces = [name for _, name in socket.if_nameindex()]
    assert sorted(told.splitlines()[:-1]) == sorted(interfaces)


@needs_root
def test_a_build_reaches_no_process_and_no_device(tmp_path: Path, mapped: bool) -> None:
    """Its root is none of this host's: it can neither signal its processes nor make a device."""
    told = isolated(
        tmp_path,
        rf"""
        ls -d /proc/[0-9]* | wc -l
        kill -0 {os.getpid()} 2>/dev/null && echo "there is the tests' process"
        ls -lL /dev | sed -n "s|^[bc].* |/dev/|p" | grep -v "ptmx\\|std" | sort | tr "\n" " "; echo
        if {str(mapped).lower()}; then
            mknod /tmp/disk b 8 0 2>/dev/null && echo "a disk can be made"
        fi
        echo begin >/dev/null
        tr -s " " </proc/self/uid_map
        ipcs -m | grep -c "^0x" || :
        """,
    )
    count, devices, ids, shared = told.splitlines()[:-1]
    assert int(count) < 12
    names = ("full", "null", "random", "tty", "urandom", "zero")
    assert devices.split() == [f"/dev/{name}" for name in names]
    _, start, _ = ids.split()
    assert (start != "0") == mapped
    assert shared == "0"


@needs_root
def test_a_range_for_root_is_nobody_s(tmp_path: Path) -> None:
    start, count = isolate.find_range("uid")
    assert count == isolate.IDS
    taken = [
        (int(first), int(number))
        for line in Path("/etc/subuid").read_text().splitlines()
        for name, first, number in [line.split(":")]
        if name != "root"
    ]
    assert all(first + number <= start or start + count <= first for first, number in taken)


@needs_root
def test_where_user_namespaces_are_forbidden_the_reason_is_told(tmp_path: Path) -> None:
    """As a root whose kernel refuses them: the one of a user namespace that may have no further
    one."""
    program = "from pathlib import Path; from pipeline.tools import namespace; "
    program += "print(namespace.find_way(Path('{}')))"
    forbid = 'echo 0 >/proc/sys/user/max_user_namespaces; exec "$@"'
    with tempfile.TemporaryDirectory() as open_to_all:
        place = Path(open_to_all)
        place.chmod(0o777)
        told = run.capture(
            [
                *(sys.executable, "-I", "-S", isolate.__file__, "--as-mapped"),
                *("sh", "-c", forbid, "sh", sys.executable, "-c", program.format(place)),
            ],
            env={"PYTHONPATH": str(Path(isolate.__file__).parents[2]), "TMPDIR": str(place)},
        )
    refused = "refused='a user namespace is refused: no more are allowed'"
    mend = "mend='sudo sysctl -w user.max_user_namespaces=15000'"
    assert told.strip() == f"Way(mapped=False, {refused}, {mend})"


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


HANDED = {"token": b"correct horse battery\n", "key.pem": b"\x00\xff" * 500, "other": b"12345678"}


@needs_root
def test_secrets_are_files_in_memory_and_hidden_in_the_log(tmp_path: Path, mapped: bool) -> None:
    told = isolated(
        tmp_path,
        "stat -c '%a %u %s' /run/secrets /run/secrets/*\n"
        "stat -f -c %T /run/secrets\n"
        "cat /run/secrets/token /run/secrets/other\n"
        "(echo x >/run/secrets/token) 2>/dev/null || echo unwritable\n"
        "echo; env; tr '\\0' ' ' </proc/1/cmdline; cat /proc/1/environ",
        secrets=HANDED,
    )
    assert told.startswith("700 0 100\n400 0 1000\n400 0 8\n400 0 22\ntmpfs\n***\n***unwritable\n")
    assert "correct horse" not in (tmp_path / "log").read_text()
    for file in (tmp_path / "namespace").iterdir():  # nothing of them was written to a disk
        assert not any(value.strip() in file.read_bytes() for value in HANDED.values())


@needs_root
def test_a_build_with_secrets_ends_when_its_lifeline_does(tmp_path: Path, mapped: bool) -> None:
    told = isolated(tmp_path, "cat; echo 'nothing to read'", secrets=HANDED)
    assert told == "nothing to read\n# status 0\n"
