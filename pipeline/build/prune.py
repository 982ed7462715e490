"""Old builds: which of them stay, and why; and the removal of the others' folders and artifacts."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from pipeline.build import manifest
from pipeline.build.lifecycle import State, read_mark
from pipeline.build.retention import KnownBuild, decide
from pipeline.build.run import STAGES, read_stages
from pipeline.definitions.appliance import FILE_NAME, list_appliances
from pipeline.errors import ManifestError
from pipeline.model import ContentKey, Keep, Publication
from pipeline.store import Artifact
from pipeline.workspace import RESERVED, Workspace

TAG = "keep"
"""The label of a definition, or the file in a build's folder, that lets a build stay."""
_DIGITS = re.compile(r"\b[0-9a-f]{12}\b")


@dataclass(frozen=True, kw_only=True)
class Line:
    """What happens to one build."""

    appliance: str
    build: str
    keep: bool
    reason: str
    """For people."""
    folder: Path
    artifacts: tuple[Artifact, ...] = ()
    """Of a build that goes: what the store has of it and no other build needs."""
    retires: tuple[Publication, ...] = ()
    """Of a build that goes: what sites have of it, and are to lose first."""


@dataclass(frozen=True, kw_only=True)
class _Found:
    """A build's folder."""

    folder: Path
    content: Mapping[str, Any] | None
    """The manifest; None where it cannot be used."""

    @property
    def appliance(self) -> str:
        return self.folder.parent.name


def find_starts(images: Path) -> dict[str, str]:
    """The builds that definitions start from, by their digits, each with the definition's name. All
    that looks like one counts: a definition that cannot be read may name it, too."""
    found: dict[str, str] = {}
    for name in list_appliances(images):
        with suppress(OSError):
            text = (images / name / FILE_NAME).read_text(errors="replace")
            found |= dict.fromkeys(_DIGITS.findall(text), name)
    return found


def plan_prune(
    workspace: Workspace,
    find_rule: Callable[[str], Keep | None],
    starts: Mapping[str, str],
    appliances: Sequence[str] = (),
    sites: Collection[str] = (),
) -> list[Line]:
    """What would happen to each build of these appliances, or of all; changes nothing.

    `find_rule` gives an appliance's rule, None where all its builds stay. `starts` has
    the builds, by their digits, that definitions start from, each with the definition's name.
    Of `sites`, the publications of builds that go are to be retired; a build that another site has
    stays.
    """
    found = [*_find_builds(workspace)]
    lines: list[Line] = []
    for name in sorted({each.appliance for each in found}):
        if not appliances or name in appliances:
            lines += _decide(workspace, name, found, find_rule(name), starts, sites)
    going = {line.folder for line in lines if not line.keep}
    kept = {key for each in found if each.folder not in going for key in _keys(each, workspace)}
    for name in {each.appliance for each in found}:  # what the last build of each was made of
        kept |= _keys_of(read_stages(workspace, name))
    return [line if line.keep else _with_artifacts(line, kept, workspace) for line in lines]


def carry_out(workspace: Workspace, plan: Callable[[], list[Line]]) -> tuple[list[Line], int]:
    """Plans, and removes what goes, while no other command uses the store. Returns the lines and
    how many bytes were freed. Raises StoreError while one does, and where something of another user
    cannot be removed."""
    with workspace.store.alone(), workspace.errors():
        lines = plan()
        freed = count_bytes(lines)
        for line in lines:
            if not line.keep:
                # The manifest last: a build that is removed in part is removed by the next run.
                for artifact in line.artifacts:
                    if artifact.folder.exists():  # two builds that go may share it
                        workspace.store.remove(artifact)
                _remove(line.folder)
        return lines, freed


def count_bytes(lines: Sequence[Line]) -> int:
    """How many bytes the removal frees: a file that something else links to as well frees none."""
    links: dict[tuple[int, int], tuple[int, int, int]] = {}
    folders = {line.folder for line in lines if not line.keep}
    folders |= {artifact.folder for line in lines for artifact in line.artifacts}
    for folder in folders:
        for path in folder.rglob("*"):
            status = path.lstat()
            key = status.st_dev, status.st_ino
            seen = links.get(key, (0, 0, 0))[0] + 1
            links[key] = seen, status.st_nlink, status.st_blocks * 512
    return sum(size for seen, count, size in links.values() if seen >= count)


def _remove(folder: Path) -> None:
    """Removes a build's folder, which vanishes in one step for those who look for builds."""
    aside = folder.with_name(f".{folder.name}.old")
    if aside.exists():
        shutil.rmtree(aside)
    folder.rename(aside)
    shutil.rmtree(aside)


def _find_builds(workspace: Workspace) -> Iterator[_Found]:
    if not workspace.build.is_dir():
        return
    for path in sorted(workspace.build.glob(f"*/*/{manifest.FILE}")):
        folder = path.parent
        reserved = folder.parent.name in RESERVED or folder.name.startswith(".")
        if reserved or folder.is_symlink() or folder.parent.is_symlink():
            continue
        try:
            content = manifest.load_manifest(path)
        except (OSError, ManifestError):
            content = None
        yield _Found(folder=folder, content=content)


def _decide(
    workspace: Workspace,
    name: str,
    found: Sequence[_Found],
    rule: Keep | None,
    starts: Mapping[str, str],
    sites: Collection[str],
) -> Iterator[Line]:
    own = {each.folder.name: each for each in found if each.appliance == name}
    last = _root_key(read_stages(workspace, name))
    builds = [
        KnownBuild(
            build=build,
            made=_made(each.folder),
            protected=(
                *_protections(workspace, each, found, last, starts),
                *_find_holders(each, [*own.values()], sites),
            ),
        )
        for build, each in own.items()
    ]
    for decision in decide(builds, rule):
        build = own[decision.build]
        retires = [
            each for each in _publications(build) if each.site in sites and not decision.keep
        ]
        places = ", ".join(sorted({each.site for each in retires}))
        yield Line(
            appliance=name,
            build=decision.build,
            keep=decision.keep,
            reason=decision.reason + (f"; {places} loses it too" if places else ""),
            folder=build.folder,
            retires=tuple(retires),
        )


def _publications(build: _Found) -> Sequence[Publication]:
    return () if build.content is None else manifest.publications_of(build.content)


def _find_holders(build: _Found, own: Sequence[_Found], sites: Collection[str]) -> Iterator[str]:
    """Why sites let a build stay: one is not to lose what it has, or has nothing newer in that
    region."""
    real = [each for each in _publications(build) if not each.sandbox]
    others = sorted({each.site for each in real} - {*sites})
    if others:
        yield f"published at {', '.join(others)}: `phantom-image retire` comes first"
    newer = {
        (each.site, each.region)
        for other in own
        if _made(other.folder) > _made(build.folder) and _is_good(other)
        for each in _publications(other)
    }
    newest = sorted({each.site for each in real if (each.site, each.region) not in newer})
    if wanted := [site for site in newest if site not in others]:
        yield f"the newest that {', '.join(wanted)} has"


def _is_good(build: _Found) -> bool:
    """Whether people are to start machines from it."""
    return read_mark(build.folder).state is State.PUBLISHED


def _made(folder: Path) -> float:
    """When a build was last made: publishing and retiring write its manifest only."""
    stages = folder / STAGES
    return (stages if stages.is_file() else folder / manifest.FILE).stat().st_mtime


def _protections(
    workspace: Workspace,
    build: _Found,
    found: Sequence[_Found],
    last: str | None,
    starts: Mapping[str, str],
) -> Iterator[str]:
    """Why a build stays whatever the rules say."""
    name, folder = build.folder.name, build.folder
    latest = folder.parent / manifest.LATEST
    if latest.is_symlink() and str(latest.readlink()) == name:
        yield "the one that was published last"
    if last is not None and last == _root_key(read_stages(workspace, build.appliance, name)):
        yield "the one that was made last"
    if (folder / TAG).exists():
        yield f"tagged by the file {TAG} in its folder"
    if build.content is None:
        yield "its manifest cannot be used"
        return
    if TAG in build.content["appliance"]["labels"]:
        yield f"tagged by the label {TAG}"
    for other in found:
        source = None if other.content is None else other.content["inputs"].get("source")
        if other.folder != folder and name in json.dumps(source):
            yield f"{other.appliance}/{other.folder.name} was made of it"
    if user := starts.get(name):
        yield f"the definition of {user} starts from it"


def _root_key(stages: Mapping[str, Any]) -> str | None:
    return str(stages["root"]["key"]) if "root" in stages else None


def _keys(build: _Found, workspace: Workspace) -> set[tuple[str, str]]:
    return _keys_of(read_stages(workspace, build.appliance, build.folder.name))


def _keys_of(stages: Mapping[str, Any]) -> set[tuple[str, str]]:
    """The names and keys of stages. A stage's title begins with its name."""
    return {(title.partition(" ")[0], told["key"]) for title, told in stages.items()}


def _with_artifacts(line: Line, kept: set[tuple[str, str]], workspace: Workspace) -> Line:
    stages = read_stages(workspace, line.appliance, line.build)
    stored = (
        workspace.store.find(stage, ContentKey(key))
        for stage, key in sorted(_keys_of(stages) - kept)
    )
    artifacts = tuple(artifact for artifact in stored if artifact is not None)
    return replace(line, artifacts=artifacts)
