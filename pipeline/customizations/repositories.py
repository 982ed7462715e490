"""`repositories`: archives of Debian packages other than Debian's own."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

from pipeline.customizations import public_keys
from pipeline.customizations.accounts import listed, repeated, text
from pipeline.customizations.customization import Customization, Report, merge_named
from pipeline.file_copies import TextFile
from pipeline.model import Positions

KEY = "repositories"


@dataclass(frozen=True, kw_only=True)
class Repository:
    """An archive that a definition names."""

    name: str
    url: str
    """Without a slash at the end."""
    suite: str
    components: tuple[str, ...]
    """Empty for an archive that lies in one folder, whose suite ends in a slash."""
    key: str
    """The public keys that may sign it, ASCII-armored."""
    pin: int | None = None
    """The priority of all its packages (apt_preferences(5))."""
    where: str = field(default="", compare=False, metadata={"key": False})
    """`file:line:column` of the entry."""

    @property
    def index(self) -> str:
        """The URL of its signed index."""
        if self.suite.endswith("/"):
            return f"{self.url}/{self.suite.removeprefix('./')}InRelease"
        return f"{self.url}/dists/{self.suite}/InRelease"

    def line(self, options: str) -> str:
        """The line of a `sources.list`, with the options in brackets."""
        words = ["deb", f"[{options}]", self.url, self.suite, *self.components]
        return f"{' '.join(words)}\n"

    def preferences(self) -> str:
        """What apt's preferences say of its packages."""
        if self.pin is None:
            return ""
        host = urlsplit(self.url).hostname
        return f"Package: *\nPin: origin {host}\nPin-Priority: {self.pin}\n\n"


def find_repositories(
    values: Mapping[str, Any], positions: Positions | None = None
) -> tuple[Repository, ...]:
    """The archives that a definition's customizations name."""
    return tuple(
        Repository(
            name=entry["name"],
            url=entry["url"].rstrip("/"),
            suite=entry["suite"],
            components=tuple(entry.get("components", ())),
            key=entry["key"].text,
            pin=entry.get("pin"),
            where=positions.find(KEY, index) if positions else "",
        )
        for index, entry in enumerate(values.get(KEY, ()))
    )


def _check(entries: Sequence[Mapping[str, Any]], report: Report) -> None:
    repeated(entries, report, by=("name",))
    for index, entry in enumerate(entries):
        flat = entry["suite"].endswith("/")
        if flat and "components" in entry:
            report((index, "components"), "an archive whose suite ends in '/' has no components")
        elif not flat and "components" not in entry:
            report((index,), "'components' is missing; an archive without any has a suite that "
                "ends in '/'")  # fmt: skip
        key = entry["key"]
        if isinstance(key, TextFile):
            _check_key(key, entry, index, report)


def _check_key(key: TextFile, entry: Mapping[str, Any], index: int, report: Report) -> None:
    try:
        found = public_keys.fingerprints(key.text)
    except public_keys.NotPublicKeyError as error:
        told = f"{key.path.name!r} {error}; `gpg --export KEY` writes a file with a public key"
        report((index, "key"), told)
        return
    asked = entry.get("fingerprint")
    if isinstance(asked, str) and found != [asked.replace(" ", "").upper()]:
        keys = "a key" if len(found) == 1 else f"{len(found)} keys"
        told = f"{key.path.name!r} holds {keys} with other fingerprints: {', '.join(found)}"
        if asked.replace(" ", "").upper() in found:
            told = f"{key.path.name!r} holds {len(found)} keys; export the one with this alone"
        report((index, "fingerprint"), told)


def _script(entries: Sequence[Mapping[str, Any]]) -> str:
    kept = [entry for entry in entries if entry.get("keep", True)]
    lines = ["need apt-get apt\n", _FUNCTIONS] if kept else []
    for entry in kept:
        (repository,) = find_repositories({KEY: [entry]})
        name = repository.name
        components = " ".join(repository.components)
        lines.append(
            f"put /etc/apt/keyrings/{name}.asc <<'END OF KEY'\n{repository.key.strip()}\n"
            "END OF KEY\n"
            f"put /etc/apt/sources.list.d/{name}.sources <<'END'\nTypes: deb\n"
            f"URIs: {repository.url}\nSuites: {repository.suite}\n"
            + (f"Components: {components}\n" if components else "")
            + f"Signed-By: /etc/apt/keyrings/{name}.asc\nEND\n"
        )
        if preferences := repository.preferences():
            lines.append(f"put /etc/apt/preferences.d/{name} <<'END'\n{preferences}END\n")
    return "".join(lines)


_FUNCTIONS = """\
# put FILE, with its content on standard input
put() {
    (umask 022 && mkdir -p "${1%/*}" && cat >"$1")
    chmod 0644 "$1"
}
"""

_ENTRY: dict[str, Any] = {
    "description": "An archive of packages.",
    "type": "object",
    "required": ["name", "url", "suite", "key"],
    "additionalProperties": False,
    "properties": {
        "name": text(
            "What the image's files of it are called.",
            ["docker"],
            pattern="^[a-z0-9][a-z0-9_-]{0,63}$",
            errorMessage="must be lower-case letters, digits, '_' and '-'",
        ),
        "url": text(
            "Where the archive is, as apt takes it.",
            ["https://download.example.org/linux/debian"],
            pattern="^https?://[^\\s/@]+(/[^\\s@]*)?$",
            errorMessage="must be an http or https URL without a name or password",
        ),
        "suite": text(
            "The suite, or the folder of an archive without suites, which ends in '/'.",
            ["bookworm", "./"],
            pattern="^[A-Za-z0-9./][A-Za-z0-9._/+~-]*$",
            errorMessage="must be the name of a suite, or a folder that ends in '/'",
        ),
        "components": listed(
            "The components to take packages from.",
            text(
                "A component.",
                ["main"],
                pattern="^[A-Za-z0-9][A-Za-z0-9._/+-]*$",
                errorMessage="must be the name of a component",
            ),
            ["stable"],
        ),
        "key": text(
            "The file with the public keys that sign the archive, ASCII-armored or binary.",
            ["docker.asc"],
            minLength=1,
        ),
        "fingerprint": text(
            "The fingerprint of the only key that the file may hold.",
            ["9DC8 5822 9FC7 DD38 854A  E2D8 8D81 803C 0EBF CD88"],
            pattern="^([0-9A-Fa-f] *){40}(([0-9A-Fa-f] *){24})?$",
            errorMessage="must be a whole fingerprint: 40 or 64 hexadecimal digits",
        ),
        "pin": {
            "description": "The priority of its packages, as apt_preferences(5) has it: below 500, "
            "Debian's own come first where both have a package; from 501 on, the archive's.",
            "type": "integer",
            "minimum": 1,
            "maximum": 1000,
            "examples": [100],
        },
        "keep": {
            "description": "Whether the image gets the source and its key, for its own updates.",
            "type": "boolean",
            "default": True,
            "examples": [False],
        },
    },
}

CUSTOMIZATION = Customization(
    key=KEY,
    schema=listed(
        "Archives of packages beside Debian's own. Packages are resolved, checked and recorded as "
        "Debian's are.",
        _ENTRY,
        [
            {
                "name": "docker",
                "url": "https://download.example.org/linux/debian",
                "suite": "bookworm",
                "components": ["stable"],
                "key": "docker.asc",
            }
        ],
    ),
    check=_check,
    merge=merge_named,
    script=_script,
    text_files=(("*", "key"),),
    decode=public_keys.decode,
)
