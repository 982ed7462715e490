"""`phantom-image launch`: a build's machines started by a cloud's own means, without Phantom."""

from __future__ import annotations

from argparse import ArgumentParser, ArgumentTypeError, Namespace
from collections.abc import Mapping, Sequence
from typing import Any

from pipeline.build.manifest import publications_of
from pipeline.build.sites import open_site
from pipeline.clouds import make_cloud
from pipeline.clouds.launching import Launch, LaunchOrder
from pipeline.commands import options as shared
from pipeline.commands.output import print_json, print_line, print_table
from pipeline.errors import NotPublishedError, UsageError
from pipeline.model import Site

EXAMPLES = (
    "phantom-image launch web --site frankfurt --count 2 --key-name mine",
    "phantom-image launch web.json --site frankfurt --count 2 --dry-run",
)
_MOST = 1000  # machines of one call
_TEMPLATES = {"create": "is made", "change": "gets a further version", "reuse": "is there"}


def add_arguments(parser: ArgumentParser) -> None:
    """Adds the command's arguments."""
    shared.add(parser, "manifest", "of")
    add = parser.add_argument
    add("--site", action="append", required=True, metavar="SITE", help="where they start")
    add("--count", type=_count, default=1, metavar="N", help="how many (1)")
    add("--region", metavar="REGION", help="one that the site has copies in (the site's own)")
    add("--key-name", metavar="NAME", help="the key pair that may log in")
    add("--subnet", metavar="ID", help="the subnet (one of the account's default network)")
    text = "a security group's id; again for more"
    add("--security-group", action="append", metavar="ID", help=text)
    add("--dry-run", action="store_true", help="tell what would be done, and start nothing")
    shared.add(parser, "json")


def _count(text: str) -> int:
    """An option's number of machines. Raises ArgumentTypeError."""
    if not (text.isascii() and text.isdigit() and len(text) < 5 and 1 <= int(text) <= _MOST):
        raise ArgumentTypeError(f"{text[:40]!r} is no number from 1 to {_MOST}")
    return int(text)


def run(options: Namespace) -> None:
    """Starts machines and lists them, or tells what would be done. Raises UsageError,
    NotPublishedError, and what sites do."""
    content = shared.read_named_manifest(options)
    named = shared.load_sites(options)
    if len(named) != 1:
        raise UsageError("`launch` starts machines at one site", todo="name one by --site")
    (site,) = named
    cloud = make_cloud(site)
    order = _make_order(content, site, options)
    with open_site(cloud, shared.open_workspace(options)) as opened:
        launch = opened.launch(order, dry_run=options.dry_run)
    if options.json:
        print_json(_describe(order, site, launch, dry_run=options.dry_run))
    else:
        _print(order, site, launch, dry_run=options.dry_run)


def _make_order(content: Mapping[str, Any], site: Site, options: Namespace) -> LaunchOrder:
    """The order by the manifest's launch data for the site. Raises NotPublishedError."""
    about = content["appliance"]
    published = [each for each in publications_of(content) if each.site == site.name]
    regions = [each.region for each in published]
    region = options.region or (regions[0] if regions else None)
    if region not in regions:
        raise _make_unpublished(content, site, options.region, regions)
    templates = {(each["site"], each["region"]): each for each in content["launch_templates"]}
    known = templates.get((site.name, region))
    if known is None:
        raise UsageError(
            f"site {site.name} starts no machines by itself: cloud {site.cloud} has no launch "
            "templates",
            where=site.where,
            todo="have Phantom start them (`phantom-image launch-config`, `phantom-image domain`)",
        )
    added = {
        "KeyName": options.key_name,
        "SubnetId": options.subnet,
        "SecurityGroupIds": options.security_group,
    }
    return LaunchOrder(
        appliance=about["name"],
        version=about["version"],
        build=about["build"],
        region=region or "",  # which clouds with launch templates have
        data=known["data"],
        count=options.count,
        options={name: value for name, value in added.items() if value},
    )


def _make_unpublished(
    content: Mapping[str, Any], site: Site, region: str | None, regions: Sequence[str | None]
) -> NotPublishedError:
    """The error of a build that a site, or a region of it, does not have."""
    about = content["appliance"]
    place = site.name if region is None else f"{region} of {site.name}"
    sites = sorted({each.site for each in publications_of(content)}) or ["no site"]
    only = ", ".join(map(str, regions)) or ", ".join(sites)
    return NotPublishedError(
        f"{about['name']} {about['version']}, build {about['build']}, is not published at {place}, "
        f"only at {only}",
        todo=f"`phantom-image publish {about['name']} --build {about['build']} --site "
        f"{site.name}` publishes it there",
    )


def _print(order: LaunchOrder, site: Site, launch: Launch, *, dry_run: bool) -> None:
    place = f"{site.name} ({order.region})"
    count = f"{order.count} machine{'' if order.count == 1 else 's'}"
    template = f"launch template {launch.template} {_TEMPLATES[launch.action]}"
    if dry_run:
        print_line(f"would start {count} of {order.appliance} at {place}; {template}")
        print_line("nothing was started (--dry-run)")
        return
    print_line(f"{count} of {order.appliance} at {place}; {template}")
    print_table([(each.id, each.state) for each in launch.machines], ("machine", "state"), indent=2)
    if site.sandbox:
        print_line("a sandbox: an emulator has started them, and has ended with this command")


def _describe(order: LaunchOrder, site: Site, launch: Launch, *, dry_run: bool) -> dict[str, Any]:
    return {
        "site": site.name,
        "region": order.region or None,
        "sandbox": site.sandbox,
        "appliance": order.appliance,
        "build": order.build,
        "count": order.count,
        "dry_run": dry_run,
        "launch_template": {"name": launch.template, "action": launch.action},
        "machines": [vars(each) for each in launch.machines],
    }
