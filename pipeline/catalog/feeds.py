"""What programs read of the catalog: catalog.json, simplestreams, and an Atom feed."""

from __future__ import annotations

import json
import re
import uuid
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from email.utils import format_datetime
from typing import Any
from urllib.parse import quote
from xml.etree import ElementTree

from pipeline.catalog.card import (
    Card,
    News,
    data_of,
    folder_of,
    page_of,
    stream_of,
)
from pipeline.catalog.model import Build, Entry
from pipeline.model import Publication
from pipeline.terminal import escape

SCHEMA = 1
"""Of catalog.json and appliance.json."""
ENTRIES = 50
"""How many builds the Atom feed has at most."""
_EPOCH = "1970-01-01T00:00:00Z"
_NAMESPACE = uuid.uuid5(uuid.NAMESPACE_URL, "urn:phantom-image:catalog")
_ATOM = "http://www.w3.org/2005/Atom"
_WORD = re.compile(r"[^A-Za-z0-9.-]+")


def _write(value: object) -> str:
    return json.dumps(value, ensure_ascii=False) + "\n"


def find_updated(cards: Sequence[Card]) -> str:
    """When the newest build was published."""
    return max((card.updated for card in cards), default=_EPOCH)


# ---- our own


def catalog_json(cards: Sequence[Card], title: str, url: str | None) -> str:
    """The appliances, each with its current build."""
    return _write(
        {
            "schema": SCHEMA,
            "title": title,
            "url": url,
            "updated": find_updated(cards),
            "appliances": [
                {
                    "name": card.name,
                    "page": page_of(card.name),
                    "data": data_of(card.name),
                    "builds": card.builds,
                    "current": _describe(card.current, f"{folder_of(card.name)}/"),
                }
                for card in cards
            ],
        }
    )


def appliance_json(entry: Entry) -> str:
    """An appliance with all its builds, the newest first."""
    builds = [_describe(build) for build in entry.builds]
    current = entry.current.build
    return _write({"schema": SCHEMA, "name": entry.name, "current": current, "builds": builds})


def build_folder(build: Build) -> str:
    """A build's folder in that of its appliance."""
    return f"builds/{build.build}"


def _describe(build: Build, prefix: str = "") -> dict[str, Any]:
    """A build for programs. Paths are relative to the file that has it."""
    told = build.to_json()
    folder = f"{prefix}{build_folder(build)}"
    del told["appliance"]
    return {
        **told,
        "manifest": f"{folder}/manifest.json",
        "files": {name: f"{folder}/{name}" for name in build.files},
    }


# ---- simplestreams


def product_name(build: Build, publication: Publication) -> str:
    """The name of a simplestreams product: an appliance at one place. Clients ask for the newest
    version of a product, and a place may not have an appliance's newest build."""
    words = [build.appliance, build.codename or "unknown", build.architecture, publication.site]
    if publication.region:
        words.append(publication.region)
    return ":".join(["phantom-image", *(_WORD.sub("-", word) for word in words)])


def product_names(entry: Entry) -> tuple[str, ...]:
    """The names of an appliance's products."""
    return tuple(
        dict.fromkeys(
            product_name(build, publication)
            for build in entry.builds
            if build.usable
            for publication in build.publications
        )
    )


def products_json(entry: Entry) -> str:
    """The simplestreams products of an appliance: its builds that may be used. A version's name
    begins with its time, since clients take the last one by name for the newest."""
    products: dict[str, dict[str, Any]] = {}
    for build in entry.builds:
        for each in build.publications if build.usable else ():
            product = products.setdefault(product_name(build, each), _product(build, each))
            product["versions"][_version_name(build)] = {
                "label": "release",
                "build": build.build,
                "appliance_version": build.version,
                "state": build.state,
                "items": {"image": _item(each)},
            }
    updated = max(build.date for build in entry.builds)
    return _write(
        {
            "format": "products:1.0",
            "datatype": "image-ids",
            "content_id": _content_id(entry.name),
            "updated": _rfc2822(updated),
            "products": products,
        }
    )


def _content_id(name: str) -> str:
    return f"phantom-image:{name}"


def _product(build: Build, publication: Publication) -> dict[str, Any]:
    """What is the same for all versions: that of the newest."""
    region = publication.region or publication.site
    return {
        "appliance": build.appliance,
        "os": build.labels.get("os") or (build.release.split() or ["unknown"])[0].lower(),
        "release": build.codename or "unknown",
        "release_title": build.release,
        "arch": build.architecture,
        "cloud": publication.cloud,
        "site": publication.site,
        "region": region,
        "crsn": region,
        "versions": {},
    }


def _version_name(build: Build) -> str:
    return f"{re.sub('[-:]', '', build.date)}.{build.build}"


def _item(publication: Publication) -> dict[str, str]:
    return {
        "id": publication.image_id,
        "location": publication.location,
        "sha256": publication.sha256,
        "sandbox": str(publication.sandbox).lower(),
    }


def streams_index(cards: Sequence[Card]) -> str:
    """The index of simplestreams: a file of products for each appliance."""
    return _write(
        {
            "format": "index:1.0",
            "updated": _rfc2822(find_updated(cards)),
            "index": {
                _content_id(card.name): {
                    "format": "products:1.0",
                    "datatype": "image-ids",
                    "path": stream_of(card.name),
                    "products": [*card.products],
                    "clouds": [
                        {"region": region, "endpoint": site}
                        for site, region in sorted(
                            {(p.site, p.region or p.site) for p in card.current.publications}
                        )
                    ],
                    "updated": _rfc2822(card.updated),
                }
                for card in cards
            },
        }
    )


def _rfc2822(date: str) -> str:
    try:
        return format_datetime(datetime.fromisoformat(date).astimezone(UTC))
    except ValueError:
        return _rfc2822(_EPOCH)


# ---- Atom


def atom_feed(cards: Sequence[Card], title: str, url: str | None) -> bytes:
    """The newest builds that may be used, as a feed."""
    found = [(card, news) for card in cards for news in card.news]
    found.sort(key=lambda each: (each[1].date, each[0].name, each[1].build), reverse=True)
    feed = ElementTree.Element("feed", xmlns=_ATOM)
    _add(feed, "title", title)
    _add(feed, "id", f"urn:uuid:{uuid.uuid5(_NAMESPACE, url or title)}")
    _add(feed, "updated", _moment(find_updated(cards)))
    _add(_add(feed, "author"), "name", title)
    _add(feed, "link", rel="self", href=_link("feed.atom", url), type="application/atom+xml")
    _add(feed, "link", rel="alternate", href=_link("index.html", url), type="text/html")
    for card, news in found[:ENTRIES]:
        _add_entry(feed, card, news, url)
    ElementTree.indent(feed)
    data: bytes = ElementTree.tostring(feed, encoding="utf-8", xml_declaration=True)
    return data + b"\n"


def _add_entry(feed: ElementTree.Element, card: Card, news: News, url: str | None) -> None:
    entry = _add(feed, "entry")
    _add(entry, "title", f"{card.name} {news.version}, build {news.build}")
    _add(entry, "id", f"urn:uuid:{uuid.uuid5(_NAMESPACE, f'{card.name}/{news.build}')}")
    _add(entry, "updated", _moment(news.date))
    _add(entry, "link", rel="alternate", href=_link(page_of(card.name), url), type="text/html")
    _add(entry, "summary", f"{card.current.summary} (at {', '.join(news.sites)})")


def _add(
    parent: ElementTree.Element, name: str, text: str | None = None, **attributes: str
) -> ElementTree.Element:
    # XML has no place for control characters, not even escaped.
    safe = {key: escape(value) for key, value in attributes.items()}
    element = ElementTree.SubElement(parent, name, safe)
    element.text = None if text is None else escape(text)
    return element


def _moment(date: str) -> str:
    """A date as Atom has it; ours is that already, and a damaged one is none."""
    try:
        datetime.fromisoformat(date)
    except ValueError:
        return _EPOCH
    return date


def _link(path: str, url: str | None) -> str:
    return f"{url}/{quote(path)}" if url else quote(path)


def all_json(cards: Sequence[Card], title: str, url: str | None) -> Iterator[tuple[str, str]]:
    """The files of the whole catalog for programs, in the order in which they refer to each
    other."""
    yield "streams/v1/index.json", streams_index(cards)
    yield "catalog.json", catalog_json(cards, title, url)


def search_data(rows: Sequence[Mapping[str, Any]]) -> str:
    """What the index page's script searches: a script of its own, which browsers load from a folder
    too, where they fetch no JSON."""
    text = json.dumps(rows, separators=(",", ":"))
    return f"window.catalogRows={text};\n"
