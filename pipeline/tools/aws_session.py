"""Sessions of boto3, which find the credentials."""

from __future__ import annotations

import os
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

from pipeline.tools.aws import translated


def make_session(
    profile: str | None = None, environ: Mapping[str, str] | None = None
) -> Any:  # boto3.Session, which has no types
    """A boto3 session with the usual AWS chain: environment, profile, `~/.aws`, and what a machine
    or container at Amazon is given. The profile is the one named, or that of AWS_PROFILE; a named
    one takes precedence over keys in the environment.

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


_ENDPOINT = "AWS_ENDPOINT_URL"  # a service's own variable has the service's name at the end


def find_configured_endpoints(
    profile: str | None, environ: Mapping[str, str]
) -> list[tuple[str, str]]:
    """What this host's own settings name as endpoints in place of Amazon's: variables, or the
    configuration, with their URLs. Raises NoCredentials for a profile that does not exist."""
    if environ.get("AWS_IGNORE_CONFIGURED_ENDPOINT_URLS", "").lower() == "true":
        return []
    named = [(name, url) for name, url in environ.items() if name.startswith(_ENDPOINT) and url]
    session = make_session(profile, environ)
    url = session._session.get_scoped_config().get("endpoint_url")
    if url and not any(name == _ENDPOINT for name, _ in named):
        named.append(("the AWS configuration", str(url)))
    return sorted(named)


def make_dummy_session() -> Any:
    """A boto3 session with made-up keys, which reads neither environment nor files."""
    session = make_session(environ={})
    session.get_credentials()
    session._session.set_credentials("SANDBOX", "sandbox")
    return session


@cache
def _get_loader() -> Any:
    """Reads the models of services once for all sessions: EC2's takes a third of a second."""
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
    known = botocore.session.Session.SESSION_VARIABLES
    variables = {
        name: (option, None, find(names) or usual.get(name, default), cast)
        for name, (option, names, default, cast) in known.items()
    }
    core = botocore.session.Session(session_vars=variables, profile=profile)
    core.register_component("data_loader", _get_loader())
    resolver = core.get_component("credential_provider")
    # What is left out asks the network, or reads old files of the process's own home.
    kept = {"env", "assume-role", "shared-credentials-file", "config-file", "custom-process", "sso"}
    resolver.providers[:] = [
        EnvProvider(environ=dict(environ)) if provider.METHOD == "env" else provider
        for provider in resolver.providers
        if provider.METHOD in kept
    ]
    return core
