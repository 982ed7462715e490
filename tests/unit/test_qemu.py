"""The command that starts a machine. `tests/boot` runs it."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import pytest

from pipeline.errors import HostError
from pipeline.machine import qemu
from pipeline.model import GIB, MIB, Machine

EC2 = Machine(
    name="uefi",
    firmware="uefi",
    board="q35",
    disk_bus="nvme",
    network_card="virtio-net-pci",
    memory=512 * MIB,
    cpus=2,
    metadata="ec2",
    metadata_address="169.254.169.254:80",
    network="169.254.169.0/24",
    spare=GIB,
)


def words_of(machine: Machine, disk: Path, option: str) -> list[str]:
    """The values of an option in the command."""
    command = qemu.command(machine, disk, qemu.Network(metadata_socket="phantom-1"), "tcg")
    return [command[place + 1] for place, word in enumerate(command) if word == option]


def test_machine_with_uefi(tmp_path: Path) -> None:
    disk = tmp_path / "a,b.raw"
    assert qemu.find_firmware() is not None
    code, _ = qemu.find_firmware() or (None, None)
    escaped = f"{tmp_path}/a,,b.raw"
    assert words_of(EC2, disk, "-drive") == [
        f"if=pflash,unit=0,format=raw,readonly=on,file={code}",
        f"if=pflash,unit=1,format=raw,file={escaped}.efivars",
        f"id=root,if=none,format=raw,cache=unsafe,file={escaped}",
    ]
    assert words_of(EC2, disk, "-device") == [
        "nvme,drive=root,serial=vol0123456789abcdef0",
        "virtio-net-pci,netdev=net",
    ]
    assert words_of(EC2, disk, "-netdev") == [
        "user,id=net,net=169.254.169.0/24,restrict=on,host=169.254.169.1,"
        "guestfwd=tcp:169.254.169.254:80-cmd:socat - ABSTRACT-CONNECT:phantom-1"
    ]


def test_machine_with_a_bios(tmp_path: Path) -> None:
    machine = replace(EC2, firmware="bios", board="pc")
    assert len(words_of(machine, tmp_path / "disk", "-drive")) == 1
    assert words_of(machine, tmp_path / "disk", "-machine") == ["pc,graphics=off"]


def test_other_networks_keep_qemu_s_own_gateway(tmp_path: Path) -> None:
    machine = replace(EC2, network="10.0.2.0/24", metadata_address="10.0.2.100:8000")
    assert words_of(machine, tmp_path / "disk", "-netdev") == [
        "user,id=net,net=10.0.2.0/24,restrict=on,"
        "guestfwd=tcp:10.0.2.100:8000-cmd:socat - ABSTRACT-CONNECT:phantom-1"
    ]


def test_ready_disk(tmp_path: Path) -> None:
    """The disk becomes larger than the image, and the firmware's variables are copied for it."""
    disk = tmp_path / "disk.raw"
    disk.write_bytes(b"content")
    os.truncate(disk, MIB)
    qemu.ready_disk(EC2, disk)
    assert disk.stat().st_size == MIB + GIB
    assert disk.read_bytes()[:7] == b"content"
    found = qemu.find_firmware()
    assert found is not None
    _, variables = found
    copy = tmp_path / "disk.raw.efivars"
    assert copy.read_bytes() == variables.read_bytes()
    assert copy.stat().st_ino != variables.stat().st_ino
    assert os.access(copy, os.W_OK)


def test_ready_disk_that_needs_nothing(tmp_path: Path) -> None:
    disk = tmp_path / "disk.raw"
    disk.write_bytes(bytes(MIB))
    qemu.ready_disk(replace(EC2, firmware="bios", spare=0), disk)
    assert disk.stat().st_size == MIB
    assert list(tmp_path.iterdir()) == [disk]


def test_no_firmware(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(qemu, "FIRMWARE_FOLDER", tmp_path)
    (tmp_path / "OVMF_CODE_4M.fd").touch()  # useless without its variables
    disk = tmp_path / "disk.raw"
    disk.write_bytes(bytes(MIB))
    with pytest.raises(HostError) as caught:
        qemu.ready_disk(EC2, disk)
    assert str(caught.value) == (
        "UEFI's firmware (OVMF) is not installed\n  do: `make setup` installs it"
    )


def test_older_firmware(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(qemu, "FIRMWARE_FOLDER", tmp_path)
    for name in ("OVMF_CODE.fd", "OVMF_VARS.fd"):
        (tmp_path / name).touch()
    assert qemu.find_firmware() == (tmp_path / "OVMF_CODE.fd", tmp_path / "OVMF_VARS.fd")


def test_further_services_of_this_host(tmp_path: Path) -> None:
    """Only what is named is reached."""
    network = qemu.Network(metadata_socket="m", services=(("169.254.169.200:8445", "p"),))
    command = qemu.command(EC2, tmp_path / "disk", network, "tcg")
    assert command[command.index("-netdev") + 1] == (
        "user,id=net,net=169.254.169.0/24,restrict=on,host=169.254.169.1,"
        "guestfwd=tcp:169.254.169.254:80-cmd:socat - ABSTRACT-CONNECT:m,"
        "guestfwd=tcp:169.254.169.200:8445-cmd:socat - ABSTRACT-CONNECT:p"
    )


def test_ports_of_this_host_lead_to_the_machine(tmp_path: Path) -> None:
    network = qemu.Network(metadata_socket="m", ssh_port=2222, forwards=((8080, 80), (5000, 443)))
    command = qemu.command(EC2, tmp_path / "disk", network, "tcg")
    netdev = command[command.index("-netdev") + 1]
    assert netdev.endswith(
        ",hostfwd=tcp:127.0.0.1:2222-:22,hostfwd=tcp:127.0.0.1:8080-:80,"
        "hostfwd=tcp:127.0.0.1:5000-:443"
    )
