"""What a Phantom's refusal means for people: one place for both APIs."""

from __future__ import annotations

from dataclasses import dataclass

from pipeline.errors import (
    ClockError,
    CredentialsError,
    InUseError,
    NameTakenError,
    PhantomError,
    PhantomServiceError,
)
from pipeline.phantom.credentials import Credentials
from pipeline.phantom.named import PhantomService
from pipeline.phantom.refusal import Refusal

_AGAIN = "run the same command again: it goes on where it was"
_IDENTITY = {
    "IncompleteSignature": "the secret key is not the access key's",
    "InvalidClientTokenId": "the access key is not known",
}


@dataclass(frozen=True)
class Explainer:
    """Makes errors of refusals; each is located at the Phantom."""

    service: PhantomService
    credentials: Credentials

    def explain(self, refusal: Refusal, action: str) -> PhantomError:
        """The error of a call that was refused; `action` says what was asked for."""
        error = self._explain(refusal, action)
        error.where = f"Phantom {self.service.name}"
        return error

    def _explain(self, refusal: Refusal, action: str) -> PhantomError:
        said = f"{refusal.status} {refusal.code}: {refusal.text}"
        if refusal.code in _IDENTITY or refusal.status in (401, 403):
            why = _IDENTITY.get(refusal.code, "the access key or its token is wrong")
            return CredentialsError(
                f"the credentials are refused, {why} ({refusal.status} {refusal.code})",
                todo=f"correct those of {self.credentials.source}; or {self.credentials.ways}",
            )
        if refusal.code == "RequestExpired":
            return ClockError(
                "requests are refused because this host's clock is more than 15 minutes off "
                f"({said})",
                todo="set this host's clock (such as with `timedatectl set-ntp true`), or that of "
                f"Phantom if it is the wrong one; then {_AGAIN}",
            )
        if refusal.code == "ResourceInUse":
            return InUseError(
                f"{action} is refused, since a domain uses it ({said})",
                todo="delete or finish the domain (`phantom-image domain list` shows all), then "
                "run the same command again",
            )
        return PhantomServiceError(
            f"{action} is refused ({said})" if refusal.status < 500 else f"{action} fails ({said})",
            todo=_find_todo(refusal, action),
        )


def _find_todo(refusal: Refusal, action: str) -> str:
    if refusal.status >= 500 and action.startswith("describing"):
        return (
            "user-data that is not ASCII text, in any launch configuration of this user, breaks "
            "every description: delete that one, then run the same command again"
        )
    if refusal.status == 404:
        return "compare `url` and `api` of this Phantom in sites.yaml"
    if "site" in refusal.text.split():
        return (
            "sites.yaml must call sites as this Phantom does: rename the site there and publish "
            "again, or choose others by --site"
        )
    if refusal.status >= 500:
        return f"ask whoever runs this Phantom; then {_AGAIN}"
    return "compare what is refused with docs/facts/phantom.md, and correct it"


def make_taken(service: PhantomService, what: str) -> NameTakenError:
    """The error of a name that somebody else has taken since we looked."""
    return NameTakenError(
        f"{what} exists already: somebody has made it since this command began",
        where=f"Phantom {service.name}",
        todo="run the same command again: it compares it with what is wanted",
    )
