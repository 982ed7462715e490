"""The metadata server of Nimbus, as strict as the real one was observed to be."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import ClassVar

from pipeline.machine.metadata import (
    USER_DATA_PATH,
    Answer,
    Request,
    find_meta_data,
    make_html_page,
)

NIMBUS_META_DATA: Mapping[str, str] = {
    "ami-id": "hello-phantom.gz",
    "ami-launch-index": "0",
    "local-hostname": "vm-1",
    "local-ipv4": "10.0.0.2",
    "public-hostname": "vm-1.example.org",
    "public-ipv4": "10.0.0.2",
}


@dataclass(frozen=True, kw_only=True)
class NimbusMetadata:
    """The metadata server of Nimbus 2.10, as it was observed (docs/facts/nimbus.md).

    - `/latest/user-data` is 200 and the data plus one newline; without data, 200 and one newline.
      The data is text: what is not Latin-1 becomes `?`, so gzip does not survive.
    - An unknown path is a 404 with an HTML page; so is `/latest/meta-data` without its last slash.
    - There is no instance-id and no token call. How it refuses methods other than GET was not
      observed: 501 here.

    Raises ValueError for user-data that Nimbus would not take at launch.
    """

    LATE: ClassVar[Answer | None] = Answer(status=403)  # the caller's address is not known yet
    LIMIT: ClassVar[int] = 30_720  # characters
    ANY_BYTES: ClassVar[bool] = False

    user_data: bytes | None = None
    public_key: str | None = None
    """Not served: the node writes it into the image."""
    meta_data: Mapping[str, str] = field(default_factory=lambda: NIMBUS_META_DATA)

    def __post_init__(self) -> None:
        if len(self._text) > self.LIMIT:
            raise ValueError(f"user-data for Nimbus has at most {self.LIMIT} characters")

    def lacks_token(self, request: Request) -> bool:
        """Never: Nimbus knows no tokens."""
        return False

    def answer(self, request: Request) -> Answer:
        """The answer of the real service."""
        if request.method != "GET":
            return make_html_page(501, "Not Implemented")
        if request.path == USER_DATA_PATH:
            text = self._text + "\n"
            return Answer(status=200, body=text.encode("latin-1", errors="replace"))
        answer = find_meta_data(self.meta_data, request.path)
        return answer or make_html_page(404, "Not Found")

    @property
    def _text(self) -> str:
        return (self.user_data or b"").decode(errors="replace")
