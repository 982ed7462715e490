"""A file of a URL that changes from time to time, fetched again only where it has changed."""

from __future__ import annotations

import json
from pathlib import Path

from pipeline import records
from pipeline.files import write_atomically
from pipeline.model import Progress, Sha256
from pipeline.sources import download
from pipeline.store import Store

_SHAPE = {"sha256": str}


def fetch_newest(url: str, store: Store, progress: Progress) -> Path:
    """The file as the server has it now, in the store. Raises DownloadError, StoreError."""
    digest = download.digest_of_url(url)
    record = store.path("downloads") / f"newest-{digest}.json"
    waiting = "another command fetches this; waiting for it"
    with store.lock(f"newest-{digest}", lambda: progress.step(waiting)), store.errors():
        known = records.read(record, _SHAPE, sealed=True)
        if known is not None:
            stage = download.Download(sha256=Sha256(known["sha256"]), url=url)
            kept = store.find(stage.name, stage.key)
            if kept is not None and download.is_current(url, kept):
                return kept.file(download.FILE)
        progress.step("fetching it")
        arrived = download.fetch(url, store, progress, expected=None)
        stage = download.Download(sha256=arrived.sha256, url=url)
        download.keep(arrived, url, store)
        write_atomically(record, json.dumps(records.seal({"sha256": stage.sha256})) + "\n")
        made = store.find(stage.name, stage.key)
        assert made is not None, "it was stored just now"
        return made.file(download.FILE)
