"""What publishing would do at each site of a plan, found out without changing anything. A site that
does not answer fails nothing."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from pipeline.build.delivery import SiteThread, raise_defects
from pipeline.build.launch import find_endless, find_limit, rank_sites
from pipeline.build.plan import NO_BUILD, Plan, Target, file_name
from pipeline.build.release import Artifacts, make_image, make_release
from pipeline.errors import PhantomError
from pipeline.model import Outlook
from pipeline.workspace import Workspace

PATIENCE = 15.0  # seconds; what has not answered by then may answer a publishing command


@dataclass(kw_only=True)
class Prospect:
    """What publishing would do at one site."""

    target: Target
    image_name: str
    """With `<build>` where the build's name comes from what is not built yet."""
    file: str
    outlook: Outlook
    credentials: str | None = None
    """Where they come from; None where none were found."""
    risks: list[str] = field(default_factory=list)


def look_ahead(plan: Plan, workspace: Workspace, *, patience: float = PATIENCE) -> list[Prospect]:
    """Looks at all sites side by side."""
    prospects = [_make_prospect(plan, target, workspace) for target in plan.targets]
    threads = [
        SiteThread(each.target.site.name, partial(_look, plan, each, workspace))
        for each in prospects
    ]
    deadline = time.monotonic() + patience
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(max(0.0, deadline - time.monotonic()))
    raise_defects(threads)
    return prospects


def find_warning(plan: Plan, prospects: Sequence[Prospect], order: Sequence[str]) -> str | None:
    """What the launch configuration of these sites would be warned of."""
    policy = plan.appliance.phantom
    sites = [each.target.site.name for each in prospects if not each.target.site.sandbox]
    ranked = rank_sites(policy, sites, order=order)
    return find_endless([(site, find_limit(policy, site)) for site in ranked])


def _make_prospect(plan: Plan, target: Target, workspace: Workspace) -> Prospect:
    name = target.cloud.image_name(plan.appliance, NO_BUILD).replace(NO_BUILD, "<build>")
    outlook = Outlook(action="unknown", bytes=None, detail="the site has not answered yet")
    if _find_artifacts(target, workspace) is None:
        outlook = Outlook(action="send", bytes=None, detail="not built yet")
    file = file_name(name, target.cloud.disk)
    return Prospect(target=target, image_name=name, file=file, outlook=outlook)


def _look(plan: Plan, prospect: Prospect, workspace: Workspace) -> None:
    target = prospect.target
    cloud, site = target.cloud, target.site.name
    artifacts = _find_artifacts(target, workspace)
    try:
        prospect.risks += cloud.find_risks()
        prospect.credentials = cloud.find_credentials()
        if artifacts is None:
            return
        release = make_release(plan, target, artifacts, workspace.folder(plan.appliance.name))
        prospect.image_name = release.name
        prospect.file = file_name(release.name, cloud.disk)
        image = make_image(target, artifacts)
        folder: Path = workspace.site_folder(site)
        prospect.outlook = cloud.foresee(image, release, folder)
    except PhantomError as error:
        prospect.outlook = Outlook(
            action="unknown", bytes=prospect.outlook.bytes, detail=error.what
        )


def _find_artifacts(target: Target, workspace: Workspace) -> Artifacts | None:
    """The stored artifacts that make the image and its name; None where one is not built."""
    stages = [target.image, target.hash, *filter(None, [target.contents])]
    found = {stage.key: workspace.store.find(stage.name, stage.key) for stage in stages}
    known = {key: artifact for key, artifact in found.items() if artifact is not None}
    return known if len(known) == len(found) else None
