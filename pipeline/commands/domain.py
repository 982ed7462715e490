"""`phantom-image domain`: groups of machines that a Phantom keeps running."""

from __future__ import annotations

import os
import sys
from argparse import ArgumentParser, ArgumentTypeError, Namespace
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pipeline.build.launch import find_endless, params_of
from pipeline.commands import options as shared
from pipeline.commands.output import print_json, print_line, print_table
from pipeline.definitions.messages import suggest
from pipeline.errors import UsageError
from pipeline.phantom.client import Client, Clouds, DomainState, make_client
from pipeline.phantom.domains import (
    check_name,
    choose_clouds,
    describe_clouds,
    make_domain,
    parse_clouds,
)

EXAMPLES = (
    "phantom-image domain create web --phantom nimbus --size 3",
    "phantom-image domain create lab --phantom local --launch-config web --clouds hotel:4,sierra "
    "--size 8",
    "phantom-image domain show web --phantom nimbus --json",
)
_MOST = 10_000  # machines


def add_arguments(parser: ArgumentParser) -> None:
    """Adds the command's arguments."""
    add = parser.add_argument
    text = "create, show, list, resize or delete"
    add("what", choices=tuple(_COMMANDS), metavar="WHAT", help=text)
    add("name", nargs="?", metavar="NAME", help="the domain")
    shared.add(parser, "phantom")
    add("--size", type=_size, metavar="N", help="how many machines it is to have")
    text = "of create: a manifest, a build's folder, or an appliance (NAME)"
    add("--launch-config", dest="manifest", metavar="MANIFEST", help=text)
    shared.add(parser, "of")
    text = "of create: sites in order, with maxima, as in hotel:4,sierra (as the manifest has them)"
    add("--clouds", type=_clouds, metavar="CLOUDS", help=text)
    shared.add(parser, "json")


def _size(text: str) -> int:
    """An option's number of machines. Raises ArgumentTypeError."""
    if not (text.isascii() and text.isdigit() and len(text) < 6 and int(text) <= _MOST):
        raise ArgumentTypeError(f"{text[:40]!r} is no number from 0 to {_MOST}")
    return int(text)


def _clouds(text: str) -> Clouds:
    try:
        return parse_clouds(text)
    except ValueError as error:
        raise ArgumentTypeError(str(error)) from error


def run(options: Namespace) -> None:
    """Does with a domain what the options say. Raises UsageError, NameTakenError, and what clients
    of Phantom do."""
    what = options.what
    if options.name is None and what != "list":
        raise UsageError(f"`domain {what}` needs the name of a domain", todo="give one")
    if options.size is None and what in ("create", "resize"):
        raise UsageError(
            f"`domain {what}` needs the number of machines", todo="give it by --size N"
        )
    client = make_client(shared.load_phantom(options), os.environ)
    _COMMANDS[what](client, options)


def _create(client: Client, options: Namespace) -> None:
    check_name(options.name)
    configuration, wanted = _find_configuration(client, options)
    chosen = options.clouds is not None
    clouds = choose_clouds(client, configuration, wanted, all_of_them=chosen)
    if (warning := find_endless(clouds)) is not None:
        print_line(f"warning: {warning}", file=sys.stderr)
    made = make_domain(client, options.name, configuration, options.size, clouds)
    if options.json:
        _print_change("create" if made else "unchanged", client.find_domain(options.name))
        return
    verb = "created" if made else "nothing to do: there is"
    print_line(
        f"{verb} domain {options.name}, {_count(options.size)} of {configuration}, at "
        f"{describe_clouds(clouds)}"
    )


def _find_configuration(client: Client, options: Namespace) -> tuple[str, Clouds]:
    """The launch configuration's name, and its sites as the manifest or the options have them. A
    manifest is needed only where nothing else tells the sites."""
    options.manifest = word = options.manifest or options.name
    if "/" not in word and not Path(word).exists() and (options.clouds or client.ranks_sites):
        return word, options.clouds or ()
    try:
        section = shared.read_named_manifest(options)["phantom"]
    except UsageError as error:
        error.todo = (
            "name the appliance or its manifest by --launch-config, or the sites by --clouds"
        )
        raise
    params = params_of(section)
    ranked = sorted(params, key=lambda site: int(params[site]["rank"]))
    limits = tuple((site, int(params[site]["max_vms"])) for site in ranked)
    return section["launch_configuration"]["name"], options.clouds or limits


def _find(client: Client, name: str) -> DomainState:
    """The domain of a name. Raises UsageError."""
    found = client.find_domain(name)
    if found is None:
        names = [each.name for each in client.list_domains()]
        known = f"it has {', '.join(names)}" if names else "it has none"
        raise UsageError(
            f"Phantom {client.service.name} has no domain {name!r}{suggest(name, names)}",
            todo=f"choose another one ({known}), or create it (`phantom-image domain create`)",
        )
    return found


def _resize(client: Client, options: Namespace) -> None:
    found = _find(client, options.name)
    if found.size != options.size:
        client.resize_domain(found, options.size)
    if options.json:
        action = "unchanged" if found.size == options.size else "resize"
        _print_change(action, client.find_domain(options.name))
    elif found.size == options.size:
        print_line(f"nothing to do: domain {found.name} is for {_count(found.size)}")
    else:
        print_line(f"domain {found.name}: {found.size} -> {_count(options.size)}")


def _delete(client: Client, options: Namespace) -> None:
    found = client.find_domain(options.name)
    if found is not None:
        client.delete_domain(found)
    if options.json:
        _print_change("unchanged" if found is None else "delete", None)
    elif found is None:
        print_line(f"nothing to do: there is no domain {options.name}")
    else:
        print_line(f"deleted domain {found.name}; its machines end")


def _show(client: Client, options: Namespace) -> None:
    found = _find(client, options.name)
    if options.json:
        print_json(_describe(found))
        return
    sites = f", at {describe_clouds(found.clouds)}" if found.clouds else ""
    print_line(f"domain {found.name}: {_count(found.size)} of {found.configuration}{sites}")
    if found.machines:
        rows = [(each.id, each.site, each.state) for each in found.machines]
        print_table(rows, ("machine", "site", "state"), indent=2)
    else:
        print_line("  no machine yet")


def _list(client: Client, options: Namespace) -> None:
    found = client.list_domains()
    if options.json:
        print_json([_describe(each) for each in found])
    elif found:
        print_table([_row(each) for each in found], _HEADERS)
    else:
        print_line("nothing to list")


_HEADERS = ("domain", "launch configuration", "size", "machines", "sites")
_COMMANDS = {
    "create": _create,
    "show": _show,
    "list": _list,
    "resize": _resize,
    "delete": _delete,
}


def _row(domain: DomainState) -> tuple[str, ...]:
    machines = "" if domain.machines is None else str(len(domain.machines))
    sites = describe_clouds(domain.clouds)
    return domain.name, domain.configuration, str(domain.size), machines, sites


def _count(size: int) -> str:
    return f"{size} machine{'' if size == 1 else 's'}"


def _print_change(action: str, domain: DomainState | None) -> None:
    print_json({"action": action, "domain": None if domain is None else _describe(domain)})


def _describe(domain: DomainState) -> Mapping[str, Any]:
    clouds, machines = domain.clouds, domain.machines
    return {
        "name": domain.name,
        "launch_configuration": domain.configuration,
        "size": domain.size,
        "clouds": clouds and [{"site": site, "max_vms": most} for site, most in clouds],
        "machines": None if machines is None else [vars(each) for each in machines],
    }
