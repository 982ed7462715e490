"""A definition's certificates: trusted while the image is made, and looked for in what was made."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from pipeline.definitions.build_certificates import read_certificates
from pipeline.disk.secret_search import find_secrets
from pipeline.errors import DefinitionError, SecretError
from pipeline.file_copies import FileCopy, TextCopy
from pipeline.guest.certificates import APT_SETTINGS, BUNDLE
from pipeline.model import Appliance
from pipeline.stages.base import HERE_ONLY, Context

_KEY = "build_certificates"


@dataclass(frozen=True, kw_only=True)
class Certificates:
    """What one file of a definition brings."""

    file: str
    """The file's name."""
    sha256: str
    text: str = field(compare=False, repr=False, metadata=HERE_ONLY)
    kept: bool = field(default=False, compare=False, metadata=HERE_ONLY)
    """Whether `files` bring it into the image too."""
    where: str = field(default="", compare=False, metadata=HERE_ONLY)
    """`file:line:column` in the definition."""


def plan_certificates(appliance: Appliance, *, network: bool) -> tuple[Certificates, ...]:
    """What a root file system's stage has of them. Raises DefinitionError for a build without a
    network, in which nothing asks for them."""
    if appliance.build_certificates and not network:
        raise DefinitionError(
            f"'{_KEY}' have no effect: nothing reaches the network while the image is made",
            where=appliance.positions.find(_KEY),
            todo="leave them out, or let it reach the network by `network: true` below `source`",
        )
    return tuple(
        Certificates(
            file=each.path.name,
            sha256=each.sha256,
            text=each.text,
            kept=_is_kept(each.text, appliance),
            where=appliance.positions.find(_KEY, index),
        )
        for index, each in enumerate(appliance.build_certificates)
    )


def _is_kept(text: str, appliance: Appliance) -> bool:
    """Whether one of the definition's files has each certificate of a text."""
    wanted = set(read_certificates(text))
    for copy in appliance.files:
        if isinstance(copy, FileCopy) and copy.source.stat().st_size <= 1 << 20:
            content = copy.source.read_text(errors="replace")
        elif isinstance(copy, TextCopy):
            content = copy.text
        else:
            continue
        try:
            wanted -= set(read_certificates(content))
        except ValueError:
            continue
    return not wanted


def texts_of(found: Sequence[Certificates]) -> list[str]:
    """Their texts in PEM form."""
    return [each.text.strip() for each in found]


def hand_over(found: Sequence[Certificates], folder: Path) -> None:
    """Lays out, in a new folder, what the element `phantom-appliance` needs of them."""
    folder.mkdir()
    if found:
        (folder / "ca.crt").write_text("".join(f"{text}\n" for text in texts_of(found)))
        (folder / "apt.conf").write_text(APT_SETTINGS)


def describe_certificates(found: Sequence[Certificates]) -> dict[str, list[dict[str, str]]]:
    """What a manifest says of them, if there are any."""
    told = [{"file": each.file, "sha256": each.sha256} for each in found]
    return {_KEY: told} if told else {}


def check_certificates_left(found: Sequence[Certificates], context: Context) -> None:
    """Looks for certificates that `files` do not bring in all files that a stage has made. Raises
    SecretError."""
    wanted = {
        f"{each.file} {number}": (each, certificate)
        for each in found
        if not each.kept
        for number, certificate in enumerate(read_certificates(each.text))
    }
    if not wanted:
        return
    context.progress.step("looking for the build's certificates in what was made")
    needles = {name: certificate for name, (_, certificate) in wanted.items()}
    for file in sorted(context.out.iterdir()):
        for name, places in find_secrets(file, needles).items():
            each, _ = wanted[name]
            raise SecretError(
                f"a certificate of {each.file!r} is in the finished image: "
                f"{str(places[0]).removesuffix(' (in base64)')}",
                where=each.where or None,
                todo="bring the file by `files` if the image is to trust it; else let scripts read "
                f"{BUNDLE} and copy it nowhere. What was built is not stored",
                log=context.log,
            )
