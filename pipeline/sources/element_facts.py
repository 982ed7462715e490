"""What elements say of themselves, for what is planned before anything is built.

An element may have a file `from-scratch.yaml`:

    releases: [bookworm, trixie]     an operating-system element's: what `source.scratch` may name
    architectures: [amd64]
    prefers: [systemd-timesyncd]     of the packages that it asks for, those that it can do without
    leaves_out: [/usr/share/man/*]   an operating-system element's: patterns of packages' files that
                                     the image is to be without
    keeps: [/usr/share/man/man8/*]   patterns of those among them that it gets all the same
    initramfs: [etc/initramfs-tools] an operating-system element's files and folders, below static/,
                                     that decide the initramfs, which is made with the packages

A preferred package is left out where another package of the image conflicts with it: the element
then works with what took its place.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from pipeline.customizations import needed_packages
from pipeline.errors import DefinitionError
from pipeline.model import Appliance, ScratchSource
from pipeline.tools import dib
from pipeline.tools.apt_request import Wanted, element_asker

FILE = "from-scratch.yaml"


@dataclass(frozen=True, kw_only=True)
class ElementFacts:
    """What one element says of itself; an empty tuple where it does not say."""

    releases: tuple[str, ...] = ()
    architectures: tuple[str, ...] = ()
    prefers: tuple[str, ...] = ()
    leaves_out: tuple[str, ...] = ()
    keeps: tuple[str, ...] = ()
    initramfs: tuple[str, ...] = ()


def read_facts(element: Path) -> ElementFacts:
    """What the element in a folder says. Raises DefinitionError for a file with mistakes."""
    file = element / FILE
    if not file.is_file():
        return ElementFacts()
    import yaml

    try:
        told = yaml.safe_load(file.read_text())
    except (ValueError, yaml.YAMLError):
        told = None
    known = ElementFacts.__dataclass_fields__
    if not isinstance(told, Mapping) or not all(
        key in known and isinstance(words, list) and all(isinstance(word, str) for word in words)
        for key, words in told.items()
    ):
        raise DefinitionError(
            f"not a mapping of {', '.join(known)} to lists of words",
            where=str(file),
            todo="correct the element",
        )
    return ElementFacts(**{key: tuple(words) for key, words in told.items()})


def check_supported(appliance: Appliance, source: ScratchSource, element: Path) -> None:
    """Raises DefinitionError unless the operating-system element, which lies in this folder, knows
    the release and the architecture, or does not say which it knows."""
    if dib.is_shipped(element):
        raise DefinitionError(
            f"the element {source.element} of diskimage-builder does not write a root file system "
            "as this pipeline needs it",
            where=appliance.positions.find("source", "scratch", "element"),
            todo="name phantom-debian, or an element of your own that does as it does",
        )
    facts = read_facts(element)
    for key, asked, known in (
        ("release", source.release, facts.releases),
        ("architecture", source.architecture, facts.architectures),
    ):
        if known and asked not in known:
            raise DefinitionError(
                f"the operating-system element {source.element} does not support the {key} "
                f"{asked!r}; it supports {', '.join(known)}",
                where=appliance.positions.find("source", "scratch", key),
                todo="name one that it supports, or start from a base image (docs/base-images.md)",
            )


def wanted_packages(
    appliance: Appliance, elements: Mapping[str, Path], asked: Mapping[str, str]
) -> list[Wanted]:
    """What an appliance asks for, and what its elements ask for: each with who asks. `asked` has
    the element of each of their packages."""
    find = appliance.positions.find
    wanted = [
        Wanted.parse(package, asker=find("packages", package)) for package in appliance.packages
    ]
    wanted += [Wanted.parse(file.name, asker=file.where) for file in appliance.package_files]
    preferred = {name: read_facts(folder).prefers for name, folder in elements.items()}
    for package, element in asked.items():
        each = Wanted.parse(package, asker=element_asker(element))
        if each.name in appliance.without_packages:
            continue
        wanted.append(replace(each, preferred=each.name in preferred.get(element, ())))
    if appliance.login_user != "root" and "sudo" not in (each.name for each in wanted):
        # A user who is made at boot becomes root by it.
        wanted.append(Wanted.parse("sudo", asker=find("login", "user")))
    known = {each.name for each in wanted}
    for package, key in needed_packages(appliance.customizations).items():
        if package not in known:
            wanted.append(Wanted.parse(package, asker=find(key)))
    return wanted


def unwanted_packages(appliance: Appliance) -> list[Wanted]:
    """What an appliance is not to have, each with its place."""
    find = appliance.positions.find
    return [
        Wanted.parse(package, asker=find("without_packages", package))
        for package in appliance.without_packages
    ]
