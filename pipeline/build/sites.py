"""A site, opened for one command at a time."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from pipeline.clouds import Cloud
from pipeline.workspace import Workspace


@contextmanager
def open_site(
    cloud: Cloud, workspace: Workspace, waiting: Callable[[], None] | None = None
) -> Iterator[Cloud]:
    """A site ready for its verbs, which no other command on this host changes meanwhile. `waiting`
    is called once if another command holds the site."""
    name = cloud.site.name
    with workspace.store.lock(f"site-{name}", waiting), cloud.open(workspace.site_folder(name)):
        yield cloud
