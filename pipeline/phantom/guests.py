"""Machines that are QEMU guests: each starts from the published image of a sandbox site, with a
metadata service of its own, and sees the others of its domain on a private network.

One unpacked image serves all guests of it: what a guest writes goes to an overlay.
"""

from __future__ import annotations

import hashlib
import ipaddress
import json
import os
import shutil
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import BinaryIO

from pipeline import records, sparse
from pipeline.clouds import Cloud, metadata_service
from pipeline.disk import decompress
from pipeline.errors import StageFailedError
from pipeline.files import make_folder, write_atomically
from pipeline.machine import qemu
from pipeline.machine.local_http import make_socket_name
from pipeline.machine.metadata import MetadataServer
from pipeline.machine.node import edit_as_node
from pipeline.machine.private_network import (
    Group,
    PrivateNetwork,
    choose_group,
    choose_mac,
    choose_number,
)
from pipeline.model import Machine
from pipeline.phantom.machines import Order, ProcessMachines
from pipeline.tools.run import capture

_DISK, _OVERLAY, _RECORD, _KEY = "disk.raw", "disk.qcow2", "guest.json", "phantomkey"
_SHAPE = {
    "domain": int,
    "number": int,
    "cloud": str,
    "base": records.FILE_NAME,
    "socket": str,
    "user_data": (str, None),
}


@dataclass(frozen=True, kw_only=True)
class GuestSite:
    """A sandbox site, and its folder on this host."""

    cloud: Cloud
    folder: Path

    @property
    def machine(self) -> Machine:
        """The machine that the site starts."""
        return self.cloud.machines[0]

    def open_image(self, image_id: str) -> BinaryIO:
        """A published image's file. Raises StageFailedError."""
        opened = self.cloud.open_kept(self.folder, image_id)
        if opened is None:
            raise StageFailedError(
                f"the site keeps no image {image_id[:200]!r} on this host",
                where=f"site {self.cloud.site.name}",
                todo="publish it to this site by `phantom-image image`; only sandbox sites of "
                "cloud nimbus keep the images that they are sent",
            )
        return opened


@dataclass(frozen=True, kw_only=True)
class _Guest:
    """What has to be known of a running guest to serve it again."""

    domain: int
    number: int
    """Of its address in the private network."""
    cloud: str
    base: str
    """The folder of its disk's base."""
    socket: str
    user_data: str | None


class Guests(ProcessMachines):
    """QEMU guests of some sites. `accelerator` says how QEMU runs them."""

    def __init__(
        self, folder: Path, sites: Mapping[str, GuestSite], accelerator: Callable[[], str]
    ) -> None:
        super().__init__(folder / "machines")
        self._root = folder
        self._bases = folder / "bases"
        self._sites = sites
        self._accelerator = accelerator
        self._guests: dict[str, _Guest] = {}
        self._services: dict[str, ExitStack] = {}
        self._networks: dict[int, ExitStack] = {}
        self._leases: dict[int, dict[str, str]] = {}

    def command(self, order: Order, folder: Path) -> Sequence[str]:
        site = self._sites[order.site]
        base = self._make_base(site, order.image_id)
        guest = _Guest(
            domain=order.domain,
            number=self._choose_number(order.domain),
            cloud=site.machine.metadata,
            base=base.name,
            socket=make_socket_name(),
            user_data=order.user_data,
        )
        write_atomically(folder / _RECORD, json.dumps(vars(guest)))
        overlay = folder / _OVERLAY
        qemu.make_overlay(base / _DISK, overlay)
        self._serve(order.machine, guest)
        network = qemu.Network(
            metadata_socket=guest.socket,
            private=(self._group(order.domain).netdev, choose_mac(order.machine)),
        )
        return qemu.command(site.machine, overlay, network, self._accelerator(), format="qcow2")

    def adopt(self, machines: Collection[str]) -> None:
        make_folder(self._bases)
        super().adopt(machines)
        for machine in self.running():
            told = records.read(self._folder / machine / _RECORD, _SHAPE)
            if told is not None:
                self._serve(machine, _Guest(**{name: told[name] for name in _SHAPE}))
        used = {guest.base for guest in self._guests.values()}
        for base in self._bases.iterdir():
            if base.name not in used:
                shutil.rmtree(base)

    def end(self, machine: str) -> None:
        super().end(machine)
        guest = self._guests.pop(machine, None)
        self._services.pop(machine, ExitStack()).close()
        if guest is None:
            return
        self._leases[guest.domain].pop(choose_mac(machine), None)
        if not self._leases[guest.domain]:
            self._networks.pop(guest.domain, ExitStack()).close()
            del self._leases[guest.domain]

    # ---- what a guest needs of this process

    def _serve(self, machine: str, guest: _Guest) -> None:
        """Starts a guest's metadata service, and its network's DHCP if it is the first. Raises
        StageFailedError for user-data that the cloud refuses, OSError."""
        data = None if guest.user_data is None else guest.user_data.encode()
        try:
            service = metadata_service(guest.cloud)(user_data=data, public_key=self._public_key())
        except ValueError as error:
            raise StageFailedError(str(error), todo="make the user-data shorter") from error
        self._guests[machine] = guest
        leases = self._leases.setdefault(guest.domain, {})
        network = _network_of(guest.domain)
        leases[choose_mac(machine)] = str(network[guest.number])
        if guest.domain not in self._networks:
            with ExitStack() as opened:
                opened.enter_context(PrivateNetwork(self._group(guest.domain), network, leases))
                self._networks[guest.domain] = opened.pop_all()
        with ExitStack() as stack:
            stack.enter_context(MetadataServer(service, private=True, socket_name=guest.socket))
            self._services[machine] = stack.pop_all()

    def _group(self, domain: int) -> Group:
        return choose_group(f"{self._root.absolute()}/{domain}")

    def _choose_number(self, domain: int) -> int:
        used = {guest.number for guest in self._guests.values() if guest.domain == domain}
        return choose_number(used)

    def _public_key(self) -> str:
        """The key `phantomkey`, which a node writes into images; made when it is first needed."""
        key = self._root / _KEY
        public = key.with_suffix(".pub")
        if not public.exists():
            key.unlink(missing_ok=True)
            capture(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", _KEY, "-f", str(key)])
        return public.read_text().rstrip("\n")

    # ---- disks

    def _make_base(self, site: GuestSite, image_id: str) -> Path:
        """The folder with an image's disk as the site's node readies it; made for the first guest
        of the image. Raises StageFailedError, what readying a disk raises, OSError."""
        with site.open_image(image_id) as image:
            status = os.fstat(image.fileno())
            about = (site.cloud.site.name, image_id, status.st_ino, status.st_mtime_ns)
            name = hashlib.sha256(repr(about).encode()).hexdigest()[:32]
            made = self._bases / name
            if made.exists():
                return made
            work = self._bases / f"{name}.new"
            if work.exists():
                shutil.rmtree(work)
            make_folder(work)
            disk = work / _DISK
            _unpack(image, disk)
        machine = site.machine
        url = f"http://{machine.metadata_address}"
        edit_as_node(machine, disk, self._public_key(), url)
        qemu.ready_disk(machine, disk)
        work.rename(made)
        return made


def _network_of(domain: int) -> ipaddress.IPv4Network:
    return ipaddress.IPv4Network(f"10.99.{domain % 256}.0/24")


def _unpack(image: BinaryIO, disk: Path) -> None:
    """Makes a sparse disk of an image, which may be gzipped. Raises StageFailedError, OSError."""
    compression = decompress.detect(image.read(16))
    image.seek(0)
    with disk.open("wb") as written:
        if compression is None:
            size = os.fstat(image.fileno()).st_size
            written.truncate(size)
            for offset, chunk in sparse.data_chunks(image.fileno(), size):
                sparse.write_at(written.fileno(), chunk, offset)
            return
        at = 0
        try:
            for chunk in decompress.read(image, partial(decompress.make, compression)):
                if chunk.count(0) != len(chunk):
                    sparse.write_at(written.fileno(), chunk, at)
                at += len(chunk)
        except decompress.errors() as error:
            raise StageFailedError(f"the published image is damaged: {error}") from error
        written.truncate(at)
