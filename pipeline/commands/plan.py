"""`phantom-image plan`: what a build and its publication would do, and why."""

from __future__ import annotations

from argparse import ArgumentParser, Namespace
from collections.abc import Iterator, Sequence
from typing import Any

from pipeline.build.explain import Step, explain
from pipeline.build.outlook import Prospect, find_warning, look_ahead
from pipeline.build.plan import make_plan
from pipeline.build.run import read_stages
from pipeline.commands import options as shared
from pipeline.commands.output import cell, print_json, print_line, print_table
from pipeline.model import format_size

_ACTIONS = {
    "reuse": "send nothing",
    "copy": "send nothing",
    "send": "send",
    "refuse": "not possible",
    "unknown": "not known",
}

EXAMPLES = ("phantom-image plan web --cloud nimbus",)


def add_arguments(parser: ArgumentParser) -> None:
    """Adds the command's arguments."""
    shared.add(parser, "appliances", "sites", "json")
    parser.add_argument("-v", "--verbose", action="store_true", help="show digests too")


def run(options: Namespace) -> int | None:
    """Prints what becomes of each stage and of each site's image, and writes nothing."""
    return shared.run_for_each(options, _run)


def _run(options: Namespace) -> None:
    appliance, sites = shared.load_appliance(options), shared.load_sites(options)
    workspace = shared.open_workspace(options)
    plan = make_plan(appliance, sites, workspace.store, builds=workspace.build, keep=False)
    steps = explain(plan, workspace.store, read_stages(workspace, appliance.name))
    prospects = look_ahead(plan, workspace)
    warning = find_warning(plan, prospects, shared.load_site_order(options))
    warnings = [*_find_risks(prospects), *filter(None, [warning])]
    base = plan.source.base and str(plan.source.base.path)
    if options.json:
        print_json(
            {
                "appliance": appliance.name,
                "base_image": base,
                "stages": [_describe(step) for step in steps],
                "publications": [_describe_prospect(prospect) for prospect in prospects],
                "warnings": warnings,
            }
        )
        return
    if base is not None:
        print_line(f"starts from {base}")
    print_table([_row(step, verbose=options.verbose) for step in steps])
    print_line()
    print_table([_publication_row(prospect) for prospect in prospects])
    for text in warnings:
        print_line(f"warning: {text}")


def _find_risks(prospects: Sequence[Prospect]) -> Iterator[str]:
    for prospect in prospects:
        yield from (f"site {prospect.target.site.name}: {risk}" for risk in prospect.risks)


def _describe(step: Step) -> dict[str, Any]:
    return {
        "stage": step.stage.title,
        "key": step.stage.key,
        "action": step.action,
        "reasons": [reason.full for reason in step.reasons],
    }


def _row(step: Step, *, verbose: bool) -> tuple[str, ...]:
    """A step's stage and action; the action's reasons stand one below the other. `verbose` adds the
    stage's key, and digests to the reasons."""
    prefix = f"{step.action}: " if step.reasons else step.action
    reasons = [reason.full if verbose else reason.text for reason in step.reasons]
    first, *others = reasons or [""]
    told = cell([prefix + first, *(f"{'':{len(prefix)}}{other}" for other in others)])
    return (step.stage.title, step.stage.key[:12], told) if verbose else (step.stage.title, told)


def _describe_prospect(prospect: Prospect) -> dict[str, Any]:
    site, outlook = prospect.target.site, prospect.outlook
    return {
        "site": site.name,
        "cloud": site.cloud,
        "sandbox": site.sandbox,
        "image_name": prospect.image_name,
        "file": prospect.file,
        "action": outlook.action,
        "bytes": outlook.bytes,
        "detail": outlook.detail,
        "credentials": prospect.credentials,
    }


def _publication_row(prospect: Prospect) -> tuple[str, str, str]:
    """A site, its image's name, and what would be sent, with the credentials below."""
    outlook, site = prospect.outlook, prospect.target.site
    action = _ACTIONS[outlook.action]
    if outlook.action == "send" and outlook.bytes is not None:
        action += f" {format_size(outlook.bytes)}"
    found = f"credentials: {prospect.credentials or 'none found'}"
    if site.sandbox:
        found = "a sandbox: a local server that the command starts"
    told = cell([f"{action}: {outlook.detail}", found])
    return f"publish {site.name}", prospect.image_name, told
