"""A launch configuration of a manifest sent to a Phantom: first what would be done, then doing it.

User-data belongs to the launch configuration and not to one of its sites, so whoever sends one site
changes it for all. Sites that are not sent stay as they are.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from pipeline.errors import InUseError, NotPublishedError
from pipeline.phantom.client import Client, Configuration, SiteParams

CREATE, REPLACE, SAME, KEEP = "create", "replace", "unchanged", "keep"


@dataclass(frozen=True, kw_only=True)
class Step:
    """What is done about one site."""

    site: str
    action: str
    """`create`, `replace`, `unchanged`; or `keep`, of a site that is not sent."""
    params: SiteParams
    """As they are wanted."""
    changes: Sequence[str] = ()
    """What differs from what Phantom has, in words."""


@dataclass(frozen=True, kw_only=True)
class Sending:
    """What is done about a launch configuration."""

    wanted: Configuration
    before: Configuration | None
    steps: Sequence[Step]
    changes_user_data: bool
    """Of machines at sites that Phantom has already."""
    domains: Sequence[str]
    """Those that use it."""

    @property
    def todo(self) -> list[Step]:
        """The steps that change something."""
        return [step for step in self.steps if step.action in (CREATE, REPLACE)]


def check_published(content: Mapping[str, Any], sites: Sequence[str], *, sandbox: bool) -> None:
    """Raises NotPublishedError where a manifest has nothing that could start at these sites; with
    `sandbox`, sandbox sites count."""
    about, section = content["appliance"], content["phantom"]
    build = f"{about['name']} {about['version']}, build {about['build']},"
    publish = f"`phantom-image publish {about['name']} --build {about['build']}"
    known = [*section["launch_configuration"]["cloud_params"]]
    if not known:
        raise NotPublishedError(
            f"{build} is published at no site",
            todo=f"{publish} --site SITE` publishes it",
        )
    if section["sandbox"] and not sandbox:
        raise NotPublishedError(
            f"{build} is published at sandboxes alone ({', '.join(known)}), which only a local "
            "Phantom reaches",
            todo=f"{publish} --site SITE` publishes it at a real site; --phantom local names the "
            "Phantom that `phantom-image phantom-sandbox` runs",
        )
    for site in sites:
        if site not in known:
            raise NotPublishedError(
                f"{build} is not published at {site}, only at {', '.join(known)}",
                todo=f"{publish} --site {site}` publishes it there",
            )


def plan_sending(client: Client, section: Mapping[str, Any], sites: Sequence[str]) -> Sending:
    """What sending these sites of a manifest's section would do. Raises as `Client` does."""
    before = client.find_configuration(section["launch_configuration"]["name"])
    wanted = _merge(section["launch_configuration"], before, sites)
    if not client.ranks_sites:
        wanted = replace(
            wanted,
            sites={
                site: SiteParams(image_id=params.image_id, instance_type=params.instance_type)
                for site, params in wanted.sites.items()
            },
        )
    changed = before is not None and _differs_in_user_data(wanted, before, client)
    steps = [_make_step(site, wanted, before, sites, changed) for site in wanted.sites]
    domains = client.list_domains() if before is not None else []
    return Sending(
        wanted=wanted,
        before=before,
        steps=steps,
        changes_user_data=changed,
        domains=[each.name for each in domains if each.configuration == wanted.name],
    )


def _merge(
    configuration: Mapping[str, Any], before: Configuration | None, sites: Sequence[str]
) -> Configuration:
    """The launch configuration with these sites as the manifest has them, and all others as Phantom
    has them; in the manifest's order, each with a rank of its own."""
    said: Mapping[str, Mapping[str, Any]] = configuration["cloud_params"]
    merged = dict(before.sites) if before is not None else {}
    for site in sites:
        merged[site] = SiteParams(
            image_id=said[site]["image_id"],
            instance_type=said[site]["instance_type"],
            max_vms=said[site]["max_vms"],
            common=said[site].get("common", False),
            rank=said[site]["rank"],
        )

    def key(site: str) -> tuple[float, float, str]:
        mine = said[site]["rank"] if site in said else math.inf
        rank = merged[site].rank
        return mine, math.inf if rank is None else rank, site

    first = min(params["rank"] for params in said.values())
    ordered = sorted(merged, key=key)
    ranks = {site: first + number for number, site in enumerate(ordered)}
    return Configuration(
        name=configuration["name"],
        sites={site: replace(merged[site], rank=ranks[site]) for site in ordered},
        user_data=configuration["user_data"] or None,
        method=configuration.get("contextualization_method", "user_data"),
        appliance=before.appliance if before is not None else None,
        id=before.id if before is not None else "",
    )


def _differs_in_user_data(wanted: Configuration, before: Configuration, client: Client) -> bool:
    if client.ranks_sites and wanted.method != before.method:
        return True
    return wanted.user_data != before.user_data


def _make_step(
    site: str,
    wanted: Configuration,
    before: Configuration | None,
    sites: Sequence[str],
    changed: bool,
) -> Step:
    params = wanted.sites[site]
    had = before.sites.get(site) if before is not None else None
    if had is None:
        return Step(site=site, action=CREATE, params=params)
    names = {"image_id": "image", "instance_type": "type", "max_vms": "at most", "common": "common"}
    changes = [
        f"{words} {_word(getattr(had, name))} -> {_word(getattr(params, name))}"
        for name, words in {**names, "rank": "rank"}.items()
        if getattr(had, name) != getattr(params, name)
    ]
    changes += ["user-data"] if changed else []
    if site not in sites:
        return Step(site=site, action=KEEP, params=params, changes=changes)
    return Step(site=site, action=REPLACE if changes else SAME, params=params, changes=changes)


def _word(value: object) -> str:
    if value == -1:
        return "no limit"
    return ("no", "yes")[value] if isinstance(value, bool) else str(value)


def check_unused(client: Client, sending: Sending) -> None:
    """Raises InUseError where Phantom would refuse a step because domains use the launch
    configuration: nothing is changed then."""
    replaced = [step.site for step in sending.steps if step.action == REPLACE]
    if client.replaces_in_use or not replaced or not sending.domains:
        return
    name, domains = sending.wanted.name, ", ".join(sending.domains)
    raise InUseError(
        f"launch configuration {name} cannot be replaced at {', '.join(replaced)}: "
        f"{'domain' if len(sending.domains) == 1 else 'domains'} {domains} "
        f"{'uses' if len(sending.domains) == 1 else 'use'} it",
        where=f"Phantom {client.service.name}",
        todo="delete what uses it (`phantom-image domain delete`) and run the same command again, "
        "or send the build under another name; the web API replaces it in use",
    )


def send(client: Client, sending: Sending) -> Iterator[Step]:
    """Does the steps, and yields each when it is done. What is done stays done: a later run goes on
    where this one ended. Raises as `Client.put_site`."""
    before, todo = sending.before, sending.todo
    if client.ranks_sites:
        if todo:
            client.put_site(sending.wanted, todo[0].site, before)
        yield from todo
        return
    for step in todo:
        client.put_site(sending.wanted, step.site, before)
        yield step
