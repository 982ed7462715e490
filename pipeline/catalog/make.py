"""Manifests to a catalog. Only what depends on changed manifests is read and written again.

Readers never see half of it: each file is written in one step, what a file refers to is there
before it, and what goes is removed last.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from pipeline import records
from pipeline.attestations.vulnerabilities import (
    Vulnerability,
    find_open,
    list_components,
    read_tracker,
)
from pipeline.build.manifest import FILE
from pipeline.catalog import feeds, pages, sections
from pipeline.catalog.card import (
    CARD_SHAPE,
    Card,
    data_of,
    folder_of,
    make_card,
    page_of,
    stream_of,
    to_card,
)
from pipeline.catalog.model import BUILD_SHAPE, Build, Entry, to_build
from pipeline.catalog.read import Source, load, read_build
from pipeline.catalog.write import RECORDS, Target
from pipeline.clouds.recipes import USER_DATA_FILE
from pipeline.errors import CatalogManifestsError, ManifestError, PhantomError

_CARDS = f"{RECORDS}/catalog.json"
_CARDS_SHAPE = {"code": str, "cards": {str: {"digest": str, "card": CARD_SHAPE}}}
_BUILDS_SHAPE = {str: {"signature": [int], "build": BUILD_SHAPE}}
_MOST_TOLD = 100  # manifests in one message

Sources = Mapping[str, Sequence[Source]]
Found = Sequence[Vulnerability] | None


@dataclass(frozen=True, kw_only=True)
class Made:
    """What was done."""

    appliances: int
    builds: int
    written: int
    removed: int
    skipped: tuple[ManifestError, ...]


@dataclass(frozen=True, kw_only=True)
class _Read:
    """An appliance whose manifests are not what they were, or whose page is to be made anew."""

    entry: Entry
    paths: Mapping[str, Path]
    """The manifests, by build."""
    record: Mapping[str, Any]
    """What the next run needs to know of its builds."""


@dataclass(kw_only=True)
class _Catalog:
    """A catalog that is being made."""

    target: Target
    site: pages.Site
    tracker: Path | None
    errors: list[ManifestError] = field(default_factory=list)

    @property
    def code(self) -> str:
        """Tells whether pages that are there are as this program would make them."""
        told: list[object] = [pages.digest_of_code(), self.site.title, self.site.url]
        if self.tracker is not None:
            file = self.tracker.stat()
            told += [str(self.tracker), file.st_size, file.st_mtime_ns]
        return hashlib.sha256(json.dumps(told).encode()).hexdigest()

    @cached_property
    def _issues(self) -> Mapping[str, Any]:
        return {} if self.tracker is None else read_tracker(self.tracker)

    def find_vulnerabilities(self, content: Mapping[str, Any], folder: Path) -> Found:
        """What is known to be open in a build; None where nothing tells."""
        if self.tracker is None:
            return None
        try:
            listed = list_components(content, folder)
        except (PhantomError, OSError, records.Unfit):  # `verify` says what is wrong with it
            return None
        return find_open(listed, self._issues)


def make_catalog(
    sources: Sources,
    target: Target,
    site: pages.Site,
    *,
    tracker: Path | None = None,
    skip_broken: bool = False,
    step: Callable[[str], None] = lambda _: None,
) -> Made:
    """Makes the catalog of these manifests, by appliance, or brings one up to date. `tracker` is
    the export of Debian's security tracker, by which pages tell of vulnerabilities.

    Raises CatalogManifestsError where a manifest cannot be used, unless such are to be skipped;
    CatalogFolderError and NoSpaceError where the folder cannot be written to. The catalog that was
    there stays as it was where a manifest cannot be used.
    """
    catalog = _Catalog(target=target, site=site, tracker=tracker)
    target.prepare()
    code = catalog.code
    before = records.read(target.folder / _CARDS, _CARDS_SHAPE) or {"code": "", "cards": {}}
    digests = {name: _digest(found) for name, found in sources.items()}
    kept = {
        name: to_card(known["card"])
        for name, known in before["cards"].items()
        if before["code"] == code
        and known["digest"] == digests.get(name)
        and target.has(page_of(name))
    }
    step(f"reading manifests of {len(sources) - len(kept):,} of {len(sources):,} appliances")
    read = {
        name: _read(catalog, name, found) for name, found in sources.items() if name not in kept
    }
    if catalog.errors and not skip_broken:
        raise _make_error(catalog.errors)
    step("writing pages and feeds")
    with target.errors():
        cards = kept | {name: _write(catalog, each) for name, each in read.items() if each}
        _finish(catalog, [cards[name] for name in sorted(cards)])
        # Where some were skipped, the next run looks at the appliance again.
        broken = {Path(error.where or "").parent.parent.name for error in catalog.errors}
        told = {
            name: {"digest": "" if name in broken else digests[name], "card": card.to_json()}
            for name, card in cards.items()
        }
        target.put(_CARDS, json.dumps({"code": code, "cards": told}))
    return Made(
        appliances=len(cards),
        builds=sum(card.builds for card in cards.values()),
        written=target.written,
        removed=target.removed,
        skipped=tuple(catalog.errors),
    )


def _digest(sources: Sequence[Source]) -> str:
    return hashlib.sha256(repr([tuple(each) for each in sources]).encode()).hexdigest()


def _make_error(errors: Sequence[ManifestError]) -> CatalogManifestsError:
    lines = [f"{error.where}: {error.what}" for error in errors[:_MOST_TOLD]]
    more = [f"and {len(errors) - _MOST_TOLD:,} more"] if len(errors) > _MOST_TOLD else []
    count = "a manifest" if len(errors) == 1 else f"{len(errors):,} manifests"
    return CatalogManifestsError(
        f"{count} cannot be used, so the catalog stays as it was",
        detail="\n".join([*lines, *more]),
        todo="build these appliances again or remove the builds' folders, or leave them out by "
        "--skip-broken",
    )


# ---- one appliance


def _read(catalog: _Catalog, name: str, sources: Sequence[Source]) -> _Read | None:
    """Reads what is new of an appliance's manifests; None where none can be used."""
    known = records.read(catalog.target.folder / _record_of(name), _BUILDS_SHAPE) or {}
    builds: dict[str, Build] = {}
    paths: dict[str, Path] = {}
    record: dict[str, Any] = {}
    for source in sources:
        try:
            build = _read_one(source, name, known.get(source.key))
        except ManifestError as error:
            catalog.errors.append(error)
            continue
        if build.build not in builds:
            builds[build.build], paths[build.build] = build, source.path
            record[source.key] = {"signature": source.signature, "build": build.to_json()}
    if not builds:
        return None
    entry = Entry(sorted(builds.values(), key=lambda build: build.order, reverse=True))
    return _Read(entry=entry, paths=paths, record=record)


def _record_of(name: str) -> str:
    return f"{RECORDS}/builds/{name}.json"


def _read_one(source: Source, name: str, known: Mapping[str, Any] | None) -> Build:
    if known is not None and known["signature"] == source.signature:
        return to_build(known["build"])
    build = read_build(source)
    if build.appliance != name:
        raise ManifestError(
            f"the manifest is of {build.appliance!r}, and lies in the folder of {name!r}",
            where=str(source.path),
            todo="move the build to its appliance's folder",
        )
    return build


def _write(catalog: _Catalog, read: _Read) -> Card:
    """Writes an appliance's files: first what its page refers to."""
    entry, target = read.entry, catalog.target
    folder = folder_of(entry.name)
    for build in entry.builds:
        own, place = f"{folder}/{feeds.build_folder(build)}", read.paths[build.build].parent
        target.link(f"{own}/{FILE}", read.paths[build.build])
        for name in build.files:
            target.link(f"{own}/{name}", place / name)
    content = load(read.paths[entry.current.build])
    older = None if entry.previous is None else load(read.paths[entry.previous.build])
    own = f"{folder}/{feeds.build_folder(entry.current)}"
    files = {sections.LAUNCH_FILE: sections.launch_configuration(content)}
    user_data = sections.user_data_of(content)
    if user_data is not None:
        files[USER_DATA_FILE] = user_data
    for name, text in files.items():
        target.put(f"{own}/{name}", text)
    for name, data in pages.assets()[1].items():
        target.put(name, data)
    target.put(data_of(entry.name), feeds.appliance_json(entry))
    target.put(stream_of(entry.name), feeds.products_json(entry))
    place = read.paths[entry.current.build].parent
    found = catalog.find_vulnerabilities(content, place)
    page = pages.appliance_page(entry, content, older, catalog.site, found)
    target.put(page_of(entry.name), page)
    _remove_old(catalog, entry, {*files})
    target.put(_record_of(entry.name), json.dumps(read.record))
    return make_card(entry, feeds.product_names(entry))


def _remove_old(catalog: _Catalog, entry: Entry, current: set[str]) -> None:
    """Removes what is of no build any more. The folder of the current one has more files."""
    folder = f"{folder_of(entry.name)}/builds"
    for build in entry.builds:
        more = current if build is entry.current else set()
        catalog.target.keep_only(f"{folder}/{build.build}", {FILE, *build.files, *more})
    catalog.target.keep_only(folder, {build.build for build in entry.builds})


# ---- the whole


def _finish(catalog: _Catalog, cards: Sequence[Card]) -> None:
    """Writes what is of all appliances, and removes what is of none."""
    target, site = catalog.target, catalog.site
    names = {card.name for card in cards}
    contents = pages.assets()[1]
    for name, data in contents.items():
        target.put(name, data)
    rows = pages.make_rows(cards)
    written = dict(_whole(cards, rows, site))
    for name, text in written.items():
        target.put(name, text)
    target.keep_only("appliances", names)
    target.keep_only("streams/v1", {"index.json", *(f"{name}.json" for name in names)})
    target.keep_only(f"{RECORDS}/builds", {f"{name}.json" for name in names})
    target.keep_only("assets", {Path(name).name for name in contents})
    for path in sorted(target.folder.glob("index-*.html")):
        if path.name not in written:
            target.remove(path.name)


def _whole(
    cards: Sequence[Card], rows: Sequence[pages.Row], site: pages.Site
) -> Iterator[tuple[str, str | bytes]]:
    """The files of the whole catalog, each after what it refers to."""
    yield "search.js", feeds.search_data([row.to_json() for row in rows])
    yield "browse.html", pages.browse_page(rows, site)
    yield from feeds.all_json(cards, site.title, site.url)
    yield "feed.atom", feeds.atom_feed(cards, site.title, site.url)
    yield from pages.index_pages(rows, site, feeds.find_updated(cards))
