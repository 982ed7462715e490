"""A boto3 client for Cumulus, the image repository of Nimbus.

The client is set up as Cumulus needs it: signature version 2, path-style, no checksums of newer
S3s, nothing repeated by botocore. In `answered()`, a call returns, or raises `Refused` or `Cut`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any, BinaryIO

from pipeline.clouds.nimbus.settings import NimbusSettings
from pipeline.tools.aws import Cut, Refused, translated

CONNECT_SECONDS = 10
READ_SECONDS = 120  # Cumulus answers an upload at once: it takes the md5 while bytes come in
INSECURE = "no secure connection"
"""What the reason of a Cut begins with where TLS failed."""

REPORT_BYTES = 1 << 20  # progress is told this often: a call per read would cost more than reading


class WatchedFile:
    """A file being sent; tells how far reading has come, so that memory stays bounded and
    progress is known."""

    def __init__(self, file: BinaryIO, advance: Callable[[int], None]) -> None:
        self._file = file
        self._advance = advance
        self._told = 0

    def read(self, size: int = -1) -> bytes:
        data = self._file.read(size)
        done = self._file.tell()
        if done - self._told >= REPORT_BYTES or (not data and done != self._told):
            self._told = done
            self._advance(done)
        return data

    def seek(self, offset: int, whence: int = 0) -> int:
        self._told = 0
        return self._file.seek(offset, whence)

    def tell(self) -> int:
        return self._file.tell()


def make_s3(settings: NimbusSettings) -> Any:  # boto3 has no types, and makes its methods at run
    """A client for a site's repository."""
    # Imported here: half a second that `--help` and an unchanged build need not spend.
    import boto3
    import botocore.session
    from botocore.config import Config

    if settings.verify is False:
        # `plan` and `doctor` tell of the danger; a warning per request adds nothing.
        import urllib3

        urllib3.disable_warnings(urllib3.exceptions.InsecureRequestWarning)
    config = Config(
        signature_version="s3",
        s3={"addressing_style": "path"},
        request_checksum_calculation="when_required",
        response_checksum_validation="when_required",
        retries={"total_max_attempts": 1, "mode": "standard"},
        connect_timeout=CONNECT_SECONDS,
        read_timeout=READ_SECONDS,
        ignore_configured_endpoint_urls=True,
        # A proxy of the environment leads out of this machine.
        proxies={} if settings.local else None,
    )
    # A profile of some AWS account, set in the environment, has no business here.
    core = botocore.session.Session(session_vars={"profile": (None, None, None, None)})
    s3 = boto3.Session(botocore_session=core).client(
        "s3",
        endpoint_url=settings.endpoint,
        region_name="us-east-1",  # some region must be said; no request carries it
        aws_access_key_id=settings.credentials.s3id,
        aws_secret_access_key=settings.credentials.secret,
        verify=settings.verify,
        config=config,
    )
    s3.meta.events.register("before-sign.s3", _sign_what_is_requested)
    if settings.fingerprint is not None:
        _pin(s3, settings.fingerprint)
    return s3


def _pin(s3: Any, fingerprint: str) -> None:
    """Lets a client talk only to the server that has this certificate. botocore has no setting for
    it; urllib3, which it sends by, has one for each pool of connections."""
    session = s3._endpoint.http_session
    make_arguments = session._get_pool_manager_kwargs
    session._get_pool_manager_kwargs = partial(make_arguments, assert_fingerprint=fingerprint)
    session._manager.connection_pool_kw["assert_fingerprint"] = fingerprint


def _sign_what_is_requested(request: Any, **_: object) -> None:
    """For calls on the bucket itself botocore signs `/Repo/` and requests `/Repo`."""
    request.auth_path = None


@contextmanager
def answered() -> Iterator[None]:
    """Turns what botocore raises in the block into Refused, Cut or NoCredentials."""
    from botocore.parsers import ResponseParserError

    try:
        with translated("s3:*", _describe):
            yield
    except Cut as cut:
        if isinstance(cut.__cause__, ResponseParserError):
            raise Refused("s3:*", "an answer that is not S3's", "", status=0) from None
        raise


def _describe(error: Exception) -> str:
    from botocore.exceptions import ProxyConnectionError, SSLError

    if isinstance(error, SSLError):
        return f"{INSECURE}: {_reason(error)}"
    if isinstance(error, ProxyConnectionError):
        return f"the proxy does not answer: {_reason(error)}"
    return _reason(error)


def _reason(error: BaseException) -> str:
    """The innermost of what botocore, urllib3 and the kernel say, in a few words."""
    cause: BaseException = getattr(error, "kwargs", {}).get("error") or error
    while (inner := _find_inner(cause)) is not None:
        cause = inner
    text = " ".join((getattr(cause, "strerror", None) or str(cause)).split())
    text = re.sub(r"^.*: (\[Errno -?\d+\] )?|^\[Errno -?\d+\] | \(_ssl\.c:\d+\)$", "", text)
    return text.rstrip(".") or type(cause).__name__


def _find_inner(error: BaseException) -> BaseException | None:
    candidates = (getattr(error, "reason", None), *error.args)
    return next((inner for inner in candidates if isinstance(inner, BaseException)), None)
