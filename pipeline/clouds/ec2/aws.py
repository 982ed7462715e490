"""Amazon's services through boto3: sessions, clients, what a failed call means, and when to repeat.

All that is known of botocore's exceptions is here: a call ends well, or as `Refused`, `Cut` or
`NoCredentials`. The clients are made to repeat nothing by themselves, so that what is repeated, how
long, and what is said meanwhile are this program's.
"""

from __future__ import annotations

import os
import random
import re
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, TypeVar

from pipeline.model import NoProgress, Progress

T = TypeVar("T")

CONNECT_SECONDS = 10
READ_SECONDS = 60  # botocore's own limit
CONNECTIONS = 16  # of a client's pool, where nothing else is asked for

PART_ATTEMPTS = 6
"""Of each part of an S3 object; with botocore's pauses that is about a minute."""

OUTAGE_SECONDS = 300.0
"""So long work goes on after the first call that failed since one went well: a network that is gone
for some minutes loses nothing."""

FIRST_PAUSE, LONGEST_PAUSE = 0.2, 15.0  # seconds; a pause is random between 0 and the doubled one

THROTTLED = frozenset(
    {
        "ConcurrentLimitExceededException",
        "EC2ThrottledException",
        "LimitExceededException",
        "PriorRequestNotComplete",
        "ProvisionedThroughputExceededException",
        "RequestLimitExceeded",
        "RequestThrottled",
        "RequestThrottledException",
        "SlowDown",
        "Throttling",
        "ThrottlingException",
        "TooManyRequestsException",
    }
)
"""Codes by which services say: later. botocore's list for its standard mode, and EBS's own."""

_TIMED_OUT = frozenset({"RequestTimeout", "RequestTimeoutException"})
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
    {
        "InvalidSignatureException",
        "RequestExpired",
        "RequestTimeTooSkewed",
        "SignatureDoesNotMatch",
    }
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
    """A service answered, and not with success. `action` is IAM's name of what was asked for, such
    as `ebs:StartSnapshot`; `reason` is the finer code that EBS gives with some."""

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
        """The credentials were valid once."""
        return self.code in _EXPIRED and not self.skewed

    @property
    def skewed(self) -> bool:
        """This host's clock is not the service's: a signature is good for some minutes."""
        told = _SKEWED.search(f"{self.code} {self.message}")
        return told is not None and self.code in _DATED

    @property
    def unknown_credentials(self) -> bool:
        """The service does not know the credentials, or they do not fit together, or its clock."""
        return self.code in _BAD_CREDENTIALS or self.skewed


class Cut(Exception):
    """No answer came: no connection, or one that broke. `connected` says which."""

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
    """Whether the same call may go well later: throttling, time-outs and 5xx. Never a missing
    right, a mistake in the call, expired credentials, or a quota that is used up."""
    if refused.denied or refused.expired or refused.unknown_credentials:
        return False
    if refused.code.startswith("ServiceQuotaExceeded"):
        return "THROTTL" in (refused.reason or "")
    return (
        refused.status >= 500
        or refused.status == 429
        or refused.code in THROTTLED
        or refused.code in _TIMED_OUT
        or refused.reason in _TRANSIENT_REASONS
    )


@contextmanager
def translated(action: str) -> Iterator[None]:
    """Turns what botocore and boto3 raise in the block into Refused, Cut or NoCredentials."""
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
    except _never_connected(known) as error:
        raise Cut(_one_line(error), connected=False) from error
    except (
        known.HTTPClientError,
        known.IncompleteReadError,
        known.ChecksumError,
        ResponseParserError,  # such as the page of a proxy
    ) as error:
        raise Cut(_one_line(error), connected=True) from error


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


def _never_connected(known: Any) -> tuple[type[Exception], ...]:
    # A wrong certificate is one of these: nothing was sent, and waiting does not mend it.
    return (
        known.EndpointConnectionError,
        known.ConnectTimeoutError,
        known.ProxyConnectionError,
        known.SSLError,
    )


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())


@dataclass(frozen=True)
class _Key:
    service: str
    region: str
    connections: int


class Account:
    """An AWS account as one site uses it: its session, its clients, and what it was asked for.

    `endpoint` stands for all services of all regions (an emulator, or a compatible cloud). With
    `isolated`, nothing of this host's proxies or configured endpoints is used, so that no call can
    reach Amazon. `verify` is True, False, or the file that vouches for the certificate.
    """

    def __init__(
        self,
        session: Any,  # boto3.Session, which has no types
        *,
        endpoint: str | None = None,
        verify: bool | str = True,
        isolated: bool = False,
    ) -> None:
        self.session = session
        self.endpoint = endpoint
        self.verify = verify
        self.isolated = isolated
        self.actions: set[str] = set()
        """IAM's names of all that was asked for so far: documentation and tests hold a policy
        against it."""
        self._clients: dict[_Key, Any] = {}
        self._lock = threading.Lock()  # of a session, which may be used by one thread at a time

    def client(self, service: str, region: str, *, connections: int = CONNECTIONS) -> Any:
        """The client of a service in a region. Always the same one, which threads may share."""
        key = _Key(service, region, connections)
        with self._lock, translated(f"{service}:*"):
            if key not in self._clients:
                self._clients[key] = self._make_client(key)
            return self._clients[key]

    def call(self, service: str, region: str, operation: str, **parameters: Any) -> Any:
        """One call, sent once: `call("ec2", region, "DescribeImages", Owners=["self"])`.

        Raises Refused, Cut, NoCredentials.
        """
        from botocore import xform_name

        client = self.client(service, region)
        with translated(iam_action(service, operation)):
            return getattr(client, xform_name(operation))(**parameters)

    def pages(
        self, service: str, region: str, operation: str, key: str, **parameters: Any
    ) -> Iterator[Any]:
        """What is under `key` in all pages of a listing. Raises as `call`, when looked through."""
        token: dict[str, str] = {}
        while True:
            page = self.call(service, region, operation, **parameters, **token)
            yield from page.get(key) or ()
            if not page.get("NextToken"):
                return
            token = {"NextToken": page["NextToken"]}

    def credentials(self) -> Any:
        """Access key, secret key and token as they are good now; botocore renews those that can be
        renewed. Raises NoCredentials, Cut."""
        with translated("sts:GetCallerIdentity"):
            with self._lock:
                credentials = self.session.get_credentials()
            if credentials is None:
                raise NoCredentials("none of the usual places has any")
            return credentials.get_frozen_credentials()

    def note(self, action: str) -> None:
        """Adds what was asked for without a client."""
        self.actions.add(action)

    def _make_client(self, key: _Key) -> Any:
        from botocore.config import Config

        # The parts of an object are boto3's own business, and so is to send one of them again.
        attempts = PART_ATTEMPTS if key.service == "s3" else 1
        more: dict[str, Any] = {}
        if self.isolated:
            more = {"proxies": {}, "ignore_configured_endpoint_urls": True}
        if self.endpoint is not None and key.service == "s3":
            more["s3"] = {"addressing_style": "path"}
        config = Config(
            connect_timeout=CONNECT_SECONDS,
            read_timeout=READ_SECONDS,
            max_pool_connections=key.connections,
            retries={"total_max_attempts": attempts, "mode": "standard"},
            user_agent_extra="phantom-image",
            **more,
        )
        client = self.session.client(
            key.service,
            region_name=key.region,
            endpoint_url=self.endpoint,
            verify=self.verify if self.verify is not True else None,
            config=config,
        )
        client.meta.events.register("before-call", self._noted)
        return client

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
    """The right that a call needs, as policies name it. Only S3 names some otherwise."""
    if service == "s3":
        return _S3_ACTIONS.get(operation, f"s3:{operation}")
    return f"{service}:{operation}"


class Outage:
    """How long the calls of one piece of work go on without any that goes well. Threads that do one
    work share one."""

    def __init__(
        self, *, seconds: float = OUTAGE_SECONDS, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._seconds = seconds
        self._clock = clock
        self._lock = threading.Lock()
        self._failing: float | None = None
        """Since when."""
        self._told = False

    def succeeded(self) -> None:
        """A call went well."""
        with self._lock:
            self._failing = None
            self._told = False

    def failed(self, waited: float) -> bool:
        """A call failed that had waited for so long. Returns whether to give up: since the first
        failure after the last success, or for this one call, it has lasted long enough."""
        with self._lock:
            now = self._clock()
            if self._failing is None:
                self._failing = now
            return max(now - self._failing, waited) >= self._seconds

    def tell(self, progress: Progress, reason: str) -> None:
        """Tells once an outage that work waits."""
        with self._lock:
            told, self._told = self._told, True
        if not told:
            minutes = max(1, round(self._seconds / 60))
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


def make_session(
    profile: str | None = None, environ: Mapping[str, str] | None = None
) -> Any:  # boto3.Session, which has no types
    """A boto3 session with the usual AWS chain: environment, profile, `~/.aws`, and what a machine
    or container at Amazon is given. The profile is the one named, or that of AWS_PROFILE; a named
    one stands above keys in the environment.

    With an `environ` other than the process's own, only it, and the files that it or its HOME
    names, count. Raises NoCredentials for a profile that does not exist.
    """
    import boto3
    import botocore.session

    with translated("sts:GetCallerIdentity"):
        if environ is None or environ is os.environ:
            core = botocore.session.Session(profile=profile)
            core.register_component("data_loader", _get_loader())
        else:
            core = _make_confined(profile, environ)
        core.get_scoped_config()  # fails for a profile that is in no file
        return boto3.Session(botocore_session=core)


def make_dummy_session() -> Any:
    """A boto3 session that holds keys of nobody and reads neither environment nor files."""
    session = make_session(environ={})
    session.get_credentials()
    session._session.set_credentials("SANDBOX", "sandbox")
    return session


@cache
def _get_loader() -> Any:
    """What reads the models of services: for all sessions, as EC2's takes a third of a second."""
    from botocore.loaders import create_loader

    return create_loader()


def _make_confined(profile: str | None, environ: Mapping[str, str]) -> Any:
    import botocore.session
    from botocore.credentials import EnvProvider

    def find(names: str | list[str] | None) -> str | None:
        listed = [names] if isinstance(names, str) else names or []
        return next((environ[name] for name in listed if environ.get(name)), None)

    home = Path(environ.get("HOME") or "/nonexistent")
    usual = {
        "config_file": str(home / ".aws/config"),
        "credentials_file": str(home / ".aws/credentials"),
    }
    variables = {
        name: (option, None, find(names) or usual.get(name, default), cast)
        for name, (
            option,
            names,
            default,
            cast,
        ) in botocore.session.Session.SESSION_VARIABLES.items()
    }
    core = botocore.session.Session(session_vars=variables, profile=profile)
    core.register_component("data_loader", _get_loader())
    resolver = core.get_component("credential_provider")
    # What is left out asks the network, or reads old files of the process's own home.
    kept = {"env", "assume-role", "shared-credentials-file", "config-file", "custom-process", "sso"}
    resolver.providers[:] = [
        EnvProvider(environ=dict(environ)) if each.METHOD == "env" else each
        for each in resolver.providers
        if each.METHOD in kept
    ]
    return core
