"""A Phantom as `sites.yaml` names it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

LOCAL = "local"
"""The name of the Phantom that `phantom-image phantom-sandbox` runs, unless sites.yaml has it."""
QUERY, WEB = "query", "web"
SECONDS = 60
"""How long a request may take where sites.yaml does not say."""


@dataclass(frozen=True, kw_only=True)
class PhantomService:
    """Where a Phantom is, and how it is asked."""

    name: str
    url: str
    """Of its API, without `/api/dev`."""
    api: str = QUERY
    """`query` (AutoScaling) or `web`."""
    credentials: Path | None = None
    """The file that holds them."""
    ca_bundle: Path | None = None
    seconds: int = SECONDS
    """How long each request may take."""
    sandbox: bool = False
    """Whether it starts machines at sandbox sites."""
    where: str
    """File and line for messages."""

    def find_risks(self) -> Sequence[str]:
        """What of its settings weakens its security, for people."""
        if self.sandbox or self.url.startswith("https:"):
            return ()
        read = "the token and user-data" if self.api == WEB else "user-data"
        return (f"requests go without TLS ({self.url}): others can read {read}",)
