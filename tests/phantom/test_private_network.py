"""DHCP on the private network of guests, by the frames that a guest sends and gets."""

from __future__ import annotations

import ipaddress
import socket
import struct
from pathlib import Path

import pytest

from pipeline.machine.private_network import Group, PrivateNetwork, choose_group, choose_mac

NETWORK = ipaddress.IPv4Network("10.99.1.0/24")
MAC = choose_mac("i-00000001")
DISCOVER, OFFER, REQUEST, ACK, NAK = 1, 2, 3, 5, 6


def ask(kind: int, wanted: str | None = None, mac: str = MAC) -> bytes:
    """The frame of a guest's request."""
    card = bytes.fromhex(mac.replace(":", ""))
    head = bytearray(236)
    head[0:3], head[4:8], head[28:34] = b"\x01\x01\x06", b"abcd", card
    options = bytes([53, 1, kind])
    if wanted is not None:
        options += bytes([50, 4]) + socket.inet_aton(wanted)
    body = bytes(head) + b"\x63\x82\x53\x63" + options + b"\xff" + bytes(60)
    udp = struct.pack("!HHHH", 68, 67, 8 + len(body), 0) + body
    to = bytes(4) + b"\xff" * 4
    ip = struct.pack("!BBHHHBBH", 0x45, 0, 20 + len(udp), 0, 0, 64, 17, 0) + to
    return b"\xff" * 6 + card + b"\x08\x00" + ip + udp


def read(frame: bytes) -> tuple[int, str, str]:
    """The kind of an answer, its address, and what it answers."""
    words = struct.unpack("!10H", frame[14:34])
    total = sum(words)
    assert (total & 0xFFFF) + (total >> 16) == 0xFFFF  # the checksum of IP
    head, options = frame[42:278], frame[282:]
    assert options[0] == 53
    return options[2], socket.inet_ntoa(head[16:20]), head[4:8].decode()


@pytest.fixture
def network(tmp_path: Path) -> PrivateNetwork:
    return PrivateNetwork(choose_group(str(tmp_path)), NETWORK, {MAC: "10.99.1.7"})


@pytest.mark.parametrize(
    ("kind", "wanted", "told"),
    [
        (DISCOVER, None, (OFFER, "10.99.1.7", "abcd")),
        (DISCOVER, "10.99.1.9", (OFFER, "10.99.1.7", "abcd")),
        (REQUEST, "10.99.1.7", (ACK, "10.99.1.7", "abcd")),
        (REQUEST, "10.99.1.9", (NAK, "0.0.0.0", "abcd")),
    ],
)
def test_a_guest_gets_its_address(
    network: PrivateNetwork, kind: int, wanted: str | None, told: tuple[int, str, str]
) -> None:
    answer = network.answer(ask(kind, wanted))
    assert answer is not None
    assert read(answer) == told


def test_other_frames_get_no_answer(network: PrivateNetwork) -> None:
    assert network.answer(ask(DISCOVER, mac="52:54:00:00:00:00")) is None
    assert network.answer(ask(4, "10.99.1.7")) is None
    whole = ask(DISCOVER)
    for size in range(len(whole)):  # cut anywhere
        network.answer(whole[:size])
    for at in range(len(whole)):
        network.answer(whole[:at] + bytes([whole[at] ^ 0xFF]) + whole[at + 1 :])


def test_frames_travel_on_the_loopback_interface(tmp_path: Path) -> None:
    group: Group = choose_group(str(tmp_path))
    here = socket.inet_aton("127.0.0.1")
    with (
        PrivateNetwork(group, NETWORK, {MAC: "10.99.1.7"}),
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as guest,
    ):
        member = socket.inet_aton(group.address) + here
        guest.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        guest.bind((group.address, group.port))
        guest.setsockopt(socket.IPPROTO_IP, socket.IP_ADD_MEMBERSHIP, member)
        guest.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_IF, here)
        guest.settimeout(30)
        guest.sendto(ask(DISCOVER), (group.address, group.port))
        frames = [guest.recv(2000), guest.recv(2000)]  # one's own comes back
    assert [read(frame)[0] for frame in frames if frame[38 - 4 : 36] == b"\x00\x43"] == [OFFER]
