"""Booted images to sites: safe to repeat, and nothing is sent that is there already."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from pipeline.clouds import Cloud
from pipeline.errors import PhantomError
from pipeline.model import BootedImage, Progress, Publication
from pipeline.store import Store


def check_site(cloud: Cloud, sandbox: Path) -> None:
    """Proves, before a long build, that the site will take its result. Raises what it raises."""
    if cloud.site.sandbox:
        return  # a server of our own, with credentials that it makes itself
    with cloud.open(sandbox):
        cloud.check()


def publish_image(
    cloud: Cloud,
    booted: BootedImage,
    *,
    name: str,
    summary: str,
    known: Sequence[Publication],
    store: Store,
    sandbox: Path,
    progress: Progress,
) -> Publication:
    """Uploads an image unless its bytes are there, and makes it visible to the site's users.

    One that is there keeps the time that `known`, the publications of the last manifest, tells.
    Raises what the site does, located at the site.
    """
    site = cloud.site.name
    waiting = "another command publishes there; waiting for it"
    try:
        with store.lock(f"site-{site}", lambda: progress.step(waiting)), cloud.open(sandbox):
            found = cloud.find(booted.image, name)
            if found is not None:
                progress.step(f"{name} is there already")
                # An earlier run may have ended between the two.
                return _with_known_time(cloud.publish(found, summary), known)
            progress.step(f"uploading {name}")
            publication = cloud.upload(booted, name, summary, progress)
            return cloud.publish(publication, summary)
    except PhantomError as error:
        raise error.located(f"site {site}") from error


def _with_known_time(found: Publication, known: Sequence[Publication]) -> Publication:
    for each in known:
        if replace(each, published_at="") == replace(found, published_at=""):
            return each
    return found
