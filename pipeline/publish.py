"""Booted images to sites: safe to repeat, and nothing is sent that is there already."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from pipeline.clouds import Cloud
from pipeline.errors import PhantomError
from pipeline.model import BootedImage, Progress, Publication, Release
from pipeline.store import Store


def check_site(cloud: Cloud, folder: Path) -> None:
    """Proves, before a long build, that the site will take its result. Raises what it raises."""
    if cloud.site.sandbox:
        return  # a server of our own, with credentials that it makes itself
    try:
        with cloud.open(folder):
            cloud.check()
    except PhantomError as error:
        raise error.located(f"site {cloud.site.name}") from error


def publish_image(
    cloud: Cloud,
    booted: BootedImage,
    release: Release,
    *,
    make_sound: Callable[[], BootedImage],
    known: Sequence[Publication],
    store: Store,
    folder: Path,
    progress: Progress,
) -> tuple[Publication, ...]:
    """Uploads an image unless its bytes are there, and makes it visible to the site's users.

    `make_sound` gives the same image again, every byte of it looked at; it is called before
    anything is sent. Returns the site's own publication and those in further regions. What is there
    already keeps the time that `known`, the publications of the last manifest, tells. Raises what
    the site does, located at the site.
    """
    site = cloud.site.name
    waiting = "another command publishes there; waiting for it"
    try:
        with store.lock(f"site-{site}", lambda: progress.step(waiting)), cloud.open(folder):
            found = cloud.find(booted.image, release)
            if found is None:
                found = cloud.upload(make_sound(), release, progress)
            else:
                progress.step(f"{release.name} is there already")
            # Though it was there: an earlier run may have ended between the two.
            published = cloud.publish(found, release, progress)
    except PhantomError as error:
        raise error.located(f"site {site}") from error
    progress.step(f"done: {', '.join(each.image_id for each in published)}")
    return tuple(_with_known_time(each, known) for each in published)


def _with_known_time(found: Publication, known: Sequence[Publication]) -> Publication:
    for each in known:
        if replace(each, published_at="") == replace(found, published_at=""):
            return each
    return found
