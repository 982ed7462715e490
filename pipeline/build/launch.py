"""The manifest's `phantom` section: what Phantom takes to start the machines of a build.

It has the launch configuration of the web API, for all sites together, and of the AutoScaling query
API the parameters of one call per site, whose names `name@site` are one type for Phantom.

Phantom fills sites in the order of their ranks, and leaves a site only when it has the largest
number of machines that the site may have (docs/facts/batch.md). So each site has a rank of its own,
and a sandbox, which Phantom does not know, is left out where a real site is.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from pipeline.model import Appliance, PhantomPolicy, Publication
from pipeline.stages.base import read_own

UNLIMITED = -1


def make_section(
    appliance: Appliance,
    publications: Sequence[Publication],
    launch: Mapping[str, Mapping[str, object]],
    *,
    order: Sequence[str] = (),
    before: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """The section of these publications. User-data is plain text in it (docs/facts/phantom.md).

    `launch` has, by site, what Phantom needs besides the image's id: `instance_type` and `common`.
    Of other sites, the section `before` tells it. `order` names the sites as sites.yaml has them.
    Where all publications are in sandboxes, the section has them, and says so by `sandbox`.
    """
    policy = appliance.phantom
    user_data = None if policy.user_data is None else read_own(policy.user_data).decode()
    known = {} if before is None else params_of(before)
    real = [each for each in publications if not each.sandbox]
    params: dict[str, dict[str, Any]] = {}
    for publication in real or publications:
        site = publication.site
        if site in params:  # a site's own publication comes before its copies in other regions
            continue
        if site in launch:
            params[site] = {
                "image_id": publication.image_id,
                "instance_type": launch[site]["instance_type"],
                "max_vms": find_limit(policy, site),
                "common": launch[site]["common"],
            }
        elif site in known:
            params[site] = dict(known[site])
    ranks = {site: param.get("rank", math.inf) for site, param in params.items()}
    names = rank_sites(policy, params, order=order, ranks=ranks)
    configuration = {
        "name": appliance.name,
        "cloud_params": {
            site: {**params[site], "rank": policy.rank + number}
            for number, site in enumerate(names)
        },
        "contextualization_method": "none" if user_data is None else "user_data",
        "user_data": user_data,
        "appliance": None,
    }
    return complete(configuration, sandbox=bool(params) and not real)


def complete(configuration: Mapping[str, Any], *, sandbox: bool) -> dict[str, Any]:
    """The section that has this launch configuration."""
    user_data = configuration["user_data"]
    more = {} if user_data is None else {"UserData": user_data}
    return {
        "sandbox": sandbox,
        "launch_configuration": dict(configuration),
        "auto_scaling": {
            site: {
                "LaunchConfigurationName": f"{configuration['name']}@{site}",
                "ImageId": param["image_id"],
                "InstanceType": param["instance_type"],
                **more,
            }
            for site, param in configuration["cloud_params"].items()
        },
    }


def without_site(section: Mapping[str, Any], site: str) -> dict[str, Any]:
    """The section without a site."""
    left = {name: param for name, param in params_of(section).items() if name != site}
    configuration = {**section["launch_configuration"], "cloud_params": left}
    return complete(configuration, sandbox=bool(left) and section["sandbox"])


def params_of(section: Mapping[str, Any]) -> Mapping[str, Any]:
    """A section's parameters by site."""
    params: Mapping[str, Any] = section["launch_configuration"]["cloud_params"]
    return params


def find_limit(policy: PhantomPolicy, site: str) -> int:
    """The largest number of machines that Phantom may run on a site."""
    own = policy.sites.get(site)
    return policy.max_vms if own is None or own.max_vms is None else own.max_vms


def rank_sites(
    policy: PhantomPolicy,
    sites: Sequence[str] | Mapping[str, object],
    *,
    order: Sequence[str],
    ranks: Mapping[str, float] | None = None,
) -> list[str]:
    """Sites in the order in which Phantom fills them: first those that the definition ranks, then
    those of sites.yaml in its order, then others as they were ranked before."""
    positions = {name: number for number, name in enumerate(order)}

    def key(site: str) -> tuple[float, float, float, str]:
        own = policy.sites.get(site)
        wanted = math.inf if own is None or own.rank is None else own.rank
        return wanted, positions.get(site, math.inf), (ranks or {}).get(site, math.inf), site

    return sorted(sites, key=key)


def find_endless(limits: Sequence[tuple[str, int]]) -> str | None:
    """The warning about a site without a limit that stands before others; None if there is none.
    `limits` has the sites in Phantom's order, each with its largest number of machines."""
    for number, (site, limit) in enumerate(limits[:-1], 1):
        if limit == UNLIMITED:
            others = ", ".join(name for name, _ in limits[number:])
            return (
                f"Phantom never gets to {others}: {site} comes before and has no limit, and "
                "Phantom leaves no site before its limit, even if every machine there fails; set "
                f"`phantom: sites: {site}: max_vms:` of the definition"
            )
    return None


def find_endless_in(section: Mapping[str, Any]) -> str | None:
    """The same warning about a section of a manifest."""
    params = params_of(section)
    ranked = sorted(params, key=lambda site: int(params[site]["rank"]))
    return find_endless([(site, params[site]["max_vms"]) for site in ranked])
