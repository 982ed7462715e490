"""`phantom-image publish`: sends images that are built and booted already to their sites."""

from __future__ import annotations

import re
import time
from argparse import ArgumentParser, Namespace

from pipeline.build.existing import publish_build
from pipeline.build.explain import explain
from pipeline.build.plan import make_plan
from pipeline.commands import image
from pipeline.commands import options as shared
from pipeline.errors import UsageError

EXAMPLES = (
    "phantom-image publish web --site hotel",
    "phantom-image publish web --build 0123456789ab --site hotel,amazon",
)

_BUILD = re.compile("latest|[0-9a-f]{12}")


def add_arguments(parser: ArgumentParser) -> None:
    """Adds the command's arguments."""
    image.add_arguments(parser)
    parser.add_argument(
        "--build",
        "--of",
        dest="of",
        metavar="BUILD",
        help="this build, as it was booted (latest), and not what the definition makes now",
    )


def run(options: Namespace) -> int | None:
    """Publishes. Raises UsageError where a stage would have to be built first."""
    return shared.run_for_each(options, _run)


def _run(options: Namespace) -> None:
    if options.of is not None:
        _publish_build(options)
        return
    appliance, sites = shared.load_appliance(options), shared.load_sites_to_publish_to(options)
    workspace = shared.open_workspace(options)
    plan = make_plan(appliance, sites, workspace.store, builds=workspace.build)
    steps = explain(plan, workspace.store, {})
    missing = [step.stage.title for step in steps if step.action == "build"]
    if missing:
        raise UsageError(
            f"{appliance.name} is not built: {', '.join(missing)}",
            todo="`phantom-image image` builds and publishes; `phantom-image publish --build "
            "BUILD` sends a build that `phantom-image list` shows, as it is",
        )
    image.produce_image(options, publish=True)


def _publish_build(options: Namespace) -> None:
    """Sends a build that was booted, without resolving anything anew."""
    if not _BUILD.fullmatch(options.of):
        raise UsageError(
            f"{options.of!r} is no build: behind `publish`, --build names one",
            todo="give the twelve digits that `phantom-image list` shows, or `latest`; the option "
            "that names the folder of builds stands before the command",
        )
    appliance, sites = shared.load_appliance(options), shared.load_sites_to_publish_to(options)
    order = shared.load_site_order(options)
    started = time.monotonic()
    with shared.open_shown_workspace(options, signs=True) as workspace:
        content = shared.read_manifest(options, appliance.name, workspace)
        produced = publish_build(appliance, content, sites, workspace, order=order)
    image.print_produced(options, produced, time.monotonic() - started)
