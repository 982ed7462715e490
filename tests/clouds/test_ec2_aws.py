"""What a failed call means, and how often and for how long we repeat it."""

from __future__ import annotations

import threading
from pathlib import Path

import botocore.exceptions as known
import pytest
from harness import Ec2Harness, Watched, find_free_port

from pipeline.clouds.ec2.errors import make_error
from pipeline.clouds.ec2.settings import Ec2Settings
from pipeline.errors import DefinitionError
from pipeline.tools.aws import (
    OUTAGE_SECONDS,
    Account,
    Cut,
    NoCredentials,
    Outage,
    Refused,
    iam_action,
    is_transient,
    retrying,
    translated,
)
from pipeline.tools.aws_session import make_dummy_session, make_session

SETTINGS = Ec2Settings(
    site="test",
    region="us-east-1",
    profile=None,
    method="ebs",
    bucket=None,
    import_role="vmimport",
    volume_type="gp3",
    volume_gib=None,
    copy_to=(),
    share_with=(),
    deprecate_days=None,
    encrypt=False,
    kms_key=None,
    endpoint=None,
    verify=True,
)


def refused(code: str, status: int = 400, reason: str | None = None) -> Refused:
    return Refused("ebs:PutSnapshotBlock", code, "", status=status, reason=reason)


@pytest.mark.parametrize(
    "error",
    [
        refused("ThrottlingException"),
        refused("RequestThrottledException", reason="ACCOUNT_THROTTLED"),
        refused("ConcurrentLimitExceededException"),
        refused("ServiceQuotaExceededException", 402, "RESOURCE_LEVEL_THROTTLE"),
        refused("RequestLimitExceeded", 503),
        refused("SlowDown", 503),
        refused("InternalServerException", 500),
        refused("502", 502),
        refused("Whatever", 429),
        refused("RequestTimeout"),
        refused("ValidationException", reason="WRITE_REQUEST_TIMEOUT"),
    ],
    ids=lambda each: each.code,
)
def test_errors_that_are_retried(error: Refused) -> None:
    assert is_transient(error)


@pytest.mark.parametrize(
    "error",
    [
        refused("AccessDeniedException", 403),
        refused("AccessDenied", 503),  # the code decides, not the status
        refused("UnauthorizedOperation", 403),
        refused("403", 403),
        refused("ServiceQuotaExceededException", 402, "DEPENDENCY_SERVICE_QUOTA_EXCEEDED"),
        refused("ServiceQuotaExceededException", 503),
        refused("SnapshotLimitExceeded"),
        refused("ValidationException", reason="INVALID_BLOCK"),
        refused("ResourceNotFoundException", 404, "SNAPSHOT_NOT_FOUND"),
        refused("ExpiredTokenException", 403),
        refused("ExpiredToken", 500),
        refused("RequestExpired"),
        refused("InvalidClientTokenId", 403),
        refused("AuthFailure", 401),
        refused("ConflictException", 409),
    ],
    ids=lambda each: each.code,
)
def test_errors_that_are_not_retried(error: Refused) -> None:
    assert not is_transient(error)


def failing(*errors: Exception) -> tuple[list[int], object]:
    """A call that raises these errors in turn, and then returns how often it was made."""
    made: list[int] = []

    def call() -> int:
        made.append(1)
        if len(made) <= len(errors):
            raise errors[len(made) - 1]
        return len(made)

    return made, call


def test_repeated_until_it_goes_well_with_growing_random_pauses() -> None:
    pauses: list[float] = []
    progress = Watched()
    errors = [refused("ThrottlingException"), Cut("reset", connected=True)] * 10
    _, call = failing(*errors)
    assert retrying(call, pause=pauses.append, progress=progress) == 21  # type: ignore[arg-type]
    assert len(pauses) == 20 and len(set(pauses)) == 20
    assert all(0 <= each <= min(0.2 * 2**number, 15) for number, each in enumerate(pauses))
    assert max(pauses) > 1
    assert progress.steps == ["cut (reset); tries again for up to 5 minutes"]


@pytest.mark.parametrize(
    "error", [refused("AccessDeniedException", 403), NoCredentials("gone"), ValueError("ours")]
)
def test_not_repeated(error: Exception) -> None:
    made, call = failing(error)
    with pytest.raises(type(error)):
        retrying(call, pause=lambda _: None)  # type: ignore[arg-type]
    assert len(made) == 1


def test_repeated_where_the_caller_says_so() -> None:
    _, call = failing(refused("ResourceNotFoundException", 404))
    assert retrying(call, pause=lambda _: None, also=lambda _: True) == 2  # type: ignore[arg-type]


def test_given_up_when_the_outage_is_over() -> None:
    waited: list[float] = []
    made, call = failing(*[Cut("no route", connected=False)] * 10_000)
    with pytest.raises(Cut):
        retrying(call, pause=waited.append)  # type: ignore[arg-type]
    assert OUTAGE_SECONDS <= sum(waited) <= OUTAGE_SECONDS + 15
    assert len(made) == len(waited) + 1


def test_the_time_counts_from_the_first_failure_after_a_call_of_any_thread_that_went_well() -> None:
    now = [0.0]
    outage = Outage(clock=lambda: now[0])
    now[0] = 2 * OUTAGE_SECONDS  # time without requests is no outage
    assert not outage.failed(0)
    now[0] += OUTAGE_SECONDS - 1
    assert not outage.failed(0)
    outage.succeeded()
    now[0] += OUTAGE_SECONDS
    assert not outage.failed(0)
    now[0] += OUTAGE_SECONDS - 1
    assert not outage.failed(0)
    now[0] += 1
    assert outage.failed(0)
    outage.succeeded()
    assert outage.failed(OUTAGE_SECONDS)  # one call that never gets through while others do


def test_an_outage_is_told_once_and_the_next_one_again() -> None:
    outage, progress = Outage(), Watched()
    outage.tell(progress, "a")
    outage.tell(progress, "b")
    outage.succeeded()
    outage.tell(progress, "c")
    assert [step[:7] for step in progress.steps] == ["cut (a)", "cut (c)"]


@pytest.mark.parametrize(
    ("error", "connected"),
    [
        (known.EndpointConnectionError(endpoint_url="u", error="e"), False),
        (known.ConnectTimeoutError(endpoint_url="u", error="e"), False),
        (known.SSLError(endpoint_url="u", error="e"), False),
        (known.ProxyConnectionError(proxy_url="u", error="e"), False),
        (known.ReadTimeoutError(endpoint_url="u", error="e"), True),
        (known.ConnectionClosedError(endpoint_url="u", error="e"), True),
        (known.IncompleteReadError(actual_bytes=1, expected_bytes=2), True),
    ],
    ids=lambda each: type(each).__name__,
)
def test_cut(error: Exception, connected: bool) -> None:
    with pytest.raises(Cut) as caught, translated("ec2:DescribeImages"):
        raise error
    assert caught.value.connected is connected


@pytest.mark.parametrize(
    ("error", "expired"),
    [
        (known.NoCredentialsError(), False),
        (known.PartialCredentialsError(provider="p", cred_var="v"), False),
        (known.ProfileNotFound(profile="p"), False),
        (known.CredentialRetrievalError(provider="p", error_msg="no"), False),
        (known.CredentialRetrievalError(provider="p", error_msg="token has expired"), True),
        (known.UnauthorizedSSOTokenError(), True),
        (known.TokenRetrievalError(provider="p", error_msg="no"), True),
        (
            RuntimeError(
                "Credentials were refreshed, but the refreshed credentials are still expired."
            ),
            True,
        ),
    ],
    ids=lambda each: type(each).__name__,
)
def test_no_credentials(error: Exception, expired: bool) -> None:
    with pytest.raises(NoCredentials) as caught, translated("ec2:DescribeImages"):
        raise error
    assert caught.value.expired is expired


def test_a_defect_is_no_lack_of_credentials() -> None:
    with pytest.raises(RuntimeError), translated("ec2:DescribeImages"):
        raise RuntimeError("dictionary changed size during iteration")


def test_errors_of_botocores_own_requests_are_named() -> None:
    """botocore may fetch a role's credentials during another call."""
    for operation, action in (
        ("AssumeRole", "sts:AssumeRole"),
        ("AssumeRoleWithWebIdentity", "sts:AssumeRoleWithWebIdentity"),
        ("GetRoleCredentials", "sso:GetRoleCredentials"),
        ("DescribeImages", "ec2:DescribeImages"),
    ):
        code = "ForbiddenException" if operation == "GetRoleCredentials" else "AccessDenied"
        answer = {"Error": {"Code": code, "Message": "no"}}
        with pytest.raises(Refused) as caught, translated("ec2:DescribeImages"):
            raise known.ClientError(answer, operation)
        assert caught.value.action == action and caught.value.denied


@pytest.mark.parametrize(
    ("code", "message", "skewed"),
    [
        ("SignatureDoesNotMatch", "Signature expired: 20260101T000000Z is now earlier than", True),
        ("InvalidSignatureException", "Signature not yet current: 20260101T000000Z", True),
        ("RequestTimeTooSkewed", "The difference between the request time and the", True),
        ("RequestExpired", "Request has expired.", False),
        ("SignatureDoesNotMatch", "The request signature we calculated does not match", False),
        ("ExpiredToken", "The security token included in the request is expired", False),
    ],
)
def test_a_clock_that_is_off_is_told_from_bad_keys(code: str, message: str, skewed: bool) -> None:
    error = Refused("ec2:DescribeImages", code, message, status=403)
    assert error.skewed is skewed
    assert not is_transient(error)
    assert not (skewed and error.expired)
    told = make_error(error, SETTINGS)
    assert ("this host's clock" in str(told)) is skewed


def test_refusal_of_each_kind_of_service(ec2: Ec2Harness) -> None:
    account = Account(make_session(environ=ec2.environ), endpoint=ec2.server.endpoint)
    ec2.server.add_bucket("example-images")
    ec2.faults.refuse(
        "ebs:StartSnapshot", "ServiceQuotaExceededException", "much", status=402, reason="R"
    )
    calls: list[tuple[str, str, dict[str, object]]] = [
        ("ec2", "DescribeSnapshots", {"SnapshotIds": ["snap-00000000000000000"]}),
        ("ebs", "StartSnapshot", {"VolumeSize": 1}),
        ("s3", "GetObject", {"Bucket": "example-images", "Key": "none"}),
        ("s3", "HeadObject", {"Bucket": "example-images", "Key": "none"}),
    ]
    told = []
    for service, operation, parameters in calls:
        with pytest.raises(Refused) as caught:
            account.call(service, "us-east-1", operation, **parameters)
        error = caught.value
        told.append((error.action, error.code, error.status, error.reason))
    assert told == [
        ("ec2:DescribeSnapshots", "InvalidSnapshot.NotFound", 400, None),
        ("ebs:StartSnapshot", "ServiceQuotaExceededException", 402, "R"),
        ("s3:GetObject", "NoSuchKey", 404, None),
        ("s3:GetObject", "404", 404, None),
    ]
    assert account.actions == {"ec2:DescribeSnapshots", "ebs:StartSnapshot", "s3:GetObject"}


def test_clients_are_shared_and_made_by_one_thread_at_a_time(ec2: Ec2Harness) -> None:
    account = Account(make_session(environ=ec2.environ), endpoint=ec2.server.endpoint)
    found: list[object] = []
    threads = [
        threading.Thread(target=lambda: found.append(account.client("ec2", "us-east-1")))
        for _ in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 8 and len(set(map(id, found))) == 1


def test_nothing_is_repeated_by_botocore_itself(ec2: Ec2Harness) -> None:
    account = Account(make_session(environ=ec2.environ), endpoint=ec2.server.endpoint)
    ec2.faults.fail("ec2:DescribeImages", times=None)
    with pytest.raises(Refused):
        account.call("ec2", "us-east-1", "DescribeImages")
    assert ec2.server.count("ec2:DescribeImages") == 1


def test_dummy_account_reads_nothing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("AWS_PROFILE", "AWS_CONFIG_FILE", "AWS_ENDPOINT_URL", "AWS_CA_BUNDLE"):
        monkeypatch.setenv(name, "none")
    port = find_free_port()
    account = Account(make_dummy_session(), endpoint=f"http://127.0.0.1:{port}", isolated=True)
    with pytest.raises(Cut) as caught:
        account.call("sts", "us-east-1", "GetCallerIdentity")
    assert str(port) in caught.value.reason


@pytest.mark.parametrize("variable", ["AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_EC2"])
def test_the_environment_cannot_turn_tls_off(
    monkeypatch: pytest.MonkeyPatch, variable: str
) -> None:
    """Only `endpoint` of sites.yaml can."""
    port = find_free_port()
    monkeypatch.setenv(variable, f"http://127.0.0.1:{port}")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "id")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    with pytest.raises(DefinitionError) as caught:
        Account(make_session()).call("ec2", "us-east-1", "DescribeImages")
    assert str(caught.value) == (
        f"ec2 would be called without TLS at http://127.0.0.1:{port}, which AWS_ENDPOINT_URL or "
        "the AWS configuration names\n"
        "  do: only `endpoint` of a site in sites.yaml may name an address without TLS: write it "
        "there, or take it out of the environment and of ~/.aws/config"
    )
    account = Account(make_session(), endpoint=f"http://127.0.0.1:{port}")
    with pytest.raises(Cut):
        account.call("ec2", "us-east-1", "DescribeImages")


def test_rights_as_policies_name_them() -> None:
    assert iam_action("ebs", "PutSnapshotBlock") == "ebs:PutSnapshotBlock"
    assert iam_action("s3", "UploadPart") == "s3:PutObject"
    assert iam_action("s3", "HeadBucket") == "s3:ListBucket"
