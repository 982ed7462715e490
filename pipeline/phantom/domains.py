"""A domain made at a Phantom, or found there as it is wanted."""

from __future__ import annotations

import re
from collections.abc import Sequence

from pipeline.errors import NameTakenError, UsageError
from pipeline.phantom.client import Client, Clouds, DomainState
from pipeline.phantom.query import NAME

_CLOUD = re.compile(r"([^:,\s]+)(?::(-1|[1-9][0-9]{0,4}))?")


def parse_clouds(text: str) -> Clouds:
    """The sites of `site[:max],site[:max]`, in this order; without a maximum there is no limit.
    Raises ValueError."""
    clouds: dict[str, int] = {}
    for word in text.split(","):
        match = _CLOUD.fullmatch(word.strip())
        if match is None:
            raise ValueError(f"{word[:40]!r} is not SITE or SITE:MAXIMUM")
        if match[1] in clouds:
            raise ValueError(f"{match[1][:40]!r} stands there twice")
        clouds[match[1]] = int(match[2] or -1)
    return tuple(clouds.items())


def describe_clouds(clouds: Clouds | None) -> str:
    """The sites in Phantom's order, for people."""
    words = (
        f"{site} ({'no limit' if most < 0 else f'at most {most}'})" for site, most in clouds or ()
    )
    return ", then ".join(words)


def choose_clouds(
    client: Client, configuration: str, wanted: Clouds, *, all_of_them: bool
) -> Clouds:
    """The sites that a new domain of a launch configuration is filled at: the `wanted` ones that
    Phantom has it for, where not `all_of_them` have to be there. Raises UsageError."""
    service = client.service
    found = client.find_configuration(configuration)
    send = f"`phantom-image launch-config {configuration} --phantom {service.name}` sends it"
    if found is None:
        raise UsageError(
            f"Phantom {service.name} has no launch configuration {configuration}", todo=send
        )
    if client.ranks_sites:
        if all_of_them:
            raise UsageError(
                "by the web API, a domain takes the order of sites and their maxima from its "
                "launch configuration",
                todo="leave --clouds out; the definition says both (`phantom: sites:`)",
            )
        ranked = sorted(found.sites.items(), key=lambda item: item[1].rank or 0)
        return tuple((site, -1 if each.max_vms is None else each.max_vms) for site, each in ranked)
    lacking = [site for site, _ in wanted if site not in found.sites]
    there = tuple(each for each in wanted if each[0] in found.sites)
    if lacking and (all_of_them or not there):
        names = ", ".join(f"{configuration}@{site}" for site in lacking)
        raise UsageError(
            f"Phantom {service.name} has no launch configuration {names}, only "
            f"{', '.join(f'{configuration}@{site}' for site in found.sites)}",
            todo=f"{send}; or choose other sites by --clouds",
        )
    return there


def check_name(name: str) -> None:
    """Raises UsageError for a name that Phantom refuses."""
    if NAME.fullmatch(name) is None:
        raise UsageError(
            f"Phantom takes no domain {name[:140]!r}",
            todo="use letters, digits, spaces, '-', '_' and '.', at most 128 of them",
        )


def make_domain(client: Client, name: str, configuration: str, size: int, clouds: Clouds) -> bool:
    """Makes a domain; returns whether it was not there already. Raises NameTakenError where the
    name is another's, and as `Client` does."""
    check_name(name)
    known = client.find_domain(name)
    if known is None:
        client.create_domain(name, configuration, size, clouds)
        return True
    differing = [*_find_differences(known, configuration, size, clouds)]
    if differing:
        raise NameTakenError(
            f"domain {name} exists already, with {', '.join(differing)}",
            where=f"Phantom {client.service.name}",
            todo=f"`phantom-image domain resize {name} --size {size}` changes its size; for the "
            "rest, delete it first or take another name",
        )
    return False


def _find_differences(
    known: DomainState, configuration: str, size: int, clouds: Clouds
) -> Sequence[str]:
    """What a domain has otherwise than wanted."""
    found = []
    if known.configuration != configuration:
        found.append(f"launch configuration {known.configuration}")
    if known.size != size:
        found.append(f"size {known.size}")
    if known.clouds is not None and known.clouds != clouds:
        found.append(f"sites {describe_clouds(known.clouds)}")
    return found
