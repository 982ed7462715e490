"""The image's network: DHCP on any card, whatever its name and address.

No cloud tells more, and cloud-init, which would configure the network in many images, is off on
some of them. Each function here changes one kind of configuration, and nothing where it does DHCP
on every card already.
"""

from __future__ import annotations

import configparser
import re
from collections.abc import Callable, Container, Iterable, Iterator, Mapping
from fnmatch import fnmatchcase
from pathlib import PurePosixPath

from pipeline.guest import services
from pipeline.guest.files import ImageFiles
from pipeline.guest.system import System

NAMES = ("eth0", "eno1", "ens3", "ens5", "enp0s3", "enX0")
"""What cards are called, by kernels and by udev, on machines of Phantom's clouds."""

_ETC = PurePosixPath("/etc")
_NETWORKD = _ETC / "systemd/network"
_NETPLAN = _ETC / "netplan"
_INTERFACES = _ETC / "network/interfaces"
_NETWORK_MANAGER = _ETC / "NetworkManager"
_IFCFG = (_ETC / "sysconfig/network-scripts", _ETC / "sysconfig/network")

# What cloud-init wrote for the machine that the base image ran on.
_RENDERED = re.compile(
    r"50-cloud-init(\.(cfg|yaml))?|10-cloud-init-.*\.(network|link)|cloud-init-.*\.nmconnection"
)
_RENDERED_MARK = b"Created by cloud-init"

_NETWORKD_FILE = """\
# Written by phantom-image: every card that no other file here is for.
[Match]
Type=ether
Kind=!*

[Network]
DHCP=yes

[DHCPv4]
ClientIdentifier=mac
"""
_NETPLAN_FILE = """\
# Written by phantom-image: every card, whatever its name.
network:
  version: 2
  ethernets:
    zz-phantom:
      match: {name: "e*"}
      dhcp4: true
      dhcp-identifier: mac
"""
_STANZA = """
# Written by phantom-image: the machine's first card, by the kernel's own name.
auto eth0
iface eth0 inet dhcp
"""
_LOOPBACK = "auto lo\niface lo inet loopback\n"
_CONNECTION = """\
[connection]
id=phantom-dhcp
type=ethernet
autoconnect-priority=-100
multi-connect=3

[ipv4]
method=auto

[ipv6]
method=auto
"""
_IFCFG_FILE = "DEVICE=eth0\nTYPE=Ethernet\nBOOTPROTO=dhcp\nONBOOT=yes\nNM_CONTROLLED=no\n"

_LARGEST_YAML = 1 << 16  # characters; what is longer is no network configuration


def kernel_options(files: ImageFiles, system: System) -> tuple[str, ...]:
    """What the kernel's command line has to have for the network to come up: some configurations
    name their cards, so the names must be the same on every machine."""
    if "network-scripts" in system.networks:
        return ("net.ifnames=0", "biosdevname=0")
    if "ifupdown" in system.networks and not _has_helper(files):
        return ("net.ifnames=0",)
    return ()


def configure(files: ImageFiles, system: System, programs: Container[str]) -> None:
    """Has the image, which has these programs, ask for an address by DHCP on the machine's card, by
    whatever is enabled there."""
    remove_rendered(files)
    for manager in system.networks:
        _MANAGERS[manager](files)
    if not system.networks and "networkctl" in programs:
        _configure_networkd(files)
        _enable_resolver(files)
    if kernel_options(files, system):
        # Where the site gives the kernel, its command line is not ours.
        files.link(_NETWORKD / "99-default.link", "/dev/null")
        files.link(_ETC / "udev/rules.d/80-net-setup-link.rules", "/dev/null")


def remove_rendered(files: ImageFiles) -> None:
    """Removes what cloud-init wrote for the cards of another machine."""
    folders = (
        _NETPLAN,
        _NETWORKD,
        _INTERFACES.with_name("interfaces.d"),
        _NETWORK_MANAGER / "system-connections",
    )
    for folder in folders:
        for name in filter(_RENDERED.fullmatch, files.names(folder)):
            files.remove(folder / name)
    for folder in _IFCFG:
        for name in files.names(folder):
            if name.startswith("ifcfg-") and _RENDERED_MARK in (files.read(folder / name) or b""):
                files.remove(folder / name)
    files.remove(_ETC / "udev/rules.d/85-persistent-net-cloud-init.rules")


def covers(patterns: Iterable[str]) -> bool:
    """Whether every card's name matches one of the patterns."""
    wanted = list(patterns)
    return all(any(fnmatchcase(name, each) for each in wanted) for name in NAMES)


def _read(files: ImageFiles, path: PurePosixPath) -> str:
    return (files.read(path) or b"").decode("utf-8", "replace")


# ---- systemd-networkd


def _enable_resolver(files: ImageFiles) -> None:
    """Where networkd is to tell the machine its name servers: nothing else writes resolv.conf."""
    path, unit = _ETC / "resolv.conf", "systemd-resolved.service"
    link = files.read_link(path)
    if services.find_unit(files, unit) is None or (link is None and files.exists(path)):
        return
    if link is None:
        files.link(path, "../run/systemd/resolve/stub-resolv.conf")
    if link is None or "systemd/resolve" in link:
        services.enable_unit(files, unit)


def _configure_networkd(files: ImageFiles) -> None:
    for name in files.names(_NETWORKD):
        if name.endswith(".network") and _is_one_address(_read(files, _NETWORKD / name)):
            files.remove(_NETWORKD / name)
    if not covers(_networkd_patterns(files)):
        files.write(_NETWORKD / "99-phantom-dhcp.network", _NETWORKD_FILE)
    for unit in ("systemd-networkd.service", "systemd-networkd-wait-online.service"):
        services.enable_unit(files, unit)


def _networkd_patterns(files: ImageFiles) -> Iterator[str]:
    """The names of cards that files of systemd-networkd do DHCP on, wherever they are plugged."""
    for folder in (_NETWORKD, *(PurePosixPath(each) for each in _NETWORKD_VENDORS)):
        for name in files.names(folder):
            if name.endswith(".network"):
                yield from _dhcp_patterns(_read(files, folder / name))


_NETWORKD_VENDORS = ("/usr/lib/systemd/network", "/lib/systemd/network")


def _parse(text: str) -> configparser.RawConfigParser:
    """A file of sections; empty where it is none."""
    parser = configparser.RawConfigParser(strict=False, allow_no_value=True, delimiters=("=",))
    try:
        parser.read_string(text)
    except configparser.Error:
        return configparser.RawConfigParser()
    return parser


def _is_one_address(text: str) -> bool:
    """Whether a file gives one card, by its name or its own address, an address of a machine's."""
    parser = _parse(text)
    match = dict(parser["Match"]) if parser.has_section("Match") else {}
    name = (match.get("name") or "").strip()
    one = set(match) == {"macaddress"} or (set(match) == {"name"} and _is_one_card(name))
    return one and "\nAddress=" in text.replace(" ", "") and not _does_dhcp(parser)


def _is_one_card(name: str) -> bool:
    return _is_card(name) and re.fullmatch(r"\w+", name) is not None


def _does_dhcp(parser: configparser.RawConfigParser) -> bool:
    dhcp = parser.get("Network", "DHCP", fallback="no") or "no"
    return dhcp.strip().lower() in ("yes", "true", "both", "ipv4", "v4", "1")


def _dhcp_patterns(text: str) -> Iterator[str]:
    parser = _parse(text)
    match = dict(parser["Match"]) if parser.has_section("Match") else {}
    if not _does_dhcp(parser):
        return
    names = (match.pop("name", None) or "").split()
    general = {"type": "ether", "kind": "!*"}
    if any(general.get(key) != value for key, value in match.items()):
        return  # one machine's card, by its address or its path
    if names:
        yield from names
    elif "type" in match:
        yield "*"


# ---- netplan


def _configure_netplan(files: ImageFiles) -> None:
    for name in files.names(_NETPLAN):
        if name.endswith(".yaml") and _plans_addresses(_read(files, _NETPLAN / name)):
            files.remove(_NETPLAN / name)
    patterns: list[str] = []
    for folder in (_NETPLAN, PurePosixPath("/usr/lib/netplan"), PurePosixPath("/lib/netplan")):
        for name in files.names(folder):
            if name.endswith(".yaml"):
                patterns += _netplan_patterns(_read(files, folder / name))
    if not covers(patterns):
        files.write(_NETPLAN / "zz-phantom-dhcp.yaml", _NETPLAN_FILE, 0o600)


def _load_plan(text: str) -> Mapping[object, object]:
    import yaml

    try:
        loaded = yaml.safe_load(text[:_LARGEST_YAML])
    except (yaml.YAMLError, RecursionError, ValueError):
        return {}
    return _mapping(_mapping(loaded).get("network"))


def _plans_addresses(text: str) -> bool:
    """Whether a file has nothing but cards with addresses of a machine's."""
    network = _load_plan(text)
    cards = [_mapping(card) for card in _mapping(network.get("ethernets")).values()]
    alone = set(network) <= {"version", "renderer", "ethernets"}
    return (
        bool(cards)
        and alone
        and all("addresses" in card and card.get("dhcp4") is not True for card in cards)
    )


def _netplan_patterns(text: str) -> Iterator[str]:
    for card in _mapping(_load_plan(text).get("ethernets")).values():
        match = _mapping(_mapping(card).get("match"))
        if _mapping(card).get("dhcp4") is True and set(match) == {"name"}:
            yield str(match["name"])


def _mapping(value: object) -> Mapping[object, object]:
    return value if isinstance(value, Mapping) else {}


# ---- ifupdown


def _configure_interfaces(files: ImageFiles) -> None:
    if _has_helper(files):
        return
    folder = _INTERFACES.with_name("interfaces.d")
    main = _read(files, _INTERFACES)
    names = files.names(folder) if re.search(_SOURCES, main) else []
    others = {folder / name: _read(files, folder / name) for name in names}
    if _has_dhcp("\n".join([main, *others.values()])):
        return
    for path, text in others.items():
        if (left := _without_cards(text)) != text:
            files.write(path, left)
    left = _without_cards(main)
    if not re.search(r"(?m)^\s*iface\s+lo\s", left):
        left = f"{_LOOPBACK}{left}"
    files.write(_INTERFACES, f"{left.rstrip()}\n{_STANZA}")


# What has the main file's own folder read.
_SOURCES = r"(?m)^\s*source(-directory)?\s+\S*interfaces\.d\b"


def _has_helper(files: ImageFiles) -> bool:
    """As in Debian's cloud images, where each card that appears gets DHCP."""
    return files.exists(_INTERFACES.with_name("cloud-ifupdown-helper"))


def _has_dhcp(text: str) -> bool:
    """Whether eth0, and no other card, comes up by DHCP."""
    started = {
        name
        for line in re.findall(r"(?m)^\s*(?:auto|allow-\w+)\s+(.*)$", text)
        for name in line.split()
    }
    found = re.findall(r"(?m)^\s*iface\s+(\S+)\s+inet\s+(\w+)", text)
    cards = [(name, method) for name, method in found if _is_card(name)]
    return cards == [("eth0", "dhcp")] and "eth0" in started


def _is_card(name: str) -> bool:
    return re.match(r"e(th|n)", name) is not None


def _without_cards(text: str) -> str:
    """Without the stanzas of single cards: one that is missing would fail the whole service."""
    kept, dropping = [], False
    for line in text.splitlines(keepends=True):
        words = line.split()
        if words and re.fullmatch(r"iface|mapping|auto|allow-\w+|source.*|no-.*", words[0]):
            dropping = words[0] in ("iface", "mapping") and _is_card("".join(words[1:2]))
            if words[0] == "auto" or words[0].startswith("allow-"):
                names = [word for word in words[1:] if not _is_card(word)]
                kept += [f"{' '.join([words[0], *names])}\n"] if names else []
                continue
        if not dropping:
            kept.append(line)
    return "".join(kept)


# ---- NetworkManager


def _configure_network_manager(files: ImageFiles) -> None:
    """It does DHCP on every card by itself, unless told not to."""
    connections = _NETWORK_MANAGER / "system-connections"
    for name in files.names(connections):
        if _is_manual(_parse(_read(files, connections / name))):
            files.remove(connections / name)
    folders = (_NETWORK_MANAGER / "conf.d", PurePosixPath("/usr/lib/NetworkManager/conf.d"))
    paths = [folder / name for folder in folders for name in files.names(folder)]
    paths.append(_NETWORK_MANAGER / "NetworkManager.conf")
    if any(re.search(r"(?m)^\s*no-auto-default", _read(files, path)) for path in paths):
        files.write(connections / "phantom-dhcp.nmconnection", _CONNECTION, 0o600)


def _is_manual(parser: configparser.RawConfigParser) -> bool:
    """Whether a connection gives one card an address of a machine's."""
    kind = parser.get("connection", "type", fallback="")
    named = parser.has_option("connection", "interface-name") or any(
        parser.has_option(section, "mac-address") for section in ("ethernet", "802-3-ethernet")
    )
    manual = parser.get("ipv4", "method", fallback="") == "manual"
    return kind in ("ethernet", "802-3-ethernet") and named and manual


# ---- Red Hat's and SUSE's scripts


def _configure_scripts(files: ImageFiles) -> None:
    folder = next((each for each in _IFCFG if files.is_folder(each)), _IFCFG[0])
    main = folder / "ifcfg-eth0"
    for name in files.names(folder):
        if _is_card(name.removeprefix("ifcfg-")) and name != main.name:
            files.remove(folder / name)
    text = _read(files, main)
    lines = [line for line in text.splitlines() if not re.match(r"\s*(HWADDR|UUID)=", line)]
    left = "".join(f"{line}\n" for line in lines)
    if not re.search(r"(?mi)^\s*BOOTPROTO=[\"']?dhcp", left):
        left = _IFCFG_FILE
    if left != text:
        files.write(main, left)
    settings = _ETC / "sysconfig/network"
    if folder == _IFCFG[0] and "NETWORKING=" not in _read(files, settings):
        files.write(settings, f"NETWORKING=yes\n{_read(files, settings)}")


_MANAGERS: Mapping[str, Callable[[ImageFiles], None]] = {
    "networkd": _configure_networkd,
    "ifupdown": _configure_interfaces,
    "netplan": _configure_netplan,
    "NetworkManager": _configure_network_manager,
    "network-scripts": _configure_scripts,
}
