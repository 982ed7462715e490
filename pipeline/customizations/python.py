"""`python`: a virtual environment with packages of Python, each pinned by version and digest.

    python:
      path: /opt/jupyter
      requirements: requirements.txt   # as `pip-compile --generate-hashes` writes it
      version: "3.11"                  # of a base image; from scratch the packages say it

The stage `wheels` fetches what the requirements name before the image is made
(`sources/wheels.py`). The script finds it in the folder `$wheels`, and needs no network.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from shlex import quote
from typing import Any

from pipeline.customizations.accounts import text
from pipeline.customizations.customization import Customization, Report
from pipeline.customizations.directories import MADE_ANEW
from pipeline.file_copies import TextFile

KEY = "python"
WHEELS = "wheels"
"""The shell variable that names the folder of wheels. The folder also has the files `PINS` and
`PYTHON`."""
PINS, PYTHON = "requirements.txt", "python"

_SYSTEM = (*MADE_ANEW, "/boot", "/etc", "/usr", "/var/cache", "/var/log", "/var/tmp")  # noqa: S108
_MOST_TOLD = 5  # mistakes of one file
_HASH = re.compile(r"\s--hash[= ]\s*")
_SHA256 = re.compile(r"sha256:([0-9a-f]{64})")
_COMMENT = re.compile(r"(^|\s+)#.*$")
_OPTION = re.compile(r"\s(--?[A-Za-z][a-z-]*)")


@dataclass(frozen=True, kw_only=True)
class Requirement:
    """A package that a file of requirements names."""

    name: str
    """Normalised, as indexes know it."""
    version: str
    digest: str
    """Of the digests that its files may have."""
    hashes: tuple[str, ...] = field(compare=False, metadata={"key": False})
    """The SHA-256 of each file that may be taken."""
    marker: str = field(default="", compare=False, metadata={"key": False})
    """In which environments it is wanted (PEP 508); empty for all."""
    line: int = field(default=0, compare=False, metadata={"key": False})
    """Where it begins in its file, from 1."""


@dataclass(frozen=True, kw_only=True)
class Mistake:
    """A line that cannot be taken."""

    line: int
    what: str


def read_requirements(content: str) -> tuple[list[Requirement], list[Mistake]]:
    """The packages that a file of requirements pins, and what is wrong with it."""
    found: list[Requirement] = []
    wrong: list[Mistake] = []
    for number, line in _logical_lines(content):
        read = _read_line(number, line)
        if isinstance(read, Requirement):
            found.append(read)
        else:
            wrong.append(Mistake(line=number, what=read))
    return found, wrong


def _logical_lines(content: str) -> Iterator[tuple[int, str]]:
    """The lines, those that continue put together, without comments: each with its number."""
    begun, parts = 0, list[str]()
    for number, line in enumerate([*content.split("\n"), ""], 1):
        begun = begun or number
        comment = line.lstrip().startswith("#")
        parts.append("" if comment else line.rstrip().removesuffix("\\"))
        if line.rstrip().endswith("\\") and not comment:
            continue
        joined = _COMMENT.sub("", " ".join(parts)).strip()
        if joined:
            yield begun, joined
        begun, parts = 0, []


def _read_line(number: int, line: str) -> Requirement | str:
    """A requirement, or what is wrong with it."""
    from packaging.requirements import InvalidRequirement
    from packaging.requirements import Requirement as Parsed
    from packaging.utils import canonicalize_name

    told, *hashes = _HASH.split(line)
    option = _OPTION.search(f" {told}")
    if option:
        return (
            f"has the option {option[1]}; only pinned packages belong there, and the build host's "
            "pip configuration names the index"
        )
    try:
        parsed = Parsed(told)
    except InvalidRequirement:
        return "is no requirement, such as name==1.0"
    (*pins,) = parsed.specifier
    if parsed.url is not None or len(pins) != 1 or not _is_pin(pins[0]):
        return f"does not pin {parsed.name} to one version; write {parsed.name}==VERSION"
    if not hashes:
        return (
            f"has no --hash for {parsed.name}; `pip-compile --generate-hashes` or `uv pip compile "
            "--generate-hashes` writes them"
        )
    digests = [_SHA256.fullmatch(each.strip()) for each in hashes]
    if None in digests:
        return f"has a --hash for {parsed.name} that is no sha256: and 64 hexadecimal digits"
    sums = tuple(sorted({each[1] for each in digests if each}))
    return Requirement(
        name=canonicalize_name(parsed.name),
        version=pins[0].version,
        digest=hashlib.sha256("\n".join(sums).encode()).hexdigest(),
        hashes=sums,
        marker=str(parsed.marker or ""),
        line=number,
    )


def _is_pin(specifier: Any) -> bool:
    return specifier.operator == "==" and not specifier.version.endswith(".*")


def find_requirements(values: Mapping[str, Any]) -> tuple[Requirement, ...]:
    """What a definition's customizations ask for, in all environments."""
    if KEY not in values:
        return ()
    return tuple(read_requirements(values[KEY]["requirements"].text)[0])


def _check(value: Mapping[str, Any], report: Report) -> None:
    path = value["path"].rstrip("/")
    if {".", ".."} & set(path.split("/")):
        report(("path",), f"{value['path']!r} must not hold '.' or '..'")
    elif not path.startswith("/usr/local/"):
        for place in _SYSTEM:
            if f"{path}/".startswith(f"{place}/"):
                told = "is made anew at each boot" if place in MADE_ANEW else "is the system's own"
                report(("path",), f"{place!r} {told}; /opt is a place for environments")
                break
    file = value["requirements"]
    if isinstance(file, TextFile):
        for what in _mistakes(file):
            report(("requirements",), what)


def _mistakes(file: TextFile) -> Iterator[str]:
    found, wrong = read_requirements(file.text)
    for mistake in wrong[:_MOST_TOLD]:
        yield f"line {mistake.line} of {file.path.name!r} {mistake.what}"
    if len(wrong) > _MOST_TOLD:
        more = len(wrong) - _MOST_TOLD
        yield f"{file.path.name!r} has {more} more such line{'s' if more > 1 else ''}"
    if not found and not wrong:
        yield f"{file.path.name!r} names no package"


def _packages(_value: Any) -> Iterable[str]:
    return ("python3", "python3-venv")


def _script(value: Mapping[str, Any]) -> str:
    return f"path={quote(value['path'].rstrip('/'))}\n{_SCRIPT}"


# The bytecode that venv and pip write has times in it: it is made once more, with digests of the
# sources instead, so that it is the same in every build and stays valid whatever times the files
# get. Files that are no Python of this version, as some packages bring for tests, have none.
_SCRIPT = rf"""
need python3 python3
python3 -c 'import ensurepip, venv' 2>/dev/null ||
    fail "the image's python3 cannot make environments; add the package python3-venv"
wanted=$(cat "${WHEELS}/{PYTHON}")
found=$(python3 -c 'import sys; print("%d.%d" % sys.version_info[:2])')
[ "$found" = "$wanted" ] ||
    fail "the image has Python $found, and the wheels are for $wanted; write version: '$found'"
if [ -e "$path/pyvenv.cfg" ]; then
    rm -rf "$path" # of the base image
elif [ -e "$path" ] && [ ! -d "$path" ]; then
    fail "$path is in the image, and is no folder"
fi
umask 022
export PIP_CONFIG_FILE=/dev/null PYTHONDONTWRITEBYTECODE=1
python3 -m venv "$path"
pip() {{
    "$path/bin/python3" -m pip --isolated --no-input --disable-pip-version-check "$@"
}}
pip install --no-index --find-links "${WHEELS}" --no-deps --require-hashes --only-binary :all: \
    --no-cache-dir --no-compile --requirement "${WHEELS}/{PINS}"
pip check >&2 || fail "the requirements lack packages that others of them need: pin these too"
find "$path" -name __pycache__ -type d -prune -exec rm -rf {{}} +
PYTHONHASHSEED=0 "$path/bin/python3" -m compileall -qq -j 1 --invalidation-mode checked-hash \
    "$path/lib" || :
"""

CUSTOMIZATION = Customization(
    key=KEY,
    schema={
        "description": "A virtual environment of Python, with packages that are fetched as wheels "
        "before the image is made.",
        "type": "object",
        "required": ["path", "requirements"],
        "additionalProperties": False,
        "properties": {
            "path": text(
                "Its absolute path.",
                ["/opt/jupyter"],
                pattern="^(/[A-Za-z0-9._+-]+){2,}/?$",
                maxLength=100,  # the kernel takes 127 characters of a script's first line
                errorMessage="must be an absolute path such as /opt/jupyter, of letters, digits, "
                "'.', '_', '+' and '-'",
            ),
            "requirements": text(
                "The file that pins its packages, with all that they need: `name==version` and "
                "`--hash=sha256:...` each, as `pip-compile --generate-hashes` writes them.",
                ["requirements.txt"],
                minLength=1,
            ),
            "version": text(
                "The version of the image's python3. A base image needs it; from scratch the "
                "packages say it.",
                ["3.11"],
                pattern="^3\\.([89]|[1-9][0-9])$",
                errorMessage="must be a version of Python from 3.8 on, in quotes, such as '3.11'",
            ),
        },
        "examples": [{"path": "/opt/jupyter", "requirements": "requirements.txt"}],
    },
    check=_check,
    packages=_packages,
    script=_script,
    text_files=(("requirements",),),
    text_bytes=2 << 20,
    seconds=3600,
)
