"""Reads `sites.yaml`, and selects the sites that a command names."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING

from pipeline.definitions.bounds import bounded
from pipeline.definitions.messages import Schema, check_schema, choose, raise_mistakes, suggest
from pipeline.definitions.site_schema import (
    make_cloudless_check,
    make_site_schema,
    make_sites_check,
    make_sites_schema,
)
from pipeline.definitions.yaml import Keys, YamlFile, read_yaml
from pipeline.errors import UsageError
from pipeline.model import Site

if TYPE_CHECKING:
    from pipeline.clouds import Cloud

BUILT_IN = "built in"
"""`Site.where` of built-in sites, instead of file and line."""

_TODO = "correct it; sites.example.yaml shows what the file can say"


def sites_schema(clouds: Mapping[str, type[Cloud]]) -> Schema:
    """The JSON Schema (draft 2020-12) of `sites.yaml`."""
    return bounded(make_sites_schema({name: cloud.site_schema for name, cloud in clouds.items()}))


def load_sites(path: Path | None, clouds: Mapping[str, type[Cloud]]) -> tuple[Site, ...]:
    """The sites of `sites.yaml`, if there is one, in order. The built-in sandbox of each cloud
    follows unless the file redefines it. Raises DefinitionError with all mistakes.
    """
    built_in = tuple(
        Site(name=f"{cloud}-sandbox", cloud=cloud, sandbox=True, where=BUILT_IN) for cloud in clouds
    )
    if path is None or not os.path.exists(path):
        return built_in
    file = read_yaml(path)
    sites = [] if file.broken else _make_sites(file, clouds)
    raise_mistakes([file], _TODO)
    names = [site.name for site in sites]
    return (*sites, *(site for site in built_in if site.name not in names))


def select_sites(
    sites: Sequence[Site], cloud: Sequence[str] | None, site: Sequence[str] | None
) -> tuple[Site, ...]:
    """Selects the sites that the command line names, in the order of `sites`.

    `site` names sites, and `cloud` clouds, of which all sites are selected, but a built-in one only
    if its cloud has no other. Without either, all configured sites are selected, or else the first
    built-in one. Raises UsageError for an unknown name, and for a site that is on none of the
    named clouds.
    """
    check_words("site", site or (), [known.name for known in sites])
    check_words("cloud", cloud or (), list(dict.fromkeys(known.cloud for known in sites)))
    if site:
        chosen = tuple(known for known in sites if known.name in site)
        for named in chosen:
            if cloud and named.cloud not in cloud:
                raise UsageError(
                    f"site {named.name!r} is a site of cloud {named.cloud!r}, not of "
                    f"{' or '.join(map(repr, cloud))}",
                    todo="name the site alone, or the cloud alone",
                )
        return chosen
    configured = tuple(known for known in sites if known.where != BUILT_IN)
    if not cloud:
        return configured or tuple(sites[:1])
    covered = {known.cloud for known in configured}
    return tuple(
        known
        for known in sites
        if known.cloud in cloud and (known.where != BUILT_IN or known.cloud not in covered)
    )


def _make_sites(file: YamlFile, clouds: Mapping[str, type[Cloud]]) -> list[Site]:
    check_schema(file, make_sites_check(clouds))
    data = file.value(("sites",))
    sites = []
    for name, options in (data if isinstance(data, dict) else {}).items():
        keys: Keys = ("sites", name)
        if not isinstance(options, dict):
            continue
        if "cloud" not in options:
            schema = make_cloudless_check(cloud.site_schema for cloud in clouds.values())
            check_schema(file, schema, keys)
        cloud = file.text((*keys, "cloud"))
        if cloud is None:
            continue
        sandbox = options.get("sandbox", False) is True
        schema = make_site_schema(cloud, clouds[cloud].site_schema, sandbox=sandbox)
        check_schema(file, schema, keys)
        own = {key: value for key, value in options.items() if key not in ("cloud", "sandbox")}
        where = file.where(keys, key=True)
        options = MappingProxyType(own)
        sites.append(Site(name=name, cloud=cloud, options=options, where=where, sandbox=sandbox))
    return sites


def check_words(kind: str, words: Iterable[str], known: Sequence[str]) -> None:
    """Raises UsageError for a word of a `kind`, site or cloud, that is not known."""
    for word in words:
        if word not in known:
            what = f"there is no site {word!r}" if kind == "site" else f"no site has cloud {word!r}"
            raise UsageError(what + suggest(word, known), todo=choose(known, "write sites.yaml"))
