"""The image's network: DHCP on any card, whatever its name and address.

DHCP is all that the clouds have in common, and cloud-init, which configures the network of many
images, is off on some of them. Each function here changes one kind of configuration, unless it does
DHCP on every card already.
"""

from __future__ import annotations

import configparser
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from fnmatch import fnmatchcase
from pathlib import PurePosixPath

from pipeline.disk.untrusted import lines_of
from pipeline.guest import services
from pipeline.guest.files import ImageFiles
from pipeline.guest.image import Image

NAMES = ("eth0", "eno1", "ens3", "ens5", "enp0s3", "enX0")
"""What cards are called, by kernels and by udev, on machines of Phantom's clouds."""

_ETC = PurePosixPath("/etc")
_NETWORKD = _ETC / "systemd/network"
_NETPLAN = _ETC / "netplan"
_VENDORS = (PurePosixPath("/usr/lib"), PurePosixPath("/lib"))
_INTERFACES = _ETC / "network/interfaces"
_NETWORK_MANAGER = _ETC / "NetworkManager"
_IFCFG = (_ETC / "sysconfig/network-scripts", _ETC / "sysconfig/network")

# What cloud-init wrote for the machine that the base image ran on.
_RENDERED = re.compile(
    r"50-cloud-init(\.(cfg|yaml))?|10-cloud-init-.*\.(network|link)|cloud-init-.*\.nmconnection"
)
_RENDERED_MARK = "Created by cloud-init"

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


def kernel_options(image: Image) -> tuple[str, ...]:
    """The kernel options without which the network does not come up: some configurations name
    their cards, so the names must be the same on every machine."""
    if "network-scripts" in image.system.networks:
        return ("net.ifnames=0", "biosdevname=0")
    if "ifupdown" in image.system.networks and not _has_helper(image.files):
        return ("net.ifnames=0",)
    return ()


def configure(image: Image) -> None:
    """Has the image's network managers ask for an address by DHCP on the machine's card."""
    files, networks = image.files, image.system.networks
    remove_rendered(files)
    for manager in networks:
        _MANAGERS[manager](files)
    if not networks and "networkctl" in image.programs:
        _configure_networkd(files)
        _enable_resolver(files)
    if kernel_options(image):
        # A site with a kernel of its own decides the command line too.
        files.link(_NETWORKD / "99-default.link", "/dev/null")
        files.link(_ETC / "udev/rules.d/80-net-setup-link.rules", "/dev/null")


def remove_rendered(files: ImageFiles) -> None:
    """Removes the files that cloud-init wrote for the cards of another machine."""
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
            if name.startswith("ifcfg-") and _RENDERED_MARK in files.read(folder / name):
                files.remove(folder / name)
    files.remove(_ETC / "udev/rules.d/85-persistent-net-cloud-init.rules")


def covers(patterns: Iterable[str]) -> bool:
    """Whether every card's name matches one of the patterns."""
    wanted = list(patterns)
    return all(any(fnmatchcase(name, pattern) for pattern in wanted) for name in NAMES)


def _texts(
    files: ImageFiles, suffix: str, *folders: PurePosixPath
) -> Iterator[tuple[PurePosixPath, str]]:
    """The files in folders whose names end so, with their content."""
    for path in (folder / name for folder in folders for name in files.names(folder)):
        if path.name.endswith(suffix):
            yield path, files.read(path)


# ---- systemd-networkd


def _enable_resolver(files: ImageFiles) -> None:
    """Enables systemd-resolved, which gives the name servers of networkd to resolv.conf."""
    path, unit = _ETC / "resolv.conf", "systemd-resolved.service"
    link = files.read_link(path)
    if services.find_unit(files, unit) is None or (link is None and files.exists(path)):
        return
    if link is None:
        files.link(path, "../run/systemd/resolve/stub-resolv.conf")
    if link is None or "systemd/resolve" in str(link):
        services.enable_unit(files, unit)


def _configure_networkd(files: ImageFiles) -> None:
    for path, text in _texts(files, ".network", _NETWORKD):
        if _is_one_address(text):
            files.remove(path)
    texts = _texts(files, ".network", _NETWORKD, *(lib / "systemd/network" for lib in _VENDORS))
    if not covers(pattern for _path, text in texts for pattern in _dhcp_patterns(text)):
        files.write(_NETWORKD / "99-phantom-dhcp.network", _NETWORKD_FILE)
    for unit in ("systemd-networkd.service", "systemd-networkd-wait-online.service"):
        services.enable_unit(files, unit)


def _parse(text: str) -> configparser.RawConfigParser:
    """The sections of a file; no section if it cannot be parsed."""
    parser = configparser.RawConfigParser(strict=False, allow_no_value=True, delimiters=("=",))
    try:
        parser.read_string(text)
    except (configparser.Error, AttributeError):  # as for a line that goes on without a value
        return configparser.RawConfigParser()
    return parser


def _is_one_address(text: str) -> bool:
    """Whether a file gives one card, chosen by its name or MAC address, a fixed address."""
    parser = _parse(text)
    match = dict(parser["Match"]) if parser.has_section("Match") else {}
    name = (match.get("name") or "").strip()
    named = _is_card(name) and re.fullmatch(r"\w+", name) is not None
    one = set(match) == {"macaddress"} or (set(match) == {"name"} and named)
    return one and "\nAddress=" in text.replace(" ", "") and not _does_dhcp(parser)


def _does_dhcp(parser: configparser.RawConfigParser) -> bool:
    dhcp = parser.get("Network", "DHCP", fallback="no") or "no"
    return dhcp.strip().lower() in ("yes", "true", "both", "ipv4", "v4", "1")


def _dhcp_patterns(text: str) -> Iterator[str]:
    """The patterns of card names on which networkd does DHCP, whatever slot the card is in."""
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
    for path, text in _texts(files, ".yaml", _NETPLAN):
        if _plans_addresses(text):
            files.remove(path)
    texts = _texts(files, ".yaml", _NETPLAN, *(lib / "netplan" for lib in _VENDORS))
    if not covers(pattern for _path, text in texts for pattern in _netplan_patterns(text)):
        files.write(_NETPLAN / "zz-phantom-dhcp.yaml", _NETPLAN_FILE, 0o600)


def _load_plan(text: str) -> Mapping[object, object]:
    import yaml

    class Loader(yaml.SafeLoader):
        def flatten_mapping(self, node: yaml.MappingNode) -> None:
            """Merge keys, by which a few lines can become any number of values, are an error."""

    odd = (RecursionError, ValueError, LookupError, TypeError, AttributeError, OverflowError)
    try:
        loaded = yaml.load(text[:_LARGEST_YAML], Loader=Loader)  # noqa: S506 (a SafeLoader)
    except (yaml.YAMLError, *odd):  # PyYAML's constructors raise those
        return {}
    return _mapping(_mapping(loaded).get("network"))


def _plans_addresses(text: str) -> bool:
    """Whether a file has only cards with fixed addresses."""
    network = _load_plan(text)
    cards = [_mapping(card) for card in _mapping(network.get("ethernets")).values()]
    if not cards or not set(network) <= {"version", "renderer", "ethernets"}:
        return False
    return all("addresses" in card and card.get("dhcp4") is not True for card in cards)


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
    main = files.read(_INTERFACES)
    # Whether the main file has its own folder read.
    sources = re.search(r"(?m)^[ \t]*source(-directory)?[ \t]+\S*interfaces\.d\b", main)
    names = files.names(folder) if sources else []
    others = {folder / name: files.read(folder / name) for name in names}
    if _has_dhcp("\n".join([main, *others.values()])):
        return
    for path, text in others.items():
        if (left := _without_cards(text)) != text:
            files.write(path, left)
    left = _without_cards(main)
    if not re.search(r"(?m)^[ \t]*iface[ \t]+lo\s", left):
        left = f"{_LOOPBACK}{left}"
    files.write(_INTERFACES, f"{left.rstrip()}\n{_STANZA}")


def _has_helper(files: ImageFiles) -> bool:
    """Whether Debian's helper for cloud images is there, which does DHCP on every new card."""
    return files.exists(_INTERFACES.with_name("cloud-ifupdown-helper"))


def _has_dhcp(text: str) -> bool:
    """Whether eth0 is the only card that comes up, and does so by DHCP."""
    cards: list[tuple[str, list[str]]] = []
    started: set[str] = set()
    for words in map(str.split, lines_of(text)):
        if re.fullmatch(r"auto|allow-\w+", words[0] if words else ""):
            started |= {*words[1:]}
        elif words[:1] == ["iface"] and words[2:3] == ["inet"] and _is_card(words[1]):
            cards.append((words[1], words[3:4]))
    return cards == [("eth0", ["dhcp"])] and "eth0" in started


def _is_card(name: str) -> bool:
    return re.match(r"e(th|n)", name) is not None


def _without_cards(text: str) -> str:
    """The text without the stanzas of cards: a missing card would fail the whole service."""
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
    for path, text in _texts(files, "", connections):
        if _is_manual(_parse(text)):
            files.remove(path)
    folders = (_NETWORK_MANAGER / "conf.d", PurePosixPath("/usr/lib/NetworkManager/conf.d"))
    texts = [text for _path, text in _texts(files, "", *folders)]
    texts.append(files.read(_NETWORK_MANAGER / "NetworkManager.conf"))
    if any(re.search(r"(?m)^[ \t]*no-auto-default", text) for text in texts):
        files.write(connections / "phantom-dhcp.nmconnection", _CONNECTION, 0o600)


def _is_manual(parser: configparser.RawConfigParser) -> bool:
    """Whether a connection gives one card a fixed address."""
    kind = parser.get("connection", "type", fallback="")
    named = parser.has_option("connection", "interface-name") or any(
        parser.has_option(section, "mac-address") for section in ("ethernet", "802-3-ethernet")
    )
    manual = parser.get("ipv4", "method", fallback="") == "manual"
    return kind in ("ethernet", "802-3-ethernet") and named and manual


# ---- Red Hat's and SUSE's scripts


def _configure_scripts(files: ImageFiles) -> None:
    folder = next(filter(files.is_folder, _IFCFG), _IFCFG[0])
    main = folder / "ifcfg-eth0"
    for name in files.names(folder):
        if _is_card(name.removeprefix("ifcfg-")) and name != main.name:
            files.remove(folder / name)
    text = files.read(main)
    lines = [line for line in text.splitlines() if not re.match(r"\s*(HWADDR|UUID)=", line)]
    left = "".join(f"{line}\n" for line in lines)
    if not re.search(r"(?mi)^[ \t]*BOOTPROTO=[\"']?dhcp", left):
        left = _IFCFG_FILE
    if left != text:
        files.write(main, left)
    settings = _ETC / "sysconfig/network"
    if folder == _IFCFG[0] and "NETWORKING=" not in files.read(settings):
        files.write(settings, f"NETWORKING=yes\n{files.read(settings)}")


_MANAGERS: Mapping[str, Callable[[ImageFiles], None]] = {
    "networkd": _configure_networkd,
    "ifupdown": _configure_interfaces,
    "netplan": _configure_netplan,
    "NetworkManager": _configure_network_manager,
    "network-scripts": _configure_scripts,
}
