"""Amazon's services through boto3: clients, what a failed call means, and when to repeat it.

Only this module knows botocore's exceptions: a call returns, or raises `Refused`, `Cut` or
`NoCredentials`. The clients repeat nothing by themselves: this program decides what is repeated and
for how long, and what is said meanwhile.
"""

from __future__ import annotations

import random
import re
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from types import MappingProxyType
from typing import Any, TypeVar

from pipeline.errors import DefinitionError, SiteUnreachableError
from pipeline.model import NoProgress, Progress

T = TypeVar("T")

CONNECT_SECONDS = 10
READ_SECONDS = 60  # botocore's own limit
CONNECTIONS = 16  # of a client's pool, where nothing else is asked for

PART_ATTEMPTS = 6
"""Of each part of an S3 object; with botocore's pauses that is about a minute."""

OUTAGE_SECONDS = 300.0
"""How long work goes on after the first call that failed since one succeeded: a network that is
gone for some minutes costs nothing but time."""

FIRST_PAUSE, LONGEST_PAUSE = 0.2, 15.0  # seconds; a pause is random between 0 and the doubled one

_TRANSIENT_REASONS = frozenset({"WRITE_REQUEST_TIMEOUT"})  # EBS's, inside a ValidationException

_DENIED = ("AccessDenied", "Forbidden", "UnauthorizedOperation", "Unauthorized")
_EXPIRED = frozenset(
    {"ExpiredToken", "ExpiredTokenException", "RequestExpired", "TokenRefreshRequired"}
)
_BAD_CREDENTIALS = frozenset(
    {
        "AuthFailure",
        "IncompleteSignature",
        "InvalidAccessKeyId",
        "InvalidClientTokenId",
        "InvalidSignatureException",
        "InvalidToken",
        "MissingAuthenticationToken",
        "NotSignedUp",
        "OptInRequired",
        "SignatureDoesNotMatch",
        "UnrecognizedClientException",
    }
)


_DATED = frozenset(
    {"InvalidSignatureException", "RequestExpired", "RequestTimeTooSkewed", "SignatureDoesNotMatch"}
)
"""How services refuse a signature for its date, and for other faults: the message tells which."""
_SKEWED = re.compile(r"skew|signature expired|not yet current", re.IGNORECASE)

_RENEWING = {
    "AssumeRole": "sts:AssumeRole",
    "AssumeRoleWithSAML": "sts:AssumeRoleWithSAML",
    "AssumeRoleWithWebIdentity": "sts:AssumeRoleWithWebIdentity",
    "CreateOAuth2Token": "signin:CreateOAuth2Token",
    "CreateToken": "sso-oauth:CreateToken",
    "GetRoleCredentials": "sso:GetRoleCredentials",
}
"""What botocore calls by itself for credentials, and the rights that it needs."""

_STALE = "Credentials were refreshed, but"  # botocore's words; the exception is a RuntimeError


class Refused(Exception):
    """A service answered with an error. `action` is IAM's name of the call, such as
    `ebs:StartSnapshot`; `reason` is the finer code that EBS adds to some errors."""

    def __init__(
        self, action: str, code: str, message: str, *, status: int, reason: str | None = None
    ) -> None:
        super().__init__(f"{action}: {status} {code}: {message}")
        self.action = action
        self.code = code
        self.message = message
        self.status = status
        self.reason = reason

    @property
    def denied(self) -> bool:
        """The account lacks the right."""
        # S3 says of an object that it does not describe the status alone.
        return self.code.startswith(_DENIED) or self.code == "403"

    @property
    def expired(self) -> bool:
        """The credentials have expired."""
        return self.code in _EXPIRED and not self.skewed

    @property
    def skewed(self) -> bool:
        """This host's clock differs from the service's: a signature is valid for some minutes."""
        told = _SKEWED.search(f"{self.code} {self.message}")
        return told is not None and self.code in _DATED

    @property
    def is_capacity(self) -> bool:
        """There are no more machines of the kind that was asked for; minutes do not change it."""
        return self.code in ("InsufficientInstanceCapacity", "InsufficientCapacity")

    @property
    def unknown_credentials(self) -> bool:
        """The service does not know the credentials, they do not match, or the clock is wrong."""
        return self.code in _BAD_CREDENTIALS or self.skewed


class Cut(Exception):
    """No answer came: there was no connection, or it broke. `connected` says which."""

    def __init__(self, reason: str, *, connected: bool) -> None:
        super().__init__(reason)
        self.reason = reason
        self.connected = connected


class NoCredentials(Exception):
    """botocore found no credentials, or not all of them, or could not renew them."""

    def __init__(self, reason: str, *, expired: bool = False) -> None:
        super().__init__(reason)
        self.reason = reason
        self.expired = expired


def is_transient(refused: Refused) -> bool:
    """Whether the same call may succeed later: throttling, time-outs and 5xx. Never a missing
    right, a mistake in the call, expired credentials, or a quota that is used up."""
    if refused.denied or refused.expired or refused.unknown_credentials or refused.is_capacity:
        return False
    if refused.code.startswith("ServiceQuotaExceeded"):
        return "THROTTL" in (refused.reason or "")
    return (
        refused.status >= 500
        or refused.status == 429
        or refused.code == "ConcurrentLimitExceededException"  # EBS's
        or refused.reason in _TRANSIENT_REASONS
        or _is_repeated_by_botocore(refused.code)
    )


def _is_repeated_by_botocore(code: str) -> bool:
    """Whether botocore's standard mode repeats a call that is refused with this code."""
    from botocore.retries import standard

    context = standard.RetryContext(attempt_number=1, parsed_response={"Error": {"Code": code}})
    checkers = standard.ThrottledRetryableChecker(), standard.TransientRetryableChecker()
    return any(checker.is_retryable(context) for checker in checkers)


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())


@contextmanager
def translated(action: str, describe: Callable[[Exception], str] = _one_line) -> Iterator[None]:
    """Turns what botocore and boto3 raise in the block into Refused, Cut or NoCredentials.
    `describe` gives the reason of a Cut."""
    import botocore.exceptions as known
    from boto3.exceptions import S3UploadFailedError
    from botocore.parsers import ResponseParserError

    try:
        yield
    except known.ClientError as error:
        renewing = _RENEWING.get(error.operation_name)  # asked by botocore, before the call itself
        raise _refused(renewing or action, error.response) from error
    except S3UploadFailedError as error:  # it names the real one, and keeps it as its context
        inner = error.__context__
        if isinstance(inner, known.ClientError):
            raise _refused(action, inner.response) from error
        raise Cut(str(error), connected=True) from error
    except _lost(known) as error:
        raise NoCredentials(_one_line(error), expired=_is_expiry(known, error)) from error
    except RuntimeError as error:
        if not str(error).startswith(_STALE):
            raise
        raise NoCredentials(_one_line(error), expired=True) from error
    except (
        known.EndpointConnectionError,
        known.ConnectTimeoutError,
        known.ProxyConnectionError,
        known.SSLError,  # nothing was sent, and waiting does not mend a wrong certificate
    ) as error:
        raise Cut(describe(error), connected=False) from error
    except (ValueError, LookupError, TypeError, AttributeError, OverflowError) as error:
        # botocore's parsers raise these for what does not fit a service's model.
        raise Cut(f"an answer that cannot be read: {describe(error)}", connected=True) from error
    except (
        known.HTTPClientError,
        known.IncompleteReadError,
        known.ChecksumError,
        ResponseParserError,  # such as the page of a proxy
    ) as error:
        raise Cut(describe(error), connected=True) from error


def _refused(action: str, response: Mapping[str, Any]) -> Refused:
    error = response.get("Error", {})
    status = int(response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0))
    reason = response.get("Reason") or error.get("Reason")
    message = str(error.get("Message") or response.get("Message") or "")
    code = str(error.get("Code") or status)
    return Refused(action, code, message, status=status, reason=reason and str(reason))


def _lost(known: Any) -> tuple[type[Exception], ...]:
    return (
        known.NoCredentialsError,
        known.PartialCredentialsError,
        known.CredentialRetrievalError,
        known.ProfileNotFound,
        known.ConfigParseError,
        known.ConfigNotFound,
        known.InvalidConfigError,
        known.UnknownCredentialError,
        known.RefreshWithMFAUnsupportedError,
        known.MetadataRetrievalError,
        known.NoAuthTokenError,
        known.TokenRetrievalError,
        known.SSOError,
        known.LoginError,
    )


def _is_expiry(known: Any, error: Exception) -> bool:
    stale = (known.UnauthorizedSSOTokenError, known.TokenRetrievalError, known.LoginRefreshRequired)
    return isinstance(error, stale) or "expired" in str(error).lower()


class _Reply(dict[str, Any]):
    """A part of an answer. Asking for what it does not have raises SiteUnreachableError."""

    def __init__(self, content: Mapping[str, Any], action: str) -> None:
        super().__init__({name: checked(value, action) for name, value in content.items()})
        self._action = action

    def __missing__(self, name: str) -> Any:
        raise SiteUnreachableError(
            f"the answer to {self._action} cannot be understood: it has no {name}",
            todo="see which service or proxy answers at the site's end point",
        )


def checked(value: Any, action: str) -> Any:
    """The same answer; reading a value that it should have and has not is an error for people."""
    if isinstance(value, dict):
        return _Reply(value, action)
    return [checked(each, action) for each in value] if isinstance(value, list) else value


_NEXT_TOKEN: Mapping[str, str] = MappingProxyType({"NextToken": "NextToken"})


def list_pages(
    call: Callable[..., Any], key: str, tokens: Mapping[str, str] = _NEXT_TOKEN
) -> Iterator[Any]:
    """What is under `key` in all pages of a listing that `call` asks for. `tokens` maps what a page
    tells of the next one to the parameter that asks for it. Raises as `call`, when looked through.

    botocore's paginators end with the first call that fails; here `call` may repeat it.
    """
    following: dict[str, str] = {}
    while True:
        page = call(**following)
        yield from page.get(key) or ()
        following = {name: page[field] for field, name in tokens.items() if page.get(field)}
        if not following or page.get("IsTruncated") is False:
            return


@dataclass(eq=False)
class Account:
    """An AWS account as one site uses it: its session, its clients, and what it was asked for.

    `endpoint` stands for all services of all regions (an emulator, or a compatible cloud). With
    `isolated`, nothing of this host's proxies or configured endpoints is used, so that no call can
    reach Amazon. `verify` is True, False, or the file that vouches for the certificate.
    """

    session: Any  # boto3.Session, which has no types
    endpoint: str | None = None
    verify: bool | str = True
    isolated: bool = False
    actions: set[str] = field(default_factory=set)
    """IAM's names of all calls made so far: tests compare a policy with them."""
    _clients: dict[tuple[str, str, int], Any] = field(default_factory=dict)
    # Of the session, which may be used by one thread at a time.
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def client(self, service: str, region: str, *, connections: int = CONNECTIONS) -> Any:
        """The client of a service in a region. Always the same one, which threads may share."""
        key = service, region, connections
        with self._lock, translated(f"{service}:*"):
            if key not in self._clients:
                self._clients[key] = self._make_client(*key)
            return self._clients[key]

    def call(self, service: str, region: str, operation: str, **parameters: Any) -> Any:
        """One call, sent once: `call("ec2", region, "DescribeImages", Owners=["self"])`.

        Raises Refused, Cut, NoCredentials.
        """
        from botocore import xform_name

        client = self.client(service, region)
        action = iam_action(service, operation)
        with translated(action):
            return checked(getattr(client, xform_name(operation))(**parameters), action)

    def pages(
        self, service: str, region: str, operation: str, key: str, **parameters: Any
    ) -> Iterator[Any]:
        """What is under `key` in all pages of a listing. Raises as `call`, when looked through."""
        call = partial(self.call, service, region, operation, **parameters)
        return list_pages(call, key)

    def credentials(self) -> Any:
        """The access key, secret key and token that are valid now; botocore renews those that can
        be renewed. Raises NoCredentials, Cut."""
        with translated("sts:GetCallerIdentity"):
            with self._lock:
                credentials = self.session.get_credentials()
            if credentials is None:
                raise NoCredentials("none of the usual places has any")
            return credentials.get_frozen_credentials()

    def note(self, action: str) -> None:
        """Adds the action of a call, also of one that was made without a client."""
        self.actions.add(action)

    def _make_client(self, service: str, region: str, connections: int) -> Any:
        from botocore.config import Config

        # boto3 splits an object into parts itself, and sends a failed part again.
        attempts = PART_ATTEMPTS if service == "s3" else 1
        more: dict[str, Any] = {}
        if self.isolated:
            more = {"proxies": {}, "ignore_configured_endpoint_urls": True}
        if self.endpoint is not None and service == "s3":
            more["s3"] = {"addressing_style": "path"}
        config = Config(
            connect_timeout=CONNECT_SECONDS,
            read_timeout=READ_SECONDS,
            max_pool_connections=connections,
            retries={"total_max_attempts": attempts, "mode": "standard"},
            user_agent_extra="phantom-image",
            **more,
        )
        client = self.session.client(
            service,
            region_name=region,
            endpoint_url=self.endpoint,
            verify=self.verify if self.verify is not True else None,
            config=config,
        )
        self._check_tls(service, client.meta.endpoint_url)
        client.meta.events.register("before-call", self._noted)
        return client

    def _check_tls(self, service: str, url: str) -> None:
        """Raises DefinitionError where the host's own settings would turn TLS off."""
        if self.endpoint is None and not url.lower().startswith("https:"):
            raise DefinitionError(
                f"{service} would be called without TLS at {url}, which AWS_ENDPOINT_URL or the "
                "AWS configuration names",
                todo="only `endpoint` of a site in sites.yaml may name an address without TLS: "
                "write it there, or take it out of the environment and of ~/.aws/config",
            )

    def _noted(self, model: Any, **_others: object) -> None:
        self.note(iam_action(model.service_model.service_name, model.name))


_S3_ACTIONS = {
    "HeadBucket": "s3:ListBucket",
    "ListObjectsV2": "s3:ListBucket",
    "HeadObject": "s3:GetObject",
    "CreateMultipartUpload": "s3:PutObject",
    "UploadPart": "s3:PutObject",
    "CompleteMultipartUpload": "s3:PutObject",
    "ListMultipartUploads": "s3:ListBucketMultipartUploads",
    "GetBucketLocation": "s3:GetBucketLocation",
}


def iam_action(service: str, operation: str) -> str:
    """The right that a call needs, as policies name it. Only for S3 may it differ from the call."""
    if service == "s3":
        return _S3_ACTIONS.get(operation, f"s3:{operation}")
    return f"{service}:{operation}"


@dataclass(eq=False)
class Outage:
    """How long the calls of one piece of work may go on failing. The threads of one piece of work
    share one."""

    seconds: float = OUTAGE_SECONDS
    clock: Callable[[], float] = time.monotonic
    _failing: float | None = None
    """Since when."""
    _told: bool = False
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def succeeded(self) -> None:
        """A call succeeded."""
        with self._lock:
            self._failing = None
            self._told = False

    def failed(self, waited: float) -> bool:
        """A call failed that has waited `waited` seconds. Returns whether to give up: the failures
        since the last success, or this one call, have taken too long."""
        with self._lock:
            now = self.clock()
            if self._failing is None:
                self._failing = now
            return max(now - self._failing, waited) >= self.seconds

    def tell(self, progress: Progress, reason: str) -> None:
        """Reports once per outage that work waits."""
        with self._lock:
            told, self._told = self._told, True
        if not told:
            minutes = max(1, round(self.seconds / 60))
            progress.step(f"cut ({reason}); tries again for up to {minutes} minutes")


def retrying(
    call: Callable[[], T],
    *,
    outage: Outage | None = None,
    progress: Progress | None = None,
    pause: Callable[[float], None] = time.sleep,
    also: Callable[[Refused], bool] | None = None,
) -> T:
    """What `call` returns, in as many tries as it takes.

    Repeated are calls that were cut, transient refusals, and those that `also` accepts; between two
    there is a random pause, from a range that doubles ("full jitter"). The last Refused or Cut is
    raised when `outage` (one of this call's own unless given) is over.
    """
    outage = outage or Outage()
    waited, longest = 0.0, FIRST_PAUSE
    while True:
        try:
            result = call()
        except (Refused, Cut) as error:
            if isinstance(error, Refused) and not (
                is_transient(error) or (also is not None and also(error))
            ):
                raise
            if outage.failed(waited):
                raise
            if isinstance(error, Cut):
                outage.tell(progress or NoProgress(), error.reason)
            seconds = random.uniform(0, longest)  # noqa: S311 (no secret depends on it)
            pause(seconds)
            waited, longest = waited + seconds, min(longest * 2, LONGEST_PAUSE)
        else:
            outage.succeeded()
            return result
