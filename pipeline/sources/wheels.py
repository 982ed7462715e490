"""The packages of a virtual environment, fetched as wheels before the image is made.

The requirements' digests say which files may come, so the index is no input: an image does not
change with it. What was fetched once lies in the store's `wheels/` by its digest, for all builds.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import zipfile
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

from pipeline.customizations.python import KEY, PINS, PYTHON, Requirement, find_requirements
from pipeline.definitions.yaml import shown
from pipeline.errors import DefinitionError, StageFailedError
from pipeline.files import discard, share
from pipeline.model import Appliance, Package
from pipeline.stages.base import HERE_ONLY, Context, Stage
from pipeline.store import Artifact, Store, sync
from pipeline.tools import pip

_GLIBC = "2.28"  # a base image's is known only when it is opened; wheels of today ask for no newer
_MACHINE = "x86_64"


@dataclass(frozen=True, kw_only=True)
class Wheels(Stage):
    """A wheel for each requirement, and what the step `python` reads: the version of Python, and
    the requirements with the digest of the wheel alone."""

    name: ClassVar[str] = "wheels"

    target: pip.Target
    requirements: tuple[Requirement, ...]

    file: str = field(metadata=HERE_ONLY, compare=False)
    """The file of the requirements, for messages."""

    def check_host(self, store: Store) -> None:
        """Whether there is a pip. Raises HostError."""
        pip.check_installed()

    def run(self, inputs: Sequence[Artifact], context: Context) -> Mapping[str, Any]:
        pool = context.store.path("wheels")
        known, fetched = context.work / "known", context.work / "fetched"
        known.mkdir()
        fetched.mkdir()
        self._offer(pool, known)
        context.progress.step(f"fetching {len(self.requirements)} packages of Python")
        pip.download(
            self.requirements,
            self.target,
            fetched,
            known=known,
            file=self.file,
            log=context.log,
            progress=context.progress,
        )
        found = self._match(sorted(fetched.glob("*.whl")), context.log)
        for each in found:
            _keep(fetched / each["file"], pool / f"{each['sha256']}-{each['file']}")
            shutil.copyfile(fetched / each["file"], context.out / each["file"])
        pins = zip(self.requirements, found, strict=True)
        lines = (f"{pip.pin(wanted, [each['sha256']])}\n" for wanted, each in pins)
        (context.out / PINS).write_text("".join(lines))
        (context.out / PYTHON).write_text(f"{self.target.python}\n")
        files = [context.out / each["file"] for each in found]
        return {
            "python": self.target.python,
            "wheels": found,
            "bytes": sum(file.stat().st_size for file in files),
            "installed_bytes": sum(map(_unpacked_bytes, files)),
        }

    def _offer(self, pool: Path, known: Path) -> None:
        """Lays out what the pool has of the requirements, under the names that pip looks for."""
        digests = {digest for each in self.requirements for digest in each.hashes}
        for file in sorted(pool.iterdir()):
            digest, _, name = file.name.partition("-")
            if digest not in digests or (known / name).exists():
                continue
            if _sha256(file) == digest:
                (known / name).symlink_to(file)
                with suppress(OSError):  # of another user
                    os.utime(file)
            else:
                discard(file, shutil.rmtree)  # damaged

    def _match(self, files: Iterable[Path], log: Path) -> list[dict[str, str]]:
        """What was fetched, in the order of the requirements. Raises StageFailedError if anything
        is not what they say."""
        from packaging.utils import parse_wheel_filename

        by_name: dict[str, list[Path]] = {}
        for file in files:
            by_name.setdefault(parse_wheel_filename(file.name)[0], []).append(file)
        found = []
        for wanted in self.requirements:
            ours = by_name.pop(wanted.name, [])
            digest = _sha256(ours[0]) if len(ours) == 1 else None
            if digest is None or digest not in wanted.hashes:
                raise StageFailedError(
                    f"pip fetched no file that the requirements allow for {wanted.name}",
                    where=f"{self.file}:{wanted.line}",
                    todo="see the log, then run the same command again",
                    log=log,
                )
            told = {"name": wanted.name, "version": wanted.version, "file": ours[0].name}
            found.append({**told, "sha256": digest})
        return found


def _keep(file: Path, place: Path) -> None:
    """Puts a file into the pool, unless it is there."""
    if place.is_file() and not place.is_symlink():
        return
    new = place.with_name(f".{place.name[:32]}-{os.getpid()}")
    shutil.copyfile(file, new)
    share(new)
    sync(new)
    discard(place, shutil.rmtree)
    new.replace(place)


def _sha256(file: Path) -> str | None:
    """A file's digest; None for what is no file, or cannot be read."""
    try:
        if file.is_symlink() or not file.is_file():
            return None
        with file.open("rb") as opened:
            return hashlib.file_digest(opened, "sha256").hexdigest()
    except OSError:
        return None


def _unpacked_bytes(wheel: Path) -> int:
    """What a wheel's files take, with about as much bytecode as source."""
    with suppress(OSError, zipfile.BadZipFile), zipfile.ZipFile(wheel) as archive:
        return 2 * sum(each.file_size for each in archive.infolist())
    return 0


def wheels_of(inputs: Iterable[Artifact]) -> Artifact | None:
    """The artifact of the stage `wheels` among the inputs of a root."""
    return next((each for each in inputs if each.stage == Wheels.name), None)


def describe_wheels(wheels: Artifact) -> dict[str, Any]:
    """What a root file system's facts say of its environment."""
    return {"version": wheels.facts["python"], "wheels": wheels.facts["wheels"]}


def lay_out(wheels: Artifact, folder: Path) -> Path:
    """Copies an artifact's files into a new folder, from which the step `python` installs them."""
    folder.mkdir()
    for name in wheels.digests:
        shutil.copyfile(wheels.file(name), folder / name)
    return folder


# ---- planning


def plan_for_packages(appliance: Appliance, packages: Iterable[Package]) -> tuple[Wheels, ...]:
    """The stage for an image of these packages; none where no environment is asked for.

    Raises DefinitionError where the image will have another Python than the definition says.
    """
    if KEY not in appliance.customizations:
        return ()
    versions = {package.name: package.version for package in packages}
    full = _leading(versions["python3"], 3)
    python = ".".join(full.split(".")[:2])
    told = appliance.customizations[KEY].get("version", python)
    if told != python:
        raise DefinitionError(
            f"the image's packages have Python {python}, and not {told}",
            where=appliance.positions.find(KEY, "version"),
            todo="leave 'version' out: the packages say it",
        )
    target = pip.Target(
        python=python, glibc=_leading(versions["libc6"], 2), machine=_MACHINE, full=full
    )
    return (_plan(appliance, target, full),)


def plan_for_base_image(appliance: Appliance) -> tuple[Wheels, ...]:
    """The stage for a base image; none where no environment is asked for.

    Raises DefinitionError where the definition does not say which Python the base image has.
    """
    if KEY not in appliance.customizations:
        return ()
    asked = appliance.customizations[KEY]
    if "version" not in asked:
        raise DefinitionError(
            "'version' is missing in 'python': the wheels are fetched before the base image is "
            "opened",
            where=appliance.positions.find(KEY),
            todo="write which Python the image has, such as version: '3.11' for Debian 12; "
            "`python3 --version` says it",
        )
    _check_files(appliance, asked["path"].rstrip("/"))
    python = asked["version"]
    target = pip.Target(python=python, glibc=_GLIBC, machine=_MACHINE)
    return (_plan(appliance, target, f"{python}.0"),)


def _check_files(appliance: Appliance, path: str) -> None:
    """An environment of the base image is replaced, with all that lies in it."""
    for copy in appliance.files:
        if str(copy.target).startswith(f"{path}/"):
            raise DefinitionError(
                f"'files' bring {str(copy.target)!r} into the environment, which replaces what a "
                "base image has there",
                where=appliance.positions.find("files"),
                todo="give it another place, and move it there in a script",
            )


def _plan(appliance: Appliance, target: pip.Target, full: str) -> Wheels:
    file = shown(appliance.customizations[KEY]["requirements"].path)
    chosen: dict[str, Requirement] = {}
    for each in find_requirements(appliance.customizations):
        if not _applies(each.marker, target, full):
            continue
        first = chosen.setdefault(each.name, each)
        if first is not each:
            raise DefinitionError(
                f"{each.name} is pinned on line {first.line} too",
                where=f"{file}:{each.line}",
                todo="leave one of them out",
            )
    return Wheels(
        target=target,
        requirements=tuple(sorted(chosen.values(), key=lambda each: each.name)),
        file=file,
    )


def _applies(marker: str, target: pip.Target, full: str) -> bool:
    """Whether a requirement is for the image's Python."""
    from packaging.markers import Marker

    return not marker or Marker(marker).evaluate(
        {
            "implementation_name": "cpython",
            "implementation_version": full,
            "os_name": "posix",
            "platform_machine": target.machine,
            "platform_python_implementation": "CPython",
            "platform_release": "",
            "platform_system": "Linux",
            "platform_version": "",
            "python_full_version": full,
            "python_version": target.python,
            "sys_platform": "linux",
            "extra": "",
        }
    )


def _leading(version: str, numbers: int) -> str:
    """The first numbers of a Debian package's version."""
    found = re.match(rf"(?:\d+:)?(\d+(?:\.\d+){{{numbers - 1}}})", version)
    if found is None:
        raise StageFailedError(
            f"the version {version!r} of a package is not understood",
            todo="name a source whose python3 and libc6 are Debian's",
        )
    return found[1]
