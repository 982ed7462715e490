"""A user's folder with manifests and `sites.yaml`, and Phantoms that misbehave, for tests of what
talks to Phantom through the command line."""

from __future__ import annotations

import http.server
import json
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
from manifests import check_manifest
from phantom_kit import USER

from pipeline.build.manifest import make_manifest
from pipeline.cli import main
from pipeline.model import (
    Appliance,
    BootReport,
    Disk,
    Image,
    PhantomPolicy,
    Publication,
    ScratchSource,
    Sha256,
    SitePolicy,
)

BUILD = "0123456789ab"
DIGEST = Sha256("0" * 64)
HOTEL = Publication(
    site="hotel",
    cloud="nimbus",
    image_id="web-1.gz",
    location="cumulus://hotel/web-1.gz",
    sha256=DIGEST,
    published_at="2026-01-01T00:00:00Z",
    sandbox=False,
)
SIERRA = replace(HOTEL, site="sierra")
EAST = replace(HOTEL, site="ec2-east", cloud="ec2", region="us-east-1", image_id="ami-1")
SANDBOX = replace(HOTEL, site="nimbus-sandbox", sandbox=True)
SCRIPT = "#!/bin/sh\necho hello\n"
_FACTS: dict[str, Any] = {
    "accelerator": "tcg",
    "release": "12",
    "kernel": "6.1.0",
    "firmware": "bios",
    "addresses": ["10.0.2.15/24"],
    "failed_units": [],
    "root_bytes": 1,
    "disk_driver": "ata_piix",
    "network_driver": "e1000",
    "ssh_host_keys": [],
    "user_data_by": "fetcher",
    "fetcher_tries": 1,
    "fetcher_protocol": "nimbus",
    "boot_seconds": 9.0,
    "user_data_status": None,
    "check_status": None,
    "user_data": None,
}


@dataclass(frozen=True, kw_only=True)
class Ran:
    """A command that has ended."""

    status: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)


@dataclass
class Desk:
    """A folder in which a user works."""

    folder: Path
    capsys: pytest.CaptureFixture[str]

    def run(self, *words: str) -> Ran:
        """What the command line prints, and its exit status."""
        self.capsys.readouterr()
        status = main(words)
        out, err = self.capsys.readouterr()
        return Ran(status=status, out=out, err=err)

    def publish(
        self,
        *publications: Publication,
        script: str | None = SCRIPT,
        limits: dict[str, int] | None = None,
        build: str = BUILD,
    ) -> None:
        """Writes the manifest of the appliance `web`, published there, with these maxima."""
        user_data = None
        if script is not None:
            user_data = self.folder / "user-data.sh"
            user_data.write_bytes(script.encode())
        policy = PhantomPolicy(
            user_data=user_data,
            sites={site: SitePolicy(max_vms=most) for site, most in (limits or {}).items()},
        )
        made = make(publications, policy, build)
        check_manifest(made)
        path = self.folder / f"build/web/{build}/manifest.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(made))
        latest = self.folder / "build/web/latest"
        latest.unlink(missing_ok=True)
        latest.symlink_to(build)

    def know(self, url: str, more: str = "", *, name: str = "future") -> None:
        """Describes a Phantom in `sites.yaml`."""
        (self.folder / "sites.yaml").write_text(
            "sites: {hotel: {cloud: nimbus, repository: 'cumulus.example.org:8888'}}\n"
            f"phantoms: {{{name}: {{url: '{url}'{more}}}}}\n"
        )


def make(
    publications: Sequence[Publication], policy: PhantomPolicy, build: str = BUILD
) -> dict[str, Any]:
    """A manifest of the appliance `web`."""
    appliance = Appliance(
        name="web",
        version="1.0",
        summary="An appliance",
        source=ScratchSource(element="debian", release="bookworm", architecture="amd64"),
        definition=Path("images/web/appliance.yaml"),
        phantom=policy,
    )
    sites = [each.site for each in publications]
    made = make_manifest(
        appliance=appliance,
        build=build,
        order=sites,
        inputs={
            "definition": {"digest": DIGEST, "commit": None, "dirty": None},
            "source": {"scratch": {"element": "debian"}},
            "packages": [],
            "elements": [],
        },
        root_sha256=DIGEST,
        images=[_make_image(each.site) for each in publications],
        publications=publications,
        launch={site: {"instance_type": "m1.small", "common": False} for site in sites},
        templates=[
            {
                "site": each.site,
                "region": each.region,
                "data": {"ImageId": each.image_id, "InstanceType": "t3.micro"},
            }
            for each in publications
            if each.cloud == "ec2"
        ],
    )
    told: dict[str, Any] = json.loads(json.dumps(made))
    return told


def _make_image(site: str) -> Any:
    from pipeline.build.manifest import ManifestImage

    image = Image(
        site=site,
        cloud="nimbus",
        file=Path("disk.raw"),
        disk=Disk(layout="mbr", format="raw"),
        bytes=1,
        sha256=DIGEST,
        md5=None,
        disk_bytes=1,
        disk_sha256=DIGEST,
    )
    report = BootReport(machine="bios", passed=True, facts=_FACTS)
    return ManifestImage(file="disk.raw", image=image, root_sha256=DIGEST, reports=[report])


@pytest.fixture
def desk(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> Desk:
    """A folder with credentials of Phantom `future` in the environment, and no manifest yet."""
    folder = tmp_path / "desk"
    (folder / "home").mkdir(parents=True)
    monkeypatch.chdir(folder)
    for name, value in {
        "HOME": str(folder / "home"),
        "PHANTOM_FUTURE_ACCESS_KEY": USER.access_key,
        "PHANTOM_FUTURE_SECRET_KEY": USER.secret_key,
        "PHANTOM_FUTURE_TOKEN": USER.token,
        "no_proxy": "127.0.0.1",
    }.items():
        monkeypatch.setenv(name, value)
    return Desk(folder, capsys)


Respond = Callable[[http.server.BaseHTTPRequestHandler, bytes], None]
"""Answers a request with this body, or does not."""


@dataclass
class Odd:
    """A server that answers as a test wants it."""

    url: str
    requests: list[str] = field(default_factory=list)
    """Method and path of each request."""


@contextmanager
def odd_server(respond: Respond) -> Iterator[Odd]:
    """A real HTTP server with these answers."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def answer(self) -> None:
            odd.requests.append(f"{self.command} {self.path}")
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            respond(self, body)

        do_GET = do_POST = do_PUT = do_DELETE = answer

        def log_message(self, *_: object) -> None: ...

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    odd = Odd(f"http://127.0.0.1:{server.server_address[1]}")
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield odd
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def page(status: int, reason: str, text: str, kind: str = "text/html") -> Respond:
    """Answers every request with this."""

    def respond(handler: http.server.BaseHTTPRequestHandler, _: bytes) -> None:
        handler.send_response(status, reason)
        handler.send_header("Content-Type", kind)
        handler.send_header("Content-Length", str(len(text.encode())))
        handler.end_headers()
        handler.wfile.write(text.encode())

    return respond
