"""What commands ask of a Phantom, by either of its APIs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, Protocol

from pipeline.phantom.connection import Connection
from pipeline.phantom.credentials import find_credentials
from pipeline.phantom.failures import Explainer
from pipeline.phantom.named import WEB, PhantomService

Clouds = tuple[tuple[str, int], ...]
"""The sites of a domain in the order in which they are filled, each with its maximum (-1: no
limit)."""


@dataclass(frozen=True, kw_only=True)
class SiteParams:
    """What a launch configuration says of one site. The query API does not tell what is None."""

    image_id: str
    instance_type: str
    max_vms: int | None = None
    common: bool | None = None
    rank: int | None = None


@dataclass(frozen=True, kw_only=True)
class Configuration:
    """A launch configuration with all its sites."""

    name: str
    sites: Mapping[str, SiteParams]
    user_data: str | Mapping[str, str] | None
    """Of all sites, or by site, which only the web API can say."""
    method: str = "user_data"
    """How machines are configured: `user_data`, `chef` or `none`."""
    appliance: str | None = None
    id: str = ""
    """By which the web API knows it."""


@dataclass(frozen=True, kw_only=True)
class DomainMachine:
    """A machine of a domain."""

    id: str
    site: str
    state: str
    """In Phantom's words."""


@dataclass(frozen=True, kw_only=True)
class DomainState:
    """A domain as Phantom describes it."""

    name: str
    configuration: str
    """The launch configuration's name, without `@site`."""
    size: int
    """How many machines it is to have."""
    clouds: Clouds | None = None
    """None where Phantom does not tell them."""
    machines: Sequence[DomainMachine] | None = None
    """None where they were not asked for."""
    id: str = ""
    """By which the web API knows it."""


class Client(Protocol):
    """A Phantom that is asked. Every method raises CredentialsError, ClockError,
    SiteUnreachableError, PhantomServiceError."""

    replaces_in_use: ClassVar[bool]
    """Whether a launch configuration can be replaced while domains use it."""
    ranks_sites: ClassVar[bool]
    """Whether launch configurations, and not domains, say in which order sites are filled."""

    service: PhantomService

    def find_configuration(self, name: str) -> Configuration | None:
        """The launch configuration of a name; None where there is none."""

    def put_site(self, wanted: Configuration, site: str, before: Configuration | None) -> None:
        """Gives a launch configuration a site as it is `wanted`, in place of what it was `before`.
        Raises InUseError, NameTakenError."""

    def list_domains(self) -> list[DomainState]:
        """All domains, by name, perhaps without their machines."""

    def find_domain(self, name: str) -> DomainState | None:
        """The domain of a name, with its machines; None where there is none."""

    def create_domain(self, name: str, configuration: str, size: int, clouds: Clouds) -> None:
        """Makes a domain. `clouds` count where domains order sites. Raises NameTakenError."""

    def resize_domain(self, domain: DomainState, size: int) -> None:
        """Sets how many machines a domain is to have."""

    def delete_domain(self, domain: DomainState) -> None:
        """Removes a domain; its machines end."""


def make_client(service: PhantomService, environ: Mapping[str, str]) -> Client:
    """The client of a Phantom. Asks nothing yet. Raises CredentialsError."""
    from pipeline.phantom.query_client import QueryClient
    from pipeline.phantom.web_client import WebClient, authorize

    credentials = find_credentials(service, environ)
    user = credentials.user
    connection = Connection(service, (user.secret_key, user.token, authorize(user)))
    explainer = Explainer(service, credentials)
    kind = WebClient if service.api == WEB else QueryClient
    return kind(connection, explainer, user)
