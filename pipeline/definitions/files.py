"""Checks the files that a definition names, and what else a schema cannot check in it."""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any

from pipeline.customizations import CUSTOMIZATIONS
from pipeline.definitions.build_certificates import read_certificates
from pipeline.definitions.build_secrets import resolve_secrets
from pipeline.definitions.cluster import MAX_BYTES
from pipeline.definitions.copies import Grounds, OutsideError, Targets, is_text, walk
from pipeline.definitions.messages import label, quote, suggest
from pipeline.definitions.packages import is_file, read_package_file
from pipeline.definitions.waivers import make_waiver
from pipeline.definitions.yaml import Keys, YamlFile, reason, shown
from pipeline.file_copies import (
    Copy,
    FileCopy,
    FolderCopy,
    LinkCopy,
    Owner,
    PackageFile,
    TextCopy,
    TextFile,
)
from pipeline.model import MAX_USER_DATA, MIB, ApplianceBuild, parse_size
from pipeline.realfile import open_file
from pipeline.waiver import Waiver

URL_SCHEMES = ("http", "https", "s3")
"""The schemes of a base image's URL."""

MAX_DISK = parse_size("2TiB")  # an MBR counts 512-byte sectors in 32 bits

_SECTOR = 512
_TEMPLATE_WORDS = ("name", "version", "build", "layout")
_PRIVATE_KEY = re.compile(rb"-----BEGIN [A-Z ]*PRIVATE KEY-----")
_SCANNED_BYTES = 1 << 16  # a file with a private key has a few thousand bytes


def resolve(file: YamlFile, grounds: Grounds) -> Any:
    """A definition's data with sizes, paths and file copies instead of text. Files may come from
    the grounds alone.

    Adds mistakes to the file; without any, the result is complete.
    """
    return _Resolver(file, grounds).resolve(file.data, ())


@dataclass(frozen=True, kw_only=True)
class _Content:
    """A file that may be copied."""

    path: Path
    """Canonical."""
    head: bytes
    """Its first bytes."""
    size: int
    is_program: bool


class _Resolver:
    def __init__(self, file: YamlFile, grounds: Grounds) -> None:
        self._file = file
        self._folder = file.path.parent
        self._grounds = grounds
        self._targets = Targets()
        self._converters: dict[Keys, Callable[[Keys, Any], object]] = {
            ("disk_size",): self._size,
            ("clouds", "*", "disk_size"): self._size,
            ("clouds", "*", "image_name"): self._template,
            ("scripts", "*"): self._script,
            ("boot_check", "script"): self._script,
            ("boot_check", "cluster", "guests", "*", "script"): self._script,
            ("boot_check", "cluster", "guests", "*", "user_data"): partial(
                self._ascii_text, most=MAX_BYTES, why="user-data has at most {most:,}"
            ),
            ("source", "base_image", "location"): self._location,
            ("phantom", "user_data"): partial(
                self._ascii_text,
                most=MAX_USER_DATA,
                why="Phantom's database holds {most:,}: put the rest into the image",
            ),
            ("files",): self._copies,
            ("packages", "*"): self._package,
            ("build_certificates", "*"): self._certificates,
            ("build_secrets",): self._secrets,
            ("waive", "*"): self._waiver,
        }
        for key, customization in CUSTOMIZATIONS.items():
            for part in customization.text_files:
                self._converters[(key, *part)] = partial(
                    self._text_file, most=customization.text_bytes, decode=customization.decode
                )

    def resolve(self, value: Any, keys: Keys) -> Any:
        """A value in the model's terms; unchanged if it violates the schema."""
        if keys in self._file.refused:
            return value
        pattern = (*keys[:1], *("*" for _ in keys[1:2]), *keys[2:])
        of_lists = tuple("*" if isinstance(key, int) else key for key in keys)
        convert = next(filter(None, map(self._converters.get, (keys, pattern, of_lists))), None)
        if convert is not None:
            return convert(keys, value)
        if isinstance(value, dict):
            return {key: self.resolve(part, (*keys, key)) for key, part in value.items()}
        if isinstance(value, list):
            return [self.resolve(part, (*keys, index)) for index, part in enumerate(value)]
        return value

    def _add(self, keys: Keys, text: str) -> None:
        self._file.add(f"{label(keys)!r}: {text}", keys)

    def _size(self, keys: Keys, text: str) -> int:
        size = parse_size(text) // _SECTOR * _SECTOR  # a number of MB may end within a sector
        if not MIB <= size <= MAX_DISK:
            self._add(keys, f"{text} is not a valid disk size; it must be from 1MiB to 2TiB")
        return size

    def _waiver(self, keys: Keys, entry: Any) -> Waiver | Any:
        is_whole = all(self._file.text((*keys, part)) for part in ("rule", "reason"))
        return make_waiver(entry) if is_whole else entry

    def _template(self, keys: Keys, text: str) -> str:
        import string

        try:
            parts = list(string.Formatter().parse(text))
        except ValueError:
            self._add(keys, f"{text!r} has a brace without its other half")
            return text
        for _, word, form, conversion in parts:
            if word is None:
                continue
            if word not in _TEMPLATE_WORDS or form or conversion:
                known = ", ".join(f"{{{word}}}" for word in _TEMPLATE_WORDS)
                written = word + (f"!{conversion}" * bool(conversion)) + (f":{form}" * bool(form))
                self._add(keys, f"{{{written}}} is unknown; known are {known}")
        return text

    def _location(self, keys: Keys, value: str | dict[str, Any]) -> ApplianceBuild | Path | str:
        """The location, with a file's path made absolute. The plan checks whether the image exists,
        since the definition is correct even if the file has yet to be fetched."""
        if isinstance(value, dict):
            name, build = value.get("appliance", ""), value.get("build", "latest")
            return ApplianceBuild(name=name, build=build)
        scheme, colon, _ = value.partition("://")
        if not colon:
            return self._image(keys, value)
        return self._url(keys, scheme.lower() + value[len(scheme) :])

    def _image(self, keys: Keys, text: str) -> Path:
        """A base image's file. An absolute path says by itself where it is; a relative one must not
        lead out of the definition's folders unseen."""
        path = Path(os.path.abspath(self._folder / os.path.expanduser(text)))
        if text.startswith(("/", "~")):
            return path
        try:
            return self._grounds.resolve(text)
        except OutsideError as error:
            self._add(keys, f"{error}; write its absolute path")
        return path

    def _url(self, keys: Keys, url: str) -> str:
        from urllib.parse import urlsplit

        scheme, _, rest = url.partition("://")
        if scheme not in URL_SCHEMES:
            known = ", ".join(f"{scheme}://" for scheme in URL_SCHEMES)
            self._add(keys, f"{scheme}:// is not known; known are {known} and paths of files")
        elif "@" in rest.partition("/")[0]:
            self._add(keys, "holds a user's name or password; no secret goes into a definition")
        else:
            try:
                host = urlsplit(url).hostname
            except ValueError:
                host = None
            if not host:
                self._add(keys, f"{quote(url)} names no host")
        return url

    def _script(self, keys: Keys, text: str) -> Path:
        content = self._find(keys, text)
        if content is None:
            return self._folder / text
        first = content.head.split(b"\n", 1)[0]
        if not first.startswith(b"#!"):
            self._add(keys, f"{text!r} does not begin with '#!' and an interpreter")
        elif first.endswith(b"\r"):
            self._add(keys, f"{text!r} has Windows line ends; save it with Unix ones")
        return content.path

    def _ascii_text(self, keys: Keys, text: str, *, most: int, why: str) -> Path:
        """A file of user-data, of at most so many characters; `why` says why no more."""
        content = self._find(keys, text)
        if content is None:
            return self._folder / text
        alien = re.search(rb"[^\t\n\r\x20-\x7e]", content.head)
        if not content.head.strip():
            self._add(keys, f"{text!r} is empty; leave 'user_data' out")
        elif alien:
            line = content.head.count(b"\n", 0, alien.start()) + 1
            self._add(
                keys,
                f"{text!r} has byte 0x{alien[0][0]:02x} on line {line}; Phantom takes ASCII text "
                "only, others break its answers",
            )
        elif b"\r\n" in content.head:
            self._add(keys, f"{text!r} has Windows line ends; save it with Unix ones")
        elif content.size > most:
            reason = why.format(most=most)
            self._add(keys, f"{text!r} has {content.size:,} characters; {reason}")
        return content.path

    def _text_file(
        self, keys: Keys, text: str, *, most: int, decode: Callable[[bytes], str]
    ) -> TextFile | str:
        """A file whose text customizes the image; the name as it was if there is no such text."""
        content = self._find(keys, text, most)
        if content is None:
            return text
        if content.size > len(content.head):
            told = f"{text!r} has {content.size:,} bytes; at most {most:,} are allowed here"
            self._add(keys, told)
            return text
        try:
            read = decode(content.head)
        except UnicodeDecodeError:
            self._add(keys, f"{text!r} is not text in UTF-8")
            return text
        if "\r\n" in read:
            self._add(keys, f"{text!r} has Windows line ends; save it with Unix ones")
        elif "\0" in read:
            self._add(keys, f"{text!r} has a NUL byte")
        else:
            digest = hashlib.sha256(content.head).hexdigest()
            return TextFile(path=content.path, text=read, sha256=digest)
        return text

    def _certificates(self, keys: Keys, text: str) -> TextFile | str:
        """A file of certificates; the name as it was if it is none."""
        found = self._text_file(keys, text, most=_SCANNED_BYTES, decode=bytes.decode)
        if isinstance(found, TextFile):
            try:
                read_certificates(found.text)
            except ValueError as error:
                self._add(keys, f"{text!r} {error}")
                return text
        return found

    def _package(self, keys: Keys, text: str) -> PackageFile | str:
        """A package that is a file; a package's name, or one that has a mistake, as it was."""
        content = self._find(keys, text) if is_file(text) else None
        if content is None:
            return text
        try:
            return read_package_file(content.path, self._file.where(keys))
        except (OSError, ValueError) as error:
            self._add(keys, f"{text!r} {error}")
            return text

    def _resolve(self, keys: Keys, text: str) -> Path | None:
        """The canonical path of what a text names; adds a mistake and returns None if it lies where
        no file may come from."""
        try:
            return self._grounds.resolve(text)
        except OutsideError as error:
            self._add(keys, f"{error}; copy it there")
        except (OSError, ValueError) as error:
            self._add(keys, f"{quote(text)} cannot be read: {reason(error)}")
        return None

    def _find(self, keys: Keys, text: str, most: int = _SCANNED_BYTES) -> _Content | None:
        """The file that a text names; adds a mistake and returns None if it must not be copied."""
        path = self._resolve(keys, text)
        if path is None:
            return None
        try:
            if path.is_dir():
                self._add(keys, f"{text!r} is a folder; name a file")
                return None
            if not path.is_file():
                self._add(keys, missing(self._folder, text))
                return None
        except (OSError, ValueError) as error:
            self._add(keys, f"{quote(text)} cannot be read: {reason(error)}")
            return None
        return self._read(keys, text, path, most)

    def _read(
        self, keys: Keys, text: str, path: Path, most: int = _SCANNED_BYTES
    ) -> _Content | None:
        """Looks into a file with this canonical path."""
        try:
            with open_file(path) as stream:
                head, status = stream.read(most), os.fstat(stream.fileno())
        except (OSError, ValueError) as error:
            self._add(keys, f"{quote(text)} cannot be read: {reason(error)}")
            return None
        if _PRIVATE_KEY.search(head):
            self._add(
                keys, f"{text!r} holds a private key; no secret goes into a definition or an image"
            )
            return None
        is_program = bool(status.st_mode & 0o100)
        return _Content(path=path, head=head, size=status.st_size, is_program=is_program)

    def _secrets(self, keys: Keys, entries: list[object]) -> object:
        return resolve_secrets(self._file, self._grounds, entries)

    def _copies(self, keys: Keys, entries: list[object]) -> list[Copy]:
        return [copy for index in range(len(entries)) for copy in self._entry((*keys, index))]

    def _entry(self, keys: Keys) -> list[Copy]:
        from_keys, to_keys, text_keys = ((*keys, part) for part in ("from", "to", "content"))
        source, target = self._file.text(from_keys), self._file.text(to_keys)
        text = self._file.text(text_keys)
        if target is None or not self._has_one_content(keys, source, text):
            return []
        if {".", ".."} & set(target.split("/")):
            self._add(to_keys, f"{target!r} must not hold '.' or '..'")
            return []
        mode = self._file.text((*keys, "mode"))
        bits = int(mode, 8) if mode else None
        if source is None:
            if target.endswith("/"):
                self._add(to_keys, f"{target!r} is a folder; name the file")
                return []
            copies: list[Copy] = [
                TextCopy(target=PurePosixPath(target), text=text or "", mode=bits or 0o644)
            ]
        else:
            copies = self._copy(keys, source, target, bits)
        return self._check_targets(keys, self._owned(keys, target, copies))

    def _has_one_content(self, keys: Keys, source: str | None, text: str | None) -> bool:
        """Whether an entry says once what it brings; adds a mistake otherwise."""
        given = [
            part for part in ("from", "content") if self._file.value((*keys, part)) is not None
        ]
        if len(given) == 1:
            return source is not None or text is not None
        told = "'from' and 'content': give one of them"
        self._add(keys, told if given else "'from' or 'content' is missing")
        return False

    def _copy(self, keys: Keys, source: str, target: str, bits: int | None) -> list[Copy]:
        """What a file or folder of the definition becomes in the image."""
        from_keys, place = (*keys, "from"), PurePosixPath(target)
        path = self._resolve(from_keys, source)
        if path is None:
            return []
        try:
            if path.is_dir():
                return self._folder_copies(from_keys, source, path, place, bits)
            if target == "/":
                told = f"'/' is a folder, and {source!r} is a file; name the file"
                self._add((*keys, "to"), told)
                return []
            content = self._find(from_keys, source)
        except (OSError, ValueError) as error:
            self._add(from_keys, f"{quote(source)} cannot be read: {reason(error)}")
            return []
        if target.endswith("/"):
            place /= PurePosixPath(source).name
        return [] if content is None else [_copy(content, place, bits)]

    def _owned(self, keys: Keys, target: str, copies: list[Copy]) -> list[Copy]:
        """The copies with the owner that their entry names."""
        owner, group = (self._file.text((*keys, part)) for part in ("owner", "group"))
        if owner is None and group is None:
            return copies
        name = f"{owner or ''}:{group or ''}"
        top = PurePosixPath(target)
        return [
            replace(copy, owner=Owner(name=name, paths=(*_folders_between(top, copy), copy.target)))
            for copy in copies
        ]

    def _folder_copies(
        self, keys: Keys, source: str, path: Path, place: PurePosixPath, bits: int | None
    ) -> list[Copy]:
        """What a folder's content becomes in the image."""
        copies: list[Copy] = []
        found = walk(path)
        for each in found:
            name = os.path.normpath(os.path.join(source, each.below))
            if not is_text(str(each.below)):
                folder, name = os.path.split(name)
                self._add(keys, f"{folder!r} holds a file whose name is no text: {name!a}")
            elif each.kind == "folder":
                copies.append(FolderCopy(target=place / each.below))
            elif each.kind == "link" and is_text(each.leads_to):
                copies.append(LinkCopy(target=place / each.below, leads_to=each.leads_to))
            elif each.kind == "file":
                content = self._read(keys, name, path / each.below)
                if content is not None:
                    copies.append(_copy(content, place / each.below, bits))
            else:
                what = "leads to no text" if each.kind == "link" else "is no file, folder or link"
                self._add(keys, f"{name!r} {what}")
        if not found:
            self._add(keys, f"there is no file in {source!r}")
        return copies

    def _check_targets(self, keys: Keys, copies: list[Copy]) -> list[Copy]:
        """The copies that can be made; adds mistakes about the others."""
        line = self._file.line(keys)
        good = []
        for copy in copies:
            wrong = self._targets.add(copy, line)
            if wrong is None:
                good.append(copy)
            else:
                self._add(keys, wrong)
        return good


def _folders_between(top: PurePosixPath, copy: Copy) -> list[PurePosixPath]:
    """The folders that an entry copies above one of its files, the highest first; the entry's own
    target among them, unless that is the root directory."""
    parents = [
        folder for folder in reversed(copy.target.parents) if top in (folder, *folder.parents)
    ]
    return [folder for folder in parents if folder.parts[1:]]


def _copy(content: _Content, target: PurePosixPath, bits: int | None) -> FileCopy:
    if bits is None:
        # Git records only the owner's right to execute; other bits depend on the umask.
        bits = 0o755 if content.is_program else 0o644
    return FileCopy(source=content.path, target=target, mode=bits)


def missing(folder: Path, text: str) -> str:
    """The message for a missing file, with the most similar name in its folder."""
    path = folder / text
    try:
        names = sorted(os.listdir(path.parent))
    except OSError:
        names = []
    return f"there is no {quote(text)} in {shown(folder)}" + suggest(path.name, names)
