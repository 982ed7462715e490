"""`phantom-image publish`: sends images that are built and booted already to their sites."""

from __future__ import annotations

from argparse import Namespace

from pipeline.build.explain import explain
from pipeline.build.plan import make_plan
from pipeline.commands import options as shared
from pipeline.commands.image import add_arguments, produce_image
from pipeline.errors import UsageError

__all__ = ["EXAMPLES", "add_arguments", "run"]

EXAMPLES = ("phantom-image publish web --site hotel",)


def run(options: Namespace) -> None:
    """Publishes. Raises UsageError where a stage would have to be built first."""
    appliance, sites = shared.load_appliance(options), shared.load_sites_to_publish_to(options)
    workspace = shared.open_workspace(options)
    plan = make_plan(appliance, sites, workspace.store, builds=workspace.build)
    steps = explain(plan, workspace.store, {})
    missing = [step.stage.title for step in steps if step.action == "build"]
    if missing:
        raise UsageError(
            f"{appliance.name} is not built: {', '.join(missing)}",
            todo="`phantom-image image` builds and publishes",
        )
    produce_image(options, publish=True)
