"""Rules of what belongs to one machine, or to the one that the image was made on."""

from __future__ import annotations

import re
from collections.abc import Iterator

from pipeline.checks.root import Root
from pipeline.checks.rule import Found, Rule
from pipeline.guest import cloud_init, identities

_SEEDS = (
    *("/var/lib/systemd/random-seed", "/var/lib/urandom/random-seed", "/var/lib/misc/random-seed"),
    *("/var/lib/systemd/credential.secret", "/boot/loader/random-seed", "/var/lib/seedrng"),
)
_LEASES = (
    *("/var/lib/dhcp", "/var/lib/dhcp3", "/var/lib/dhclient", "/var/lib/dhcpcd"),
    *("/var/lib/dhcpcd5", "/var/lib/NetworkManager", "/var/lib/wicked"),
)
_LEASE = re.compile(r".*(\.leases?|-intern\.conf|lease[^/]*\.xml|secret_key)")
_IDS = ("/etc/machine-id", "/var/lib/dbus/machine-id")


def _find_machine_ids(root: Root) -> Iterator[Found]:
    for path in _IDS:
        file = root.contents.files.get(root.contents.locate(path))
        if file is not None and file.is_file:
            text = root.contents.text(file.path).strip()
            if text not in ("", "uninitialized"):
                yield Found(path=file.path, detail="it is not empty")


def _find_seeds(root: Root) -> Iterator[Found]:
    for path in _SEEDS:
        file = root.contents.find(path)
        if file is not None and (file.is_file or any(root.inside(path))):
            yield Found(path=path, detail="a seed of random numbers")


def _find_identities(root: Root) -> Iterator[Found]:
    for path in identities.find(root.contents):
        yield Found(path=str(path), detail="a package made it when it was installed")


def _find_random_ids(root: Root) -> Iterator[Found]:
    known = {*map(root.contents.locate, map(str, identities.find(root.contents)))}
    known |= {*map(root.contents.locate, (*_IDS, *_SEEDS))}
    for match in root.matches:
        is_new = match.file.path not in known and not root.belongs_to_package(match.file)
        if match.kind == "random-id" and is_new:
            yield Found(path=match.file.path, detail="it holds nothing but a random identity")


def _find_host_name(root: Root) -> Iterator[Found]:
    for match in root.matches:
        if match.kind == "host-name" and not root.belongs_to_package(match.file):
            yield Found(path=match.file.path, detail="it names the host that built the image")


def _find_network_rules(root: Root) -> Iterator[Found]:
    for path in ("70-persistent-net.rules", "70-persistent-cd.rules"):
        text = root.contents.text(f"/etc/udev/rules.d/{path}")
        if re.search(r"(?m)^[ \t]*[A-Z]", text):
            yield Found(
                path=f"/etc/udev/rules.d/{path}", detail="it names another machine's devices"
            )


def _find_leases(root: Root) -> Iterator[Found]:
    for folder in _LEASES:
        for file in root.inside(folder):
            if file.is_file and file.size and _LEASE.fullmatch(file.path):
                yield Found(path=file.path, detail="a lease or key of another machine's network")


def _find_first_boots(root: Root) -> Iterator[Found]:
    for path in ("/var/lib/cloud/instances", "/var/lib/cloud/instance", "/var/lib/cloud/data"):
        if any(root.inside(path)):
            yield Found(path=path, detail="cloud-init remembers a machine that it ran on")
    for name in ("user-data", "instance"):
        if root.contents.find(f"/var/lib/phantom/{name}") is not None:
            detail = "the user-data fetcher remembers a machine that it ran on"
            yield Found(path=f"/var/lib/phantom/{name}", detail=detail)
    if root.contents.read(cloud_init.NODE_FILE):
        detail = "it names the metadata service of another machine"
        yield Found(path=str(cloud_init.NODE_FILE), detail=detail)


_ONE_FOR_ALL = "all machines of the image would share it"

RULES = (
    Rule(
        id="machine-id",
        severity="error",
        what="a machine-id",
        reason=f"{_ONE_FOR_ALL}: leases, journals and services that go by it mix them up",
        todo="empty /etc/machine-id, and make /var/lib/dbus/machine-id a link to it",
        find=_find_machine_ids,
    ),
    Rule(
        id="random-seed",
        severity="error",
        what="a seed of random numbers",
        reason=f"{_ONE_FOR_ALL}, and everybody who has the image knows it",
        todo="remove it; the system makes a new one at boot",
        find=_find_seeds,
    ),
    Rule(
        id="package-identity",
        severity="error",
        what="a key, id or name that a package made when it was installed",
        reason=_ONE_FOR_ALL,
        todo="remove it, and have each machine make its own at boot, as the element phantom-debian "
        "does for the packages in elements/phantom-debian/identities",
        find=_find_identities,
    ),
    Rule(
        id="random-identity",
        severity="warning",
        what="a file that holds nothing but a random identity",
        reason=_ONE_FOR_ALL,
        todo="remove it, and have each machine make its own at boot",
        find=_find_random_ids,
    ),
    Rule(
        id="build-host-name",
        severity="warning",
        what="the build host's name in a file",
        reason="it tells of the network that built the image, and is wrong on every machine",
        todo="write `localhost` in its place, or remove the file",
        find=_find_host_name,
    ),
    Rule(
        id="network-rules",
        severity="error",
        what="udev's rules for another machine's network card",
        reason="the network cards of new machines get other names than the settings expect",
        todo="remove the file",
        find=_find_network_rules,
    ),
    Rule(
        id="dhcp-lease",
        severity="error",
        what="a DHCP lease",
        reason="all machines would ask for the address of the machine that the image was made on",
        todo="remove the file",
        find=_find_leases,
    ),
    Rule(
        id="first-boot-done",
        severity="error",
        what="what cloud-init or the user-data fetcher noted on another machine",
        reason="a new machine may take itself for that one, and leave out its first boot",
        todo="remove it (`cloud-init clean`)",
        find=_find_first_boots,
    ),
)
