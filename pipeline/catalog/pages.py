"""The catalog's pages. They work without their script, which searches and copies."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.attestations.documents import signature_of
from pipeline.attestations.vulnerabilities import Vulnerability
from pipeline.build.lifecycle import State
from pipeline.build.manifest import FILE
from pipeline.catalog import sections
from pipeline.catalog.card import Card, page_of
from pipeline.catalog.feeds import build_folder
from pipeline.catalog.model import Build, Entry
from pipeline.clouds.recipes import USER_DATA_FILE
from pipeline.model import format_size
from pipeline.pages import TEMPLATES, format_duration, make_environment
from pipeline.pages.plots import Column, columns
from pipeline.terminal import escape

if TYPE_CHECKING:
    from jinja2 import Environment
    from markupsafe import Markup

POLICY = (
    "default-src 'none'; style-src 'self'; script-src 'self'; img-src 'self'; base-uri 'none'; "
    "form-action 'none'"
)
"""What pages may load (Content-Security-Policy): their own style and script."""
ROWS = 200
"""How many appliances one page of the index has at most."""
_SUMMARY = 160  # characters of it in the index
_CHIPS = 4  # labels of a row
_FOLDER = Path(__file__).parent


@dataclass(frozen=True, kw_only=True)
class Assets:
    """Style and script. Their names tell their content, so that no page gets another's."""

    style: str
    script: str
    icon: str

    @property
    def names(self) -> tuple[str, str, str]:
        return self.style, self.script, self.icon


@cache
def assets() -> tuple[Assets, Mapping[str, bytes]]:
    """Their names and contents."""
    found: dict[str, bytes] = {}
    for name in ("catalog.css", "catalog.js", "icon.svg"):
        data = (_FOLDER / "static" / name).read_bytes()
        if name == "catalog.css":
            data = (TEMPLATES / "plots.css").read_bytes() + data
        stem, _, suffix = name.partition(".")
        found[f"assets/{stem}-{hashlib.sha256(data).hexdigest()[:12]}.{suffix}"] = data
    style, script, icon = found
    return Assets(style=style, script=script, icon=icon), found


def digest_of_code() -> str:
    """Tells whether pages would look as they did: a digest of templates, assets and our modules."""
    digest = hashlib.sha256()
    for folder in (_FOLDER, TEMPLATES.parent):
        for path in sorted(folder.rglob("*")):
            if path.is_file() and path.suffix != ".pyc":
                digest.update(path.read_bytes())
    return digest.hexdigest()


@cache
def _environment() -> Environment:
    environment = make_environment(_FOLDER / "templates")
    environment.filters |= {"boot": format_boot, "day": lambda date: date[:10], "short": shorten}
    environment.globals |= {"policy": POLICY, "assets": assets()[0], "State": State}
    return environment


def format_boot(seconds: float | None) -> str:
    """How long a machine took to boot, for people."""
    return "not booted" if seconds is None else format_duration(seconds)


def shorten(text: str, most: int = _SUMMARY) -> str:
    """A text of at most so many characters, cut at a word where that can be."""
    if len(text) <= most:
        return text
    cut = text[: most - 1]
    head, blank, _ = cut.rpartition(" ")
    return f"{head if blank and len(head) > most // 2 else cut}\N{HORIZONTAL ELLIPSIS}"


@dataclass(frozen=True, kw_only=True)
class Site:
    """What all pages of one catalog share."""

    title: str
    url: str | None
    """Where it is on the web, without a slash at the end; None where that is not known."""

    def render(self, template: str, root: str, **values: Any) -> str:
        """A page; `root` leads from its folder to the catalog's."""
        page = _environment().get_template(template)
        return f"{page.render(site=self, root=root, **values)}\n"


# ---- the index


@dataclass(frozen=True, kw_only=True)
class Row:
    """An appliance in the index."""

    card: Card

    @property
    def build(self) -> Build:
        return self.card.current

    @property
    def page(self) -> str:
        return page_of(self.card.name)

    @property
    def labels(self) -> list[str]:
        return [shorten(f"{key}={value}", 40) for key, value in self.build.labels.items()]

    @cached_property
    def chips(self) -> list[str]:
        """The labels that are shown, and how many are not."""
        labels = self.labels
        more = [f"+{len(labels) - _CHIPS}"] if len(labels) > _CHIPS else []
        return labels[:_CHIPS] + more

    def to_json(self) -> dict[str, Any]:
        """The row as the script draws and searches it."""
        build = self.build
        return {
            "n": build.appliance,
            "v": escape(build.version),
            "d": escape(shorten(build.summary)),
            "p": {cloud: ", ".join(sites) for cloud, sites in build.places.items()},
            "c": build.clouds,
            "s": build.sites,
            "l": self.labels,
            "b": build.build,
            "t": build.date[:10],
            "z": format_size(build.bytes) if build.bytes else "",
            "o": format_boot(build.boot_seconds),
            "e": build.emulated,
            "w": build.state,
            "r": build.codename,
        }


def make_rows(cards: Sequence[Card]) -> list[Row]:
    """The rows of the index, by name; last what is not to be started."""
    useless = (State.WITHDRAWN, State.DELETED)
    ordered = sorted(cards, key=lambda card: (card.current.state in useless, card.name))
    return [Row(card=card) for card in ordered]


def index_pages(rows: Sequence[Row], site: Site, updated: str) -> Iterator[tuple[str, str]]:
    """The index, `index.html` last."""
    count = max(1, -(-len(rows) // ROWS))
    names = ["index.html", *(f"index-{number}.html" for number in range(2, count + 1))]
    facets = find_facets(rows)
    for number in reversed(range(count)):
        yield (
            names[number],
            site.render(
                "index.html",
                "",
                rows=rows[number * ROWS : (number + 1) * ROWS],
                count=len(rows),
                number=number + 1,
                names=names,
                facets=facets,
                updated=updated,
            ),
        )


def find_facets(rows: Sequence[Row]) -> dict[str, dict[str, list[Row]]]:
    """The appliances by state, cloud, site and label."""
    facets: dict[str, dict[str, list[Row]]] = {
        name: {} for name in ("State", "Cloud", "Site", "Label")
    }
    for row in rows:
        build = row.build
        of_row = (
            ("State", [build.state.value]),
            ("Cloud", build.clouds),
            ("Site", build.sites),
            ("Label", row.labels),
        )
        for facet, values in of_row:
            for value in values:
                facets[facet].setdefault(value, []).append(row)
    return {facet: dict(sorted(found.items())) for facet, found in facets.items()}


def browse_page(rows: Sequence[Row], site: Site) -> str:
    """All appliances by cloud, site and label: what filters do, without a script."""
    return site.render("browse.html", "", facets=find_facets(rows), count=len(rows))


# ---- an appliance


def appliance_page(
    entry: Entry,
    content: Mapping[str, Any],
    older: Mapping[str, Any] | None,
    site: Site,
    vulnerabilities: Sequence[Vulnerability] | None = None,
) -> str:
    """An appliance's page, from the manifests of its current build and of the one before.
    `vulnerabilities` are those that are known to be open in it, the worst first; None: not known.
    """
    build = entry.current
    return site.render(
        "appliance.html",
        "../../",
        entry=entry,
        build=build,
        folder=build_folder(build),
        build_folder=build_folder,
        replacement=_find_page(build.replacement),
        ranks=sections.find_ranks(content),
        sandbox=content["phantom"]["sandbox"],
        phantom=sections.phantom_recipes(content),
        places=sections.find_places(build, content),
        user_data=sections.user_data_of(content),
        files=(USER_DATA_FILE, sections.LAUNCH_FILE),
        boots=sections.find_boots(content),
        clusters=sections.find_clusters(content),
        vulnerabilities=vulnerabilities,
        severities=Counter(each.severity for each in vulnerabilities or ()),
        manifest=FILE,
        signature=signature_of(Path(FILE)).name,
        checks=sections.find_checks(content),
        images=content["images"],
        packages=sections.find_packages(content),
        wheels=sections.find_wheels(content),
        plots=_draw_history(entry),
        origin=sections.find_origin(content),
        changes=sections.find_changes(content, older, entry.previous),
    )


def _find_page(replacement: str | None) -> str | None:
    return None if replacement is None else f"../{replacement.partition('/')[0]}/index.html"


_PLOTTED = 50  # builds


def _draw_history(entry: Entry) -> list[Markup]:
    """Size and boot time of the newest builds, as plots."""
    builds = [*reversed(entry.builds[:_PLOTTED])]
    if len(builds) < 2:
        return []
    sizes = [_column(each, float(each.bytes), format_size(each.bytes)) for each in builds]
    boots = [
        _column(each, each.boot_seconds or 0.0, format_boot(each.boot_seconds)) for each in builds
    ]
    most_bytes = max(each.bytes for each in builds)
    most_seconds = max(each.boot_seconds or 0.0 for each in builds)
    return [
        columns("Size of the image", sizes, top=format_size(most_bytes)),
        columns("Boot time", boots, top=format_duration(most_seconds)),
    ]


def _column(build: Build, value: float, text: str) -> Column:
    return Column(label=build.date[:10], parts=((build.state.value, value),), text=text)
