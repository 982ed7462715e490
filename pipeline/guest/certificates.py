"""Certificates that programs trust while the image is made: the image's own, and a definition's."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

from pipeline.guest.appliance import Guest

FOLDER = "/run/build-certificates"
BUNDLE = f"{FOLDER}/ca.crt"
"""Where programs find them, on a file system in memory."""
_APT = f"{FOLDER}/apt.conf"

VARIABLES: Mapping[str, str] = {
    "APT_CONFIG": _APT,
    **dict.fromkeys(
        (
            "AWS_CA_BUNDLE",
            "CARGO_HTTP_CAINFO",
            "CURL_CA_BUNDLE",
            "GIT_SSL_CAINFO",
            "NODE_EXTRA_CA_CERTS",
            "PIP_CERT",
            "REQUESTS_CA_BUNDLE",
            "SSL_CERT_FILE",
        ),
        BUNDLE,
    ),
}
"""What tells programs of the bundle: OpenSSL's, and those of programs that have their own."""
APT_SETTINGS = f'Acquire::https::CAInfo "{BUNDLE}";\n'
_OWN = (
    "/etc/ssl/certs/ca-certificates.crt",  # Debian, Alpine, Arch
    "/etc/pki/tls/certs/ca-bundle.crt",  # Red Hat
    "/etc/ssl/ca-bundle.pem",  # SUSE
)
_HANDED = "/tmp/build-certificates"  # noqa: S108  # of libguestfs's appliance, and not of the image

SHOW = f"""
if test -f {_HANDED}; then
    mkdir -p /sysroot{FOLDER} && {{
        chroot /sysroot /bin/sh -c 'for own in {" ".join(_OWN)}; do
            test -f "$own" && cat "$own" && break
        done' 2>/dev/null
        cat {_HANDED}
    }} >/sysroot{BUNDLE} &&
        printf %s {shlex.quote(APT_SETTINGS)} >/sysroot{_APT}
fi
"""
"""Part of a shell script of libguestfs's appliance, in the mount namespace of one program."""


@contextmanager
def trusting(guest: Guest, texts: Sequence[str]) -> Iterator[Mapping[str, str]]:
    """Lets programs of the image trust certificates in PEM form while the block lasts; yields the
    environment that tells them so. The image's disk never has them."""
    if not texts:
        yield {}
        return
    for text in texts:
        guest.shell(f"printf '%s\\n' {shlex.quote(text)} >>{_HANDED}")
    try:
        yield VARIABLES
    finally:
        if not guest.ended:
            guest.shell(f"rm -f {_HANDED}")
