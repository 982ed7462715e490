"""pip, which fetches wheels for the Python of an image.

It runs with the build host's Python, and builds nothing: only wheels are taken. Of the host's pip
configuration only what reaches the network counts. A requirement's digests decide what may come.
"""

from __future__ import annotations

import ast
import os
import re
import sys
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from urllib.parse import urlsplit

from pipeline.customizations.python import Requirement
from pipeline.errors import (
    ChecksumError,
    HostError,
    MirrorError,
    PhantomError,
    UnknownPackageError,
)
from pipeline.model import Progress
from pipeline.resources import setup_hint
from pipeline.secret_forms import hiding
from pipeline.tools import run

_PIP = (sys.executable, "-m", "pip")
_SECTIONS = ("global", "download", ":env:")  # those that come later win
_NETWORK = {
    *("index-url", "extra-index-url", "find-links", "no-index", "trusted-host", "keyring-provider"),
    *("cert", "client-cert", "proxy", "timeout", "default-timeout", "retries"),
}
_CERTIFICATES = ("SSL_CERT_FILE", "SSL_CERT_DIR", "REQUESTS_CA_BUNDLE")
_UNREACHABLE = re.compile(
    r"connection broken by|Could not fetch URL (?!.*404 Client Error)|HTTPS?ConnectionPool|"
    r"ConnectionError|Read ?timed out|IncompleteRead|problem confirming the ssl certificate"
)
_UNKNOWN = re.compile(
    r"Could not find a version that satisfies the requirement (?P<name>\S+?)==\S+ .*"
    r"\(from versions: (?P<versions>[^)]*)\)"
)
_MISMATCH = re.compile(
    r"DO NOT MATCH THE HASHES.*?^ +(?P<name>[A-Za-z0-9._-]+?)(==|\[| ).*?"
    r"Got +(?P<got>[0-9a-f]{64})",
    re.DOTALL | re.MULTILINE,
)
_TOO_NEW = re.compile(r"(?<=[ ;])(?P<version>\S+) Requires-Python (?P<wanted>[^;\n]+)")
_REFUSED = re.compile(
    r"Package '(?P<name>[^']+)' requires a different Python: \S+ not in '(?P<wanted>[^']+)'"
)
_SKIPPED = re.compile(r"Skipping link: .*?(?P<file>[^/\s]+(\.whl|\.tar\.gz|\.zip|\.tar\.bz2))\b")
_MOST_TOLD = 6


@dataclass(frozen=True, kw_only=True)
class Target:
    """The system that wheels are for: CPython on Linux."""

    python: str
    """Two numbers, as in `3.11`."""
    glibc: str
    """The C library's version, as in `2.36`."""
    machine: str
    """As in `x86_64`."""
    full: str = field(default="", compare=False, metadata={"key": False})
    """Python's version with its third number, which some packages ask for; empty where it is not
    known: then pip asks in the image. It decides whether a file may be taken, never which."""

    def platforms(self) -> Iterator[str]:
        """The platform tags whose wheels work there, the best first (PEP 600)."""
        major, minor = map(int, self.glibc.split("."))
        older = {17: "manylinux2014", 12: "manylinux2010", 5: "manylinux1"}
        for number in range(minor, 4, -1):
            yield f"manylinux_{major}_{number}_{self.machine}"
            if number in older:
                yield f"{older[number]}_{self.machine}"
        yield f"linux_{self.machine}"


def check_installed() -> None:
    """Whether this Python has pip. Raises HostError."""
    if find_spec("pip") is None:
        raise HostError(
            f"pip is not installed for {sys.executable} (fetches packages of Python)",
            todo=f"{setup_hint()}; or: {sys.executable} -m ensurepip",
        )


def download(
    requirements: Sequence[Requirement],
    target: Target,
    folder: Path,
    *,
    known: Path,
    file: str,
    log: Path,
    progress: Progress,
) -> None:
    """Fetches the wheel of each requirement into an empty folder. What the folder `known` has is
    taken from there. `file` names the requirements' file in messages.

    Raises UnknownPackageError, ChecksumError, MirrorError, HostError, ToolError, NoSpaceError.
    """
    settings = _settings()
    pins = folder.with_suffix(".txt")
    pins.write_text("".join(f"{pin(each, each.hashes)}\n" for each in requirements))
    command = [
        *_command(target),
        *("--require-hashes", "--requirement", str(pins)),
        *("--find-links", str(known), "--dest", str(folder)),
    ]
    try:
        run.run(
            command,
            env=_environment(settings),
            log=log,
            progress=progress,
            hidden=hiding((), _passwords(settings)),
        )
    except run.ToolError as error:
        lines = log.read_text(errors="replace")
        raised = _explain(lines, requirements, target, file, settings)
        if raised is None:
            raise
        raised.log, raised.detail = log, error.detail
        raise raised from error


def pin(requirement: Requirement, hashes: Collection[str]) -> str:
    """The line of a requirements file for exactly this version, with these digests."""
    digests = " ".join(f"--hash=sha256:{each}" for each in hashes)
    return f"{requirement.name}=={requirement.version} {digests}"


def _command(target: Target) -> list[str]:
    abi = f"cp{target.python.replace('.', '')}"
    return [
        *_PIP,
        *("download", "--no-input", "--disable-pip-version-check", "--no-cache-dir"),
        *("--progress-bar", "off", "--no-deps", "--only-binary", ":all:"),
        *("--implementation", "cp", "--python-version", target.full or target.python),
        *(() if target.full else ("--ignore-requires-python",)),
        *(word for each in (abi, "abi3", "none") for word in ("--abi", each)),
        *(word for each in target.platforms() for word in ("--platform", each)),
    ]


def _settings() -> dict[str, str]:
    """What the host's pip configuration, files and environment, says of the network."""
    pip = {name: value for name, value in os.environ.items() if name.startswith("PIP_")}
    listed = run.capture([*_PIP, "--disable-pip-version-check", "config", "list"], env=pip)
    found: dict[str, dict[str, str]] = {section: {} for section in _SECTIONS}
    for line in listed.splitlines():
        name, _, quoted = line.partition("=")
        section, _, key = name.rpartition(".")
        with suppress(ValueError, SyntaxError):
            if section in found and key in _NETWORK:
                found[section][key] = " ".join(str(ast.literal_eval(quoted)).split())
    return {key: value for section in _SECTIONS for key, value in found[section].items()}


def _environment(settings: Mapping[str, str]) -> dict[str, str]:
    names = {key: f"PIP_{key.upper().replace('-', '_')}" for key in settings}
    return {
        **run.proxy_environment(),
        **{name: os.environ[name] for name in _CERTIFICATES if name in os.environ},
        **{names[key]: value for key, value in settings.items()},
        "PIP_CONFIG_FILE": os.devnull,
    }


def _passwords(settings: Mapping[str, str]) -> Iterator[str]:
    """The passwords and tokens in addresses, which no log gets."""
    for word in " ".join(settings.values()).split():
        with suppress(ValueError):
            parts = urlsplit(word)
            if parts.scheme and parts.username:
                yield parts.password or parts.username


def _explain(
    output: str,
    requirements: Sequence[Requirement],
    target: Target,
    file: str,
    settings: Mapping[str, str],
) -> PhantomError | None:
    """The error that pip's output tells of; None for one that is not known."""
    by_name = {each.name: each for each in requirements}
    mismatch = _MISMATCH.search(output)
    if mismatch and (wanted := _find(by_name, mismatch["name"])):
        return ChecksumError(
            f"the index's file of {wanted.name} {wanted.version} has the SHA-256 "
            f"{mismatch['got']}, which is none of its {len(wanted.hashes)} in the requirements",
            where=f"{file}:{wanted.line}",
            todo="see where the file came from before you trust it; `pip-compile "
            "--generate-hashes` writes the digests that the index has now",
        )
    if _UNREACHABLE.search(output):
        return _unreachable()
    refused = _REFUSED.search(output)
    if refused and (wanted := _find(by_name, refused["name"])):
        what, todo = _why_too_new(wanted, target, refused["wanted"])
        return _unknown(wanted, what, todo, file)
    unknown = _UNKNOWN.search(output)
    if unknown and (wanted := _find(by_name, unknown["name"])):
        printed = _ask_for_all(wanted, target, settings)
        if _UNREACHABLE.search(printed):
            return _unreachable()
        what, todo = _why_unknown(wanted, target, printed, unknown["versions"])
        return _unknown(wanted, what, todo, file)
    return None


def _unknown(wanted: Requirement, what: str, todo: str, file: str) -> UnknownPackageError:
    return UnknownPackageError(
        what, packages=[wanted.name], where=f"{file}:{wanted.line}", todo=todo
    )


def _unreachable() -> MirrorError:
    return MirrorError(
        "the index of Python packages cannot be reached",
        todo="see that the index of the build host's pip configuration answers (`pip config "
        "list`), then run the same command again",
    )


def _find(by_name: Mapping[str, Requirement], told: str) -> Requirement | None:
    return by_name.get(re.sub(r"[-_.]+", "-", told).lower())


def _why_unknown(
    wanted: Requirement, target: Target, printed: str, versions: str
) -> tuple[str, str]:
    """Why no wheel of a requirement was found, and what to do. `printed` tells which files pip
    left out, `versions` which versions have a wheel."""
    if needed := _needed_python(wanted, printed):
        return _why_too_new(wanted, target, needed)
    files = list(_left_out(wanted, printed))
    name, python = f"{wanted.name} {wanted.version}", f"Python {target.python}"
    wheels = [each for each in files if each.endswith(".whl")]
    if wheels:
        return (
            f"the index has no wheel of {name} for the image's {python} on {target.machine} with "
            f"glibc {target.glibc}; it has {_some(wheels)}",
            f"pin a version that has one: make the requirements with {python}",
        )
    if files:
        return (
            f"the index has {name} as source only ({_some(files)}), and nothing is compiled for an "
            "image",
            "pin a version that has a wheel, or make one with `pip wheel` and name its folder as "
            "`find-links` in pip's configuration",
        )
    known = [each for each in re.split(r",\s*", versions) if each not in ("", "none")]
    has = f"; it has {_some(known[::-1])}" if known else ", nor another version of it"
    return (
        f"the index has no {name} for the image's {python}{has}",
        "correct the name and the version, or see that pip's configuration names the right index",
    )


def _ask_for_all(wanted: Requirement, target: Target, settings: Mapping[str, str]) -> str:
    """What pip prints while it looks for a requirement: each file that it leaves out, too."""
    command = [*_command(target), "-vv", "--dest", os.devnull, f"{wanted.name}=={wanted.version}"]
    try:
        return run.capture(command, env=_environment(settings))
    except run.ToolError as error:
        return error.output


def _why_too_new(wanted: Requirement, target: Target, needed: str) -> tuple[str, str]:
    return (
        f"{wanted.name} {wanted.version} needs Python {needed}, and the image has {target.full}",
        f"pin an older version: make the requirements with Python {target.full}, or limit it there",
    )


def _needed_python(wanted: Requirement, printed: str) -> str | None:
    """The versions of Python that pip says this version is for, where the target is none."""
    lines = (line for line in printed.splitlines() if "require a different python version" in line)
    matches = (match for line in lines for match in _TOO_NEW.finditer(line))
    return next(
        (each["wanted"].strip() for each in matches if each["version"] == wanted.version), None
    )


def _left_out(wanted: Requirement, printed: str) -> Iterator[str]:
    """The files of this version that the index has, and that are not for the target."""
    name, version = wanted.name.replace("-", "[-_.]+"), re.escape(wanted.version)
    ours = re.compile(rf"{name}-{version}(-|\.(tar|zip))", re.IGNORECASE)
    found = (match["file"] for match in _SKIPPED.finditer(printed))
    yield from dict.fromkeys(each for each in found if ours.match(each))


def _some(names: Sequence[str]) -> str:
    more = f" and {len(names) - _MOST_TOLD} more" if len(names) > _MOST_TOLD else ""
    return ", ".join(names[:_MOST_TOLD]) + more
