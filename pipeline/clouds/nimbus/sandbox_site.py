"""A sandbox site of Nimbus: its images go to a local Cumulus that the command starts itself."""

from __future__ import annotations

import secrets
import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import BinaryIO

from pipeline.clouds.nimbus.cloud import Nimbus, foresee_upload
from pipeline.clouds.nimbus.cumulus_server import CumulusServer
from pipeline.clouds.nimbus.cumulus_store import open_object, read_index
from pipeline.clouds.nimbus.repository import Repository
from pipeline.clouds.nimbus.settings import COMMON, Credentials, NimbusSettings
from pipeline.errors import StoreError
from pipeline.model import Image, Outlook, Release

_HOST = "sandbox"
"""Stands for host and port in the locations of a sandbox, which has another port every time."""

_CANONICAL_ID = "00000000-0000-4000-8000-000000000000"
"""Always the same: the next command must own the objects that a sandbox keeps."""


class NimbusSandbox(Nimbus):
    """A sandbox site. Its credentials die with the command; what it stores stays in its folder."""

    def find_risks(self) -> Sequence[str]:
        """None: nothing leaves this host."""
        return ()

    def find_credentials(self) -> str:
        """They are made up."""
        return "made by the command"

    def foresee(self, image: Image, release: Release, folder: Path) -> Outlook:
        """As `Nimbus.foresee`, by the index that the server keeps in the site's folder."""
        owner = COMMON if self.common else self._option("canonical_id", _CANONICAL_ID)
        prefix = f"{self._option('prefix', 'VMS')}/{owner}/"
        objects = [each for each in read_index(folder) if each.key.startswith(prefix)]
        return foresee_upload(image, prefix + release.name, objects)

    def open_kept(self, folder: Path, image_id: str) -> BinaryIO | None:
        """The image of this name, in the site's own folder or in that of all its users."""
        prefix = self._option("prefix", "VMS")
        for owner in (self._option("canonical_id", _CANONICAL_ID), COMMON):
            opened = open_object(folder, f"{prefix}/{owner}/{image_id}")
            if opened is not None:
                return opened
        return None

    @contextmanager
    def _start_session(self, folder: Path) -> Iterator[Repository]:
        """Starts the server. Raises StoreError for a folder that cannot be used."""
        credentials = Credentials(
            s3id=secrets.token_hex(10),
            secret=secrets.token_hex(20),
            canonical_id=self._option("canonical_id", _CANONICAL_ID),
            source="this command",
        )
        with ExitStack() as stack:
            try:
                server = stack.enter_context(
                    CumulusServer(folder, [credentials], bucket=self._option("bucket", "Repo"))
                )
            except (OSError, sqlite3.Error) as error:
                raise self._make_error(folder, error) from error
            settings = self._make_settings(server.url, credentials)
            yield Repository(self.site, settings, self._pause)

    def _make_error(self, folder: Path, error: Exception) -> StoreError:
        return StoreError(
            f"the sandbox's folder cannot be used: {error}",
            where=f"site {self.site.name}",
            todo=f"see who owns {folder}, or remove it: it holds only copies",
        )

    def _make_settings(self, endpoint: str, credentials: Credentials) -> NimbusSettings:
        """Only the options that say how images are filed count; neither environment nor files are
        read."""
        return NimbusSettings(
            endpoint=endpoint,
            host=_HOST,
            bucket=self._option("bucket", "Repo"),
            prefix=self._option("prefix", "VMS"),
            common=self.common,
            verify=True,
            credentials=credentials,
            local=True,
        )

    def _option(self, name: str, default: str) -> str:
        return str(self.site.options.get(name, default))
