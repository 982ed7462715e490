"""What a build host must have. All programs are real except a QEMU with a broken KVM."""

from __future__ import annotations

import os
import shutil
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from pipeline.commands import doctor
from pipeline.commands.output import print_table
from pipeline.errors import HostError
from pipeline.machine import accelerator, host, qemu, requirements
from pipeline.stages.base import Stage
from pipeline.tools import grub, isolate
from pipeline.tools.run import ToolError


def test_the_guest_runs_under_tcg() -> None:
    assert 0 < accelerator.time_guest("tcg", accelerator.TCG_SECONDS) < accelerator.TCG_SECONDS


def test_a_guest_that_runs_too_long_is_ended() -> None:
    with pytest.raises(ToolError, match="qemu-system-x86_64 was ended by SIGKILL") as caught:
        accelerator.time_guest("tcg", 0.001)
    assert "it had not ended after 0.001 s" in str(caught.value)


def test_the_guest_is_what_its_comment_says(tmp_path: Path) -> None:
    """What the guest writes to the port decides QEMU's exit status."""
    sector = bytearray(accelerator._GUEST)
    assert len(sector) == 512
    sector[1] = 0x11
    disk = tmp_path / "disk"
    disk.write_bytes(sector)
    words = "qemu-system-x86_64 -nodefaults -display none -accel tcg -m 16 -device"
    device = "isa-debug-exit,iobase=0xf4,iosize=4"
    drive = f"format=raw,if=ide,file={disk}"
    ended = subprocess.run([*words.split(), device, "-drive", drive], check=False, timeout=30)
    assert ended.returncode == 2 * 0x11 + 1


@pytest.fixture
def kvm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A file in place of /dev/kvm that may be opened, whether or not this host has KVM."""
    device = tmp_path / "kvm"
    device.touch()
    monkeypatch.setattr(accelerator, "KVM", device)
    monkeypatch.setattr(accelerator, "KVM_SECONDS", 0.5)
    return device


@pytest.fixture
def calls(tmp_path: Path) -> Path:
    """The file to which a QEMU of `put_qemu` writes the accelerator of each call."""
    return tmp_path / "calls"


def put_qemu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kvm: str, tcg: str) -> None:
    """Puts first on the PATH a QEMU that does one thing under KVM and another under TCG."""
    folder = tmp_path / "programs"
    folder.mkdir(exist_ok=True)
    qemu = folder / "qemu-system-x86_64"
    qemu.write_text(
        "#!/bin/sh\n"
        f'case " $* " in\n*" -accel kvm "*) echo kvm >>{tmp_path}/calls; {kvm} ;;\n'
        f"*) echo tcg >>{tmp_path}/calls; {tcg} ;;\nesac\n"
    )
    qemu.chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")


@pytest.mark.parametrize(
    ("behaviour", "expected"),
    [
        ("exit 33", "kvm"),  # it works
        ("exec sleep 60", "tcg"),  # never answers
        ("sleep 0.9; exit 33", "tcg"),  # the right answer, much too late
        ("echo 'Assertion failed' >&2; kill -s ABRT $$", "tcg"),
        ("exit 1", "tcg"),
        ("exit 0", "tcg"),  # powers off and does not write to the port
    ],
)
@pytest.mark.usefixtures("kvm")
def test_kvm_is_believed_only_if_a_guest_ran(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, behaviour: str, expected: str
) -> None:
    put_qemu(tmp_path, monkeypatch, kvm=behaviour, tcg="exit 33")
    assert accelerator.find_accelerator() == expected


@pytest.mark.usefixtures("kvm")
def test_kvm_that_only_looks_quick_beside_a_host_under_load(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What another hypervisor imitates takes seconds of a processor, however long TCG takes."""
    monkeypatch.setattr(accelerator, "KVM_SECONDS", 60)
    spins = "i=0; while [ $i -lt 9000000 ]; do i=$((i + 1)); done; exit 33"
    put_qemu(tmp_path, monkeypatch, kvm=spins, tcg="sleep 1.5; exit 33")
    assert accelerator.find_accelerator() == "tcg"


@pytest.mark.usefixtures("kvm")
def test_a_broken_kvm_is_waited_for_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, calls: Path
) -> None:
    put_qemu(tmp_path, monkeypatch, kvm="exec sleep 60", tcg="exit 33")
    kept = tmp_path / "store"
    kept.mkdir()
    for _ in range(2):
        assert accelerator.find_accelerator(kept) == "tcg"
    assert calls.read_text() == "tcg\nkvm\n"
    monkeypatch.setattr(accelerator, "_known", {})  # as in a new process
    assert accelerator.find_accelerator(kept) == "tcg"
    assert calls.read_text() == "tcg\nkvm\n"


@pytest.mark.parametrize("damage", ["", "{", '{"host": "another boot", "accelerator": "kvm"}'])
@pytest.mark.usefixtures("kvm")
def test_an_answer_of_another_boot_or_a_damaged_one_does_not_count(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, damage: str
) -> None:
    put_qemu(tmp_path, monkeypatch, kvm="exit 1", tcg="exit 33")
    (tmp_path / "accelerator.json").write_text(damage)
    assert accelerator.find_accelerator(tmp_path) == "tcg"
    assert "tcg" in (tmp_path / "accelerator.json").read_text()


def test_without_the_device_nothing_is_tried(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, calls: Path
) -> None:
    put_qemu(tmp_path, monkeypatch, kvm="exit 33", tcg="exit 33")
    monkeypatch.setattr(accelerator, "KVM", tmp_path / "none")
    assert accelerator.find_accelerator(tmp_path) == "tcg"
    assert not calls.exists()


@pytest.mark.usefixtures("kvm")
def test_a_folder_that_is_not_there_only_costs_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    put_qemu(tmp_path, monkeypatch, kvm="exit 33", tcg="exit 33")
    assert accelerator.find_accelerator(tmp_path / "none") == "kvm"
    assert not (tmp_path / "none").exists()


@pytest.mark.parametrize(
    ("kvm_does", "tcg_does", "ok", "words"),
    [
        ("exit 33", "exit 33", True, "runs under KVM ("),
        ("exec sleep 60", "exit 33", None, "under KVM, it had not ended after 0.5 s"),
        ("echo no MSR 0x10a >&2; exit 1", "exit 33", None, "under KVM, no MSR 0x10a"),
        ("exit 33", "echo no firmware >&2; exit 1", False, "QEMU runs none: no firmware"),
    ],
)
@pytest.mark.usefixtures("kvm")
def test_finding_about_kvm_and_tcg(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    kvm_does: str,
    tcg_does: str,
    ok: bool | None,
    words: str,
) -> None:
    put_qemu(tmp_path, monkeypatch, kvm=kvm_does, tcg=tcg_does)
    finding = host._check_guest(tmp_path)
    assert finding.ok is ok
    assert words in finding.found
    assert (finding.mend is None) is (ok is True)


def test_this_host_can_build(tmp_path: Path) -> None:
    """`make setup` has run before the tests do; libguestfs launches for real."""
    findings = host.diagnose(tmp_path / "store")
    missing = [finding for finding in findings if finding.ok is False]
    assert missing == []
    assert not (tmp_path / "store").exists()
    names = [finding.name for finding in findings]
    assert len(set(names)) == len(names)
    requirements.require(["root", *requirements.NEEDS, "image", "hash"])


def test_a_host_that_has_nothing_is_told_of_everything(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(requirements, "search_path", lambda: str(tmp_path))
    for program in requirements.PROGRAMS:
        finding = program.check(tmp_path)
        assert (finding.ok, finding.found) == (False, "not installed")
        assert finding.mend == f"make setup   # or: sudo apt-get install {program.package}"


def test_an_old_program_is_a_warning(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program = tmp_path / "mke2fs"
    program.write_text("#!/bin/sh\necho 'mke2fs 1.9.7 (1-Jan-2001)' >&2\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    (mke2fs,) = (each for each in requirements.PROGRAMS if each.name == "mke2fs")
    finding = mke2fs.check(tmp_path)
    assert (finding.ok, finding.found) == (None, "1.9.7")
    assert finding.meaning == "writes file systems; builds were tested with 1.47 and newer"


def test_a_program_that_does_not_run_is_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program = tmp_path / "mke2fs"
    program.write_text("#!/bin/sh\necho 'cannot open shared object' >&2\nexit 127\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    (mke2fs,) = (each for each in requirements.PROGRAMS if each.name == "mke2fs")
    finding = mke2fs.check(tmp_path)
    assert (finding.ok, finding.mend) == (False, "sudo apt-get install --reinstall e2fsprogs")


@pytest.mark.parametrize(
    ("stages", "name", "package"),
    [
        (["disk"], "sfdisk", "fdisk"),
        (["boot"], "fdisk", "fdisk"),
        (["hash", "boot"], "fdisk", "fdisk"),
        (["disk for UEFI"], "mformat", "mtools"),
        (["drivers"], "debugfs", "e2fsprogs"),
    ],
)
def test_builds_are_told_the_first_thing_that_is_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stages: list[str], name: str, package: str
) -> None:
    monkeypatch.setattr(requirements, "search_path", lambda: str(tmp_path))
    with pytest.raises(HostError) as caught:
        requirements.require(stages)
    assert caught.value.what.startswith(f"{name} is not installed (")
    assert caught.value.todo == (
        f"`make setup` installs what is missing; or: sudo apt-get install {package}"
    )


@pytest.mark.parametrize(
    ("need", "name", "package"),
    [
        ("disk", "GRUB for BIOS", "grub-pc-bin"),
        ("disk for UEFI", "GRUB for UEFI", "grub-efi-amd64-bin"),
        ("boot by UEFI", "OVMF", "ovmf"),
    ],
)
def test_files_that_are_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, need: str, name: str, package: str
) -> None:
    monkeypatch.setattr(grub, "LIBRARY", tmp_path)
    monkeypatch.setattr(qemu, "FIRMWARE_FOLDER", tmp_path)
    with pytest.raises(HostError) as caught:
        requirements.require([need])
    assert str(caught.value) == (
        f"{name}: not installed\n  do: make setup   # or: sudo apt-get install {package}"
    )


def test_an_empty_path_still_finds_system_programs(monkeypatch: pytest.MonkeyPatch) -> None:
    """A user's PATH has no /usr/sbin on Debian, where mke2fs and sfdisk are."""
    monkeypatch.setenv("PATH", "")
    (mke2fs,) = (each for each in requirements.PROGRAMS if each.name == "mke2fs")
    assert mke2fs.find() is not None


def test_every_stage_that_is_checked_for_exists() -> None:
    import pipeline.build.plan
    import pipeline.sources.base_image
    import pipeline.sources.scratch  # noqa: F401 - together these import all stages

    names = {getattr(stage, "name", None) for stage in Stage.__subclasses__()}
    assert {need.split(" ")[0] for need in requirements.NEEDS} <= names
    known = {program.name for program in requirements.PROGRAMS} | {
        each.name for each in requirements.FILES
    }
    assert {name for needs in requirements.NEEDS.values() for name in needs} <= known


def test_findings_as_text(capsys: pytest.CaptureFixture[str]) -> None:
    findings = [
        requirements.Finding(name="a", ok=True, found="1.0", meaning="does this"),
        requirements.Finding(name="b", ok=None, found="old", meaning="is slow", mend="renew it"),
        requirements.Finding(name="c", ok=False, found="none", meaning="stops that", mend="get it"),
    ]
    print_table([doctor._row(finding) for finding in findings])
    assert capsys.readouterr().out == (
        "ok       a  1.0 - does this\n"
        "warning  b  old - is slow\n"
        "            mend: renew it\n"
        "missing  c  none - stops that\n"
        "            mend: get it\n"
    )


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become somebody else")
def test_a_user_without_rights(tmp_path: Path) -> None:
    """`nobody` has no range of users and may not use sudo: these checks still run, and their
    findings say so."""
    script = "\n".join(
        [
            "import os, sys",
            "from pathlib import Path",
            "from pipeline.machine import host",
            "os.setgroups([]); os.setgid(65534); os.setuid(65534)",
            "os.environ['HOME'] = '/nonexistent'",
            "for check in (host._check_rights, host._check_space, host._check_namespaces):",
            f"    finding = check(Path({str(tmp_path)!r}, 'store'))",
            "    print(finding.ok, finding.found, finding.meaning, finding.mend, sep=' | ')",
        ]
    )
    tmp_path.chmod(stat.S_IRWXU)
    told = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True, timeout=60
    ).stdout.splitlines()
    refused = "/etc/subuid gives this user 0 of 65535 numbers"
    block = f"{isolate.find_free()}-{isolate.find_free() + isolate.IDS - 1}"
    mend = f"sudo usermod --add-subuids {block} --add-subgids {block} nobody"
    if shutil.which("sudo"):
        found = "None | sudo asks for a password, or does not know this user"
        assert told[0] == f"{found} | definitions are root on this host: {refused} | {mend}"
    else:
        found = f"False | no user namespace ({refused}), no sudo, and this is not root"
        assert told[0] == f"{found} | nothing can be built | {mend}"
    assert told[1].startswith("False ")
    assert "which this user may not write to" in told[1]
    assert told[2].startswith("None | not tried without root's rights")
