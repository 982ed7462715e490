"""What a failed call means for people: one function for all of EC2's, S3's and EBS's refusals."""

from __future__ import annotations

import re

from pipeline.clouds.ec2.settings import Ec2Settings
from pipeline.errors import (
    CredentialsError,
    CredentialsExpiredError,
    ImportRoleError,
    InUseError,
    PhantomError,
    QuotaError,
    RegionError,
    RightsError,
    SharingBlockedError,
    SiteUnreachableError,
    UploadError,
)
from pipeline.tools.aws import Cut, NoCredentials, Refused, is_transient

Failure = Refused | Cut | NoCredentials

_QUOTA = re.compile(r"LimitExceeded|QuotaExceeded|InsufficientCapacity|^TooManySnapshots")
_LAUNCH = "ec2:RunInstances"
_IN_USE = ("InvalidSnapshot.InUse", "InvalidAMIID.InUse")
_BLOCKED = re.compile(r"block public access|BlockPublicAccess|publicly shar", re.IGNORECASE)
_ROLE = re.compile(r"\brole\b", re.IGNORECASE)
_OF_EMULATOR = (
    "run the same command again; if it happens again, the host may have too little memory or "
    "processor time left: build one site at a time (`--site`), and see `emulator.log` in the "
    "site's folder below build/sites"
)
_LONGEST = 300  # characters of a service's own words that help


def make_error(failure: Failure, settings: Ec2Settings, region: str | None = None) -> PhantomError:
    """The error that people see, with what to do; located at the site."""
    error = _explain(failure, settings, region or settings.region)
    error.where = f"site {settings.site}"
    return error


def _explain(failure: Failure, settings: Ec2Settings, place: str) -> PhantomError:
    if isinstance(failure, NoCredentials):
        if failure.expired:
            return _expired(failure.reason)
        return CredentialsError(f"no AWS credentials: {failure.reason}", todo=_ways(settings))
    if isinstance(failure, Cut):
        what = f"{settings.find_service(place)} does not answer: {failure.reason}"
        if settings.emulated:
            return SiteUnreachableError(what, todo=_OF_EMULATOR)
        return SiteUnreachableError(
            what,
            todo="look at this host's network, proxy and firewall"
            + (", and compare `endpoint` of the site" if settings.endpoint else "")
            + "; then run the same command again: it goes on where it was",
        )
    said = f"{failure.code}: {_shorten(failure.message)}"
    if failure.expired or failure.unknown_credentials:
        return _explain_identity(failure, settings, place, said)
    return _explain_refusal(failure, settings, place, said)


def _ways(settings: Ec2Settings) -> str:
    ways = (
        "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE, or name a profile of "
        "~/.aws/config with `profile:` of the site; `aws configure` writes one"
    )
    if settings.profile is not None:
        return f"write profile {settings.profile} to ~/.aws/config, or change the site's; or {ways}"
    return ways


def _expired(said: str) -> PhantomError:
    return CredentialsExpiredError(
        f"the AWS credentials have expired: {_shorten(said)}",
        todo="get new ones (such as with `aws sso login`), then run the same command again: it "
        "goes on where it was",
    )


def _explain_refusal(
    refused: Refused, settings: Ec2Settings, place: str, said: str
) -> PhantomError:
    site = f"site {settings.site}"
    if _BLOCKED.search(refused.message) and "Modify" in refused.action:
        return make_sharing_error(site, place, said)
    if refused.denied:
        return RightsError(
            f"the account may not call {refused.action} in {place}",
            todo=f"let a policy of the user or role allow {refused.action}; docs/ec2.md has the "
            "whole policy that a site needs",
        )
    if refused.action == "ec2:ImportSnapshot" and _ROLE.search(refused.message):
        return make_role_error(settings, site, said)
    if refused.action == "ec2:DeregisterImage" and refused.code == "OperationNotPermitted":
        return InUseError(
            f"the image is protected: {_shorten(refused.message)}",
            todo="turn off its deregistration protection in the EC2 console, then run the same "
            "command again",
        )
    if refused.code in _IN_USE:
        return InUseError(
            f"something still uses it: {said}",
            todo="see what uses it in the EC2 console, and remove that first",
        )
    if refused.action == _LAUNCH and (refused.is_capacity or _QUOTA.search(refused.code)):
        return QuotaError(
            f"{place} starts no more machines of this kind ({said})",
            todo="ask for fewer, end machines that are not needed, take another "
            "`phantom: instance_type:` in the definition, or ask AWS for a higher quota",
        )
    if settings.emulated:
        what = f"{settings.find_service(place)} refuses {refused.action}: {said}"
        kind = SiteUnreachableError if is_transient(refused) else UploadError
        return kind(what, todo=_OF_EMULATOR)
    if is_transient(refused):
        return SiteUnreachableError(
            f"{refused.action} does not get through in {place}: {said}",
            todo="wait a while, then run the same command again: it goes on where it was",
        )
    if _QUOTA.search(refused.code):
        return QuotaError(
            f"a quota of the account is reached in {place} ({refused.action}: {said})",
            todo="retire images that are not needed any more (`phantom-image list` names them), "
            f"remove leftovers with `phantom-image clean --site {settings.site}`, or ask AWS for a "
            "higher quota (Service Quotas in its console)",
        )
    return UploadError(
        f"{settings.find_service(place)} refuses {refused.action}: {said}",
        todo="compare the site's options with what it says; docs/ec2.md tells what they mean",
    )


def _explain_identity(
    refused: Refused, settings: Ec2Settings, place: str, said: str
) -> PhantomError:
    """The error of a caller whom the service does not accept."""
    service = settings.find_service(place)
    if refused.skewed:
        return CredentialsError(
            f"{service} refuses what is signed by this host's clock: {said}",
            todo="set this host's clock (such as with `timedatectl set-ntp true`), then run the "
            "same command again: it goes on where it was",
        )
    if refused.expired:
        return _expired(said)
    if refused.code == "OptInRequired":
        return make_disabled_region(f"site {settings.site}", place)
    return CredentialsError(f"{service} refuses the credentials: {said}", todo=_ways(settings))


def make_disabled_region(where: str, region: str) -> RegionError:
    """That the account has not enabled a region."""
    return RegionError(
        f"region {region} is not enabled for the account",
        where=where,
        todo="enable it in the account's settings, or leave it out of the site's options",
    )


def make_sharing_error(where: str, region: str, said: str) -> PhantomError:
    """That block-public-access forbids what `share_with: [all]` asks for."""
    return SharingBlockedError(
        f"images cannot be made public in {region}: the account blocks it ({said})",
        where=where,
        todo="turn off `Block public access for AMIs` (and for snapshots) in the EC2 settings of "
        "the region, or leave `all` out of `share_with`",
    )


def make_role_error(settings: Ec2Settings, where: str, said: str) -> PhantomError:
    """That the import service cannot work under its role."""
    return ImportRoleError(
        f"the import service cannot use the role {settings.import_role}: {_shorten(said)}",
        where=where,
        todo=f"make the role, and let it read the bucket {settings.bucket}: docs/ec2.md has both "
        "policies",
    )


def _shorten(message: str) -> str:
    # Amazon adds a few hundred characters that only sts:DecodeAuthorizationMessage can read.
    text = message.split("Encoded authorization failure message")[0].strip()
    return text if len(text) <= _LONGEST else f"{text[:_LONGEST]}..."
