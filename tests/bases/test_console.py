"""The output of an appliance and of the programs in it, and how they end: both may be anything."""

from __future__ import annotations

import subprocess
import threading
from pathlib import Path, PurePosixPath

import pytest
from guests import image_of
from small_images import DEBIAN, make_ext

from pipeline.errors import (
    ApplianceError,
    FileSystemError,
    PackagesFailedError,
    PhantomError,
    ScriptError,
    StageFailedError,
)
from pipeline.guest import appliance
from pipeline.guest.appliance import Drive, launched
from pipeline.guest.packages import list_packages
from pipeline.guest.programs import run_program
from pipeline.model import NoProgress
from pipeline.tools import run


def launch(folder: Path, monkeypatch: pytest.MonkeyPatch, script: str) -> PhantomError:
    """The error of an appliance in which a script takes QEMU's place when the machine starts."""
    qemu, disk = folder / "qemu", folder / "disk"
    disk.write_bytes(bytes(1 << 20))
    qemu.write_text(
        '#!/bin/sh\ncase "$*" in\n*socket,path=*) ;;\n*) exec qemu-system-x86_64 "$@" ;;\nesac\n'
        f"{script}\n"
    )
    qemu.chmod(0o755)
    monkeypatch.setenv("LIBGUESTFS_HV", str(qemu))
    with (
        pytest.raises(PhantomError) as caught,
        launched(
            [Drive(file=disk, name="disk")], store=folder, log=folder / "log", progress=NoProgress()
        ),
    ):
        pass
    return caught.value


@pytest.mark.slow
def test_binary_console_output_is_logged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    said = launch(
        tmp_path,
        monkeypatch,
        "printf 'not text: \\377\\n'; head -c 200000 /dev/zero | tr '\\0' x\n"
        "echo; echo end; exit 1",
    )
    assert type(said) is ApplianceError
    lines = (tmp_path / "log").read_text().splitlines()
    assert lines[0] == "not text: \N{REPLACEMENT CHARACTER}"
    assert lines[-1] == "end"
    assert {len(line) for line in lines[1:-1]} >= {64 << 10} and max(map(len, lines)) == 64 << 10


@pytest.mark.slow
def test_a_log_has_an_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(appliance, "_LARGEST_LOG", 1000)
    launch(tmp_path, monkeypatch, "yes | head -n 100000; exit 1")
    written = (tmp_path / "log").read_text()
    assert len(written) < 2000
    assert written.endswith("\n(what came after this is left out: the log is too large)\n")


@pytest.mark.slow
def test_a_log_that_cannot_be_written_keeps_nobody_from_working(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "log").symlink_to("/dev/full")
    said = launch(tmp_path, monkeypatch, "yes | head -n 100000; exit 1")
    assert type(said) is ApplianceError


@pytest.mark.slow
def test_an_interrupted_launch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stop = threading.Timer(3, run.stop_all)
    stop.start()
    said = launch(tmp_path, monkeypatch, "echo waiting; read -r line")
    stop.join()
    assert (type(said), str(said)) == (
        StageFailedError,
        "was interrupted\n  do: run the same command again",
    )


RPM = r"""#!/bin/sh
printf 'bash\t5.2\tx86_64\ngpg-pubkey\t1\t(none)\nno fields\nfour\t1\t2\t3\n\t1\tx86_64\n'
printf 'split\t1\fsplit\tx86_64\nseparated\342\200\250\t1\tx86_64\nzlib\t1.3\tx86_64\n'
"""


def make_system(folder: Path) -> Path:
    """A root file system with a working shell, taken from this host, and little else."""
    libraries = ("lib64/ld-linux-x86-64.so.2", "lib/x86_64-linux-gnu/libc.so.6")
    copied = {name: Path("/", name).read_bytes() for name in (*libraries, "bin/dash")}
    copied["usr/bin/env"] = Path("/usr/bin/env").read_bytes()
    odd = {"usr/bin/caf\udce9": "", "etc/init.d/gr\udcfcn": "", "etc/link": "-> caf\udce9"}
    rpm: dict[str, str | bytes] = {"usr/bin/rpm": RPM, "bin/broken": b"\x7fELF"}
    tree = {**DEBIAN, **copied, **odd, **rpm, "damaged/file": ""}
    made = make_ext(folder / "root.ext4", tree)
    words = ["debugfs", "-w", "-R", "set_inode_field /damaged block[0] 0", str(made)]
    subprocess.run(words, check=True, capture_output=True)
    return made


@pytest.mark.slow
def test_programs_and_names_of_an_image_that_is_made_to_confuse(tmp_path: Path) -> None:
    drive = Drive(file=make_system(tmp_path), name="root", writable=True)
    log = tmp_path / "log"
    with (
        pytest.raises(StageFailedError) as stopped,
        launched([drive], store=tmp_path, log=log, progress=NoProgress()) as guest,
    ):
        guest.handle.mount(drive.device, "/")
        for program in ("lib64/ld-linux-x86-64.so.2", "bin/dash", "bin/broken"):
            guest.handle.chmod(0o755, f"/{program}")
        for program in ("env", "rpm"):
            guest.handle.chmod(0o755, f"/usr/bin/{program}")
        image = image_of(guest, package_manager="yum")
        files = image.files

        # names that are not UTF-8
        assert {"env", "rpm"} <= set(image.programs)
        assert files.names(PurePosixPath("/etc/init.d")) == []
        assert files.read_link(PurePosixPath("/etc/link")) == PurePosixPath(
            "/etc/\N{REPLACEMENT CHARACTER}"
        )

        # the output of a package manager, and a package manager that is missing
        assert list_packages(image) == [
            ("bash", "5.2", "x86_64"),
            ("zlib", "1.3", "x86_64"),
        ]
        with pytest.raises(PackagesFailedError) as failed:
            list_packages(image_of(guest, package_manager="pacman"))
        assert failed.value.what == "pacman cannot list the image's packages"

        # a shell that does not work
        ended = run_program(image, ["/bin/sh", "-c", "exit 3"], seconds=60)
        assert ended.status == 3
        guest.handle.ln_sf("broken", "/bin/sh")
        with pytest.raises(ScriptError) as refused:
            run_program(image, ["/bin/dash", "-c", "true"], seconds=60)
        assert (
            refused.value.what == "programs cannot be run in the image: its /bin/sh does not work"
        )
        guest.handle.ln_sf("dash", "/bin/sh")

        # a folder that cannot be read
        with pytest.raises(FileSystemError) as damaged:
            files.names(PurePosixPath("/damaged"))
        assert damaged.value.what.startswith("the image's file system fails at /damaged: ")

        # the end of the whole command
        timer = threading.Timer(2, run.stop_all)
        timer.start()
        words = ["/bin/sh", "-c", "echo waiting; while :; do :; done"]
        run_program(image, words, seconds=60)
    assert str(stopped.value) == "was interrupted\n  do: run the same command again"
    assert log.read_text().endswith("waiting\n")
