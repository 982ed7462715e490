"""Where the local Phantom of a folder of builds is found, and its credentials."""

from __future__ import annotations

from pathlib import Path

from pipeline.errors import SiteUnreachableError
from pipeline.phantom.named import LOCAL, PhantomService

FOLDER = ".phantom"
"""The Phantom's folder in that of builds, where no appliance has such a name."""
CREDENTIALS = "credentials"
"""The name of the file in a Phantom's folder: what AWS's tools read, and the token."""
ADDRESS = "address"
"""The name of the file that has the URL, while the Phantom runs."""
PROFILE = "default"
ACCESS_KEY, SECRET_KEY, TOKEN = "aws_access_key_id", "aws_secret_access_key", "phantom_token"


def find_local(builds: Path) -> PhantomService:
    """The local Phantom that runs. Raises SiteUnreachableError where none does."""
    folder = builds / FOLDER
    try:
        url = (folder / ADDRESS).read_text().strip()
    except (OSError, ValueError):
        url = ""
    if not url.startswith("http://127.0.0.1:"):
        raise SiteUnreachableError(
            "no local Phantom runs",
            where=str(folder),
            todo="start one in another terminal: `phantom-image phantom-sandbox`",
        )
    return PhantomService(
        name=LOCAL,
        url=url,
        credentials=folder / CREDENTIALS,
        sandbox=True,
        where=str(folder),
    )
