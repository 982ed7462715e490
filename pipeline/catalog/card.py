"""What the pages and feeds of the whole catalog tell of one appliance, and where its files are."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pipeline.catalog.model import BUILD_SHAPE, Build, Entry, to_build

NEWS = 5
"""How many builds of one appliance the feed of new builds has at most."""


def folder_of(name: str) -> str:
    """An appliance's folder in the catalog."""
    return f"appliances/{name}"


def page_of(name: str) -> str:
    """An appliance's page."""
    return f"{folder_of(name)}/index.html"


def data_of(name: str) -> str:
    """An appliance's builds, for programs."""
    return f"{folder_of(name)}/appliance.json"


def stream_of(name: str) -> str:
    """An appliance's simplestreams products."""
    return f"streams/v1/{name}.json"


@dataclass(frozen=True, kw_only=True)
class News:
    """A build that is new."""

    build: str
    version: str
    date: str
    sites: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class Card:
    """An appliance in short."""

    current: Build
    builds: int
    """How many there are."""
    updated: str
    """When the newest of them was published."""
    products: tuple[str, ...]
    """Their names in simplestreams."""
    news: tuple[News, ...]
    """The newest builds that may be used, the newest first."""

    @property
    def name(self) -> str:
        return self.current.appliance

    def to_json(self) -> dict[str, Any]:
        """The card as JSON can hold it."""
        news = [vars(each) for each in self.news]
        return {**vars(self), "current": self.current.to_json(), "news": news}


CARD_SHAPE: Mapping[str, Any] = {
    "current": BUILD_SHAPE,
    "builds": int,
    "updated": str,
    "products": [str],
    "news": [{"build": str, "version": str, "date": str, "sites": [str]}],
}
"""The shape of a `Card` as JSON."""


def make_card(entry: Entry, products: tuple[str, ...]) -> Card:
    """The card of an appliance."""
    usable = [build for build in entry.builds if build.usable]
    return Card(
        current=entry.current,
        builds=len(entry.builds),
        updated=max(build.date for build in entry.builds),
        products=products,
        news=tuple(
            News(build=each.build, version=each.version, date=each.date, sites=tuple(each.sites))
            for each in usable[:NEWS]
        ),
    )


def to_card(told: Mapping[str, Any]) -> Card:
    """The card that has been JSON of its shape."""
    news = (News(**{**each, "sites": tuple(each["sites"])}) for each in told["news"])
    products = tuple(told["products"])
    current = to_build(told["current"])
    return Card(**{**told, "current": current, "products": products, "news": tuple(news)})
