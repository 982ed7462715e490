"""A private network of QEMU guests on this host, without root's rights: frames travel as datagrams
of a multicast group on the loopback interface, and this process answers DHCP there."""

from __future__ import annotations

import hashlib
import ipaddress
import socket
import struct
import threading
from collections.abc import Collection, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Self

from pipeline.errors import StageFailedError

_LOOPBACK = "127.0.0.1"
_FRAME = 65_535
_COOKIE = b"\x63\x82\x53\x63"
_DISCOVER, _OFFER, _REQUEST, _ACK, _NAK = 1, 2, 3, 5, 6
_MASK, _REQUESTED, _LEASE, _TYPE, _SERVER, _END = 1, 50, 51, 53, 54, 255
_FOREVER = b"\xff" * 4  # so no guest asks again of a server that may have gone
_BROADCAST = b"\xff" * 6
_OWN_MAC = bytes.fromhex("525400dc0001")
_FIRST_NUMBER, _LAST_NUMBER = 2, 254  # 1 is the DHCP server's
_IP, _UDP = b"\x08\x00", 17


@dataclass(frozen=True, kw_only=True)
class Group:
    """Where the frames of one network travel."""

    address: str
    port: int

    @property
    def netdev(self) -> str:
        """The network as a `-netdev` of QEMU has it, without an id."""
        return f"socket,mcast={self.address}:{self.port},localaddr={_LOOPBACK}"


def choose_group(name: str) -> Group:
    """The group of a network, by a name that no other network of this host has."""
    digest = hashlib.sha256(name.encode()).digest()
    port = 20_000 + int.from_bytes(digest[:2]) % 10_000
    return Group(address="239.{}.{}.{}".format(*digest[2:5]), port=port)


def choose_mac(name: str) -> str:
    """The address of a guest's card, by a name that no other guest of the network has."""
    return "52:54:00:" + hashlib.sha256(name.encode()).digest()[:3].hex(":")


def choose_number(used: Collection[int]) -> int:
    """The lowest number of an address in a network that no guest has. Raises StageFailedError."""
    for number in range(_FIRST_NUMBER, _LAST_NUMBER + 1):
        if number not in used:
            return number
    most = _LAST_NUMBER - _FIRST_NUMBER + 1
    raise StageFailedError(f"a private network has at most {most} machines")


class PrivateNetwork:
    """Answers DHCP in a group for as long as it is open; guests get addresses and no route.

    `leases` are the guests' addresses by those of their cards, and may change meanwhile; the
    server's own address is the first of `network`.
    """

    def __init__(
        self, group: Group, network: ipaddress.IPv4Network, leases: Mapping[str, str]
    ) -> None:
        self._group = group
        self._network = network
        self._leases = leases
        self._thread = threading.Thread(target=self._serve, name="PrivateNetwork", daemon=True)
        self._stopping = False
        self._socket: socket.socket

    def __enter__(self) -> Self:
        """Raises OSError."""
        joined = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        here = socket.inet_aton(_LOOPBACK)
        member = socket.inet_aton(self._group.address) + here
        try:
            joined.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            joined.bind((self._group.address, self._group.port))
            joined.setsockopt(socket.IPPROTO_IP, socket.IP_ADD_MEMBERSHIP, member)
            joined.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_IF, here)
            joined.settimeout(0.5)
        except OSError:
            joined.close()
            raise
        self._socket = joined
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stopping = True
        self._thread.join()
        self._socket.close()

    def _serve(self) -> None:
        while not self._stopping:
            with suppress(OSError):
                frame = self._socket.recv(_FRAME)
                answer = self.answer(frame)
                if answer is not None:
                    self._socket.sendto(answer, (self._group.address, self._group.port))

    def answer(self, frame: bytes) -> bytes | None:
        """The frame that answers a guest's; None where it asks for nothing, or is not known."""
        asked = _read_request(frame)
        if asked is None:
            return None
        mac, head, kind, wanted = asked
        address = self._leases.get(mac.hex(":"))
        if address is None or kind not in (_DISCOVER, _REQUEST):
            return None
        own, leased = self._network[1].packed, socket.inet_aton(address)
        told = _OFFER if kind == _DISCOVER else _ACK
        if kind == _REQUEST and wanted not in (leased, b""):
            told, leased = _NAK, bytes(4)
        options = [(_TYPE, bytes([told])), (_SERVER, own)]
        if told != _NAK:
            options += [(_MASK, self._network.netmask.packed), (_LEASE, _FOREVER)]
        packed = b"".join(bytes([code, len(value)]) + value for code, value in options)
        reply = bytearray(head)
        reply[0] = 2  # a reply
        reply[12:24] = bytes(4) + leased + own
        return _wrap(bytes(reply) + _COOKIE + packed + bytes([_END]), own)


def _read_request(frame: bytes) -> tuple[bytes, bytes, int, bytes] | None:
    """The card's address, BOOTP's head, the kind of message and the address that it wants, of a
    frame that asks a DHCP server; None for any other frame."""
    if len(frame) < 14 + 20 + 8 + 240 or frame[12:14] != _IP or frame[23] != _UDP:
        return None
    start = 14 + 4 * (frame[14] & 15) + 8
    if frame[start - 6 : start - 4] != struct.pack("!H", 67):
        return None
    head, body = frame[start : start + 236], frame[start + 240 :]
    if frame[start + 236 : start + 240] != _COOKIE or head[:3] != b"\x01\x01\x06":
        return None
    options = _read_options(body)
    kind, wanted = options.get(_TYPE, b""), options.get(_REQUESTED, head[12:16])
    if len(kind) != 1:
        return None
    return head[28:34], head, kind[0], wanted.strip(b"\0") and wanted


def _read_options(body: bytes) -> dict[int, bytes]:
    options: dict[int, bytes] = {}
    position = 0
    while position + 1 < len(body) and body[position] != _END:
        if body[position] == 0:  # padding
            position += 1
            continue
        code, length = body[position], body[position + 1]
        options[code] = body[position + 2 : position + 2 + length]
        position += 2 + length
    return options


def _wrap(payload: bytes, own: bytes) -> bytes:
    """An Ethernet frame with a datagram of the DHCP server for everybody."""
    udp = struct.pack("!HHHH", 67, 68, 8 + len(payload), 0) + payload
    head = struct.pack("!BBHHHBBH", 0x45, 0, 20 + len(udp), 0, 0, 64, _UDP, 0) + own + b"\xff" * 4
    total = sum(struct.unpack("!10H", head))
    total = (total & 0xFFFF) + (total >> 16)
    total = (total & 0xFFFF) + (total >> 16)
    head = head[:10] + struct.pack("!H", total ^ 0xFFFF) + head[12:]
    return _BROADCAST + _OWN_MAC + _IP + head + udp
