"""Checks and merges the packages of a definition."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from pipeline.definitions.messages import label
from pipeline.definitions.schema import DEBIAN_PACKAGE_PATTERN, DEFAULT_SOURCE
from pipeline.definitions.yaml import Keys, YamlFile
from pipeline.file_copies import PackageFile
from pipeline.model import split_pin
from pipeline.realfile import open_file
from pipeline.tools import deb

_OF_EVERY_MACHINE = "all"
_OF_BASE_IMAGES = ("amd64", "i386")


def is_file(text: str) -> bool:
    """Whether an entry of `packages` names a file."""
    return "/" in text


def read_package_file(path: Path, where: str) -> PackageFile:
    """The package in a file, by its canonical path, that an entry at `where` names. Raises OSError,
    NotPackageError."""
    with open_file(path) as file:
        fields = deb.read_control(file)
    return PackageFile(
        path=path,
        name=fields["Package"],
        version=fields["Version"],
        architecture=fields["Architecture"],
        where=where,
    )


def check_packages(files: Sequence[YamlFile], data: Sequence[Mapping[str, Any]]) -> None:
    """Adds to the files' mistakes packages that one file lists twice, those that are files for
    another architecture, and, without a base image, names that are none of Debian's, which are
    stricter than others. `data` are the files' in the model's terms."""
    found = (file.value(("source",)) for file in files)
    sources = [source for source in found if isinstance(source, dict)]
    of_base = bool(sources) and "base_image" in sources[0]
    known = _OF_BASE_IMAGES if of_base else (_architecture(sources),)
    for file, told in zip(files, data, strict=True):
        first: dict[str, tuple[str, Keys]] = {}
        for keys, text, package in _entries(file, told):
            if isinstance(package, PackageFile):
                name = package.name
                if package.architecture not in (_OF_EVERY_MACHINE, *known):
                    file.add(
                        f"{label(keys)!r}: {text!r} is for {package.architecture}, and the image "
                        f"is for {' or '.join(known)}",
                        keys,
                    )
            elif fault := _fault(text, of_base=of_base):
                file.add(f"{label(keys)!r}{fault}", keys)
                continue
            else:
                name = split_pin(text)[0]
            other, at = first.setdefault(name, (text, keys))
            if other != text:  # the schema reports what is simply repeated
                where = f"line {file.line(at)}"
                file.add(f"{label(keys)!r}: {where} asks for the same package, {other!r}", keys)
        _check_kept_out(file, first)


def _architecture(sources: Sequence[Mapping[str, Any]]) -> str:
    """That of an image from scratch."""
    for source in sources:
        scratch = source.get("scratch")
        if isinstance(scratch, dict) and isinstance(scratch.get("architecture"), str):
            return str(scratch["architecture"])
    return DEFAULT_SOURCE["architecture"]


def _entries(
    file: YamlFile, data: Mapping[str, Any]
) -> Iterator[tuple[Keys, str, str | PackageFile]]:
    """A file's entries of `packages`: where they stand, as they are written, and in the model's
    terms. Those with mistakes are left out."""
    packages = data.get("packages")
    for index, package in enumerate(packages if isinstance(packages, list) else ()):
        keys: Keys = ("packages", index)
        text = file.text(keys)
        if text is not None and (isinstance(package, PackageFile) or not is_file(text)):
            yield keys, text, package


def _fault(text: str, *, of_base: bool) -> str | None:
    """What is wrong with a package's name, if anything is."""
    if text.endswith(".deb"):
        return f": write './{text}' for a file beside the definition"
    if not of_base and not re.search(DEBIAN_PACKAGE_PATTERN, text):
        return f" must be the name of a Debian package, not {text!r}"
    return None


def _check_kept_out(file: YamlFile, asked: Mapping[str, tuple[str, Keys]]) -> None:
    """Adds mistakes for packages that a file asks for, and that the image is not to have."""
    without = file.value(("without_packages",))
    for index in range(len(without) if isinstance(without, list) else 0):
        keys = ("without_packages", index)
        text = file.text(keys)
        if text is not None and text in asked:
            file.add(f"{label(keys)!r}: line {file.line(asked[text][1])} asks for it", keys)


def _name(package: str | PackageFile) -> str:
    return package.name if isinstance(package, PackageFile) else split_pin(package)[0]


def split_files(
    packages: Sequence[str | PackageFile],
) -> tuple[tuple[str, ...], tuple[PackageFile, ...]]:
    """The packages that are asked for by name, and those that are files."""
    return (
        tuple(each for each in packages if isinstance(each, str)),
        tuple(each for each in packages if isinstance(each, PackageFile)),
    )


def keep_out(parent: Mapping[str, Any], child: Mapping[str, Any]) -> dict[str, Any]:
    """What is left of a definition's packages, and of those that it keeps out, for one that extends
    it: what the child says of a package replaces what the parent says of it."""
    left = dict(parent)
    for key, other in (("packages", "without_packages"), ("without_packages", "packages")):
        theirs = set(map(_name, child.get(other, ())))
        if theirs and key in left:
            left[key] = [each for each in left[key] if _name(each) not in theirs]
    return left


def merge_packages(
    parent: Sequence[str | PackageFile], child: Sequence[str | PackageFile]
) -> list[str | PackageFile]:
    """The packages of a definition and of the one that it extends: of two entries of one package,
    the child's is taken."""
    again, ours = {*child}, {*map(_name, child)}
    kept = [each for each in parent if each in again or _name(each) not in ours]
    known = {*kept}
    return kept + [package for package in child if package not in known]
