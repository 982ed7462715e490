"""What only Nimbus has: names, settings, credentials, folders, dates, wildcards, TLS, memory."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import logging
import os
import re
import ssl
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from harness import (
    CANONICAL_ID,
    OTHER,
    S3ID,
    SECRET,
    NimbusHarness,
    Watched,
    make_booted,
    make_release,
)
from strict_cumulus import StrictCumulus

from pipeline.clouds.nimbus import settings as nimbus_settings
from pipeline.clouds.nimbus.cloud import Nimbus
from pipeline.clouds.nimbus.settings import CumulusUser, parse_properties, resolve_settings
from pipeline.errors import (
    CredentialsError,
    DefinitionError,
    ImageNameError,
    QuotaError,
    SiteUnreachableError,
    UploadError,
    UsageError,
)
from pipeline.model import (
    MIB,
    Appliance,
    BootedImage,
    CloudOverride,
    ScratchSource,
    Sha256,
    Site,
)

DATA = b"gzipped bytes" * 1000


def make_appliance(template: str | None = None, **changes: Any) -> Appliance:
    made = Appliance(
        name="hello",
        version="1.0",
        summary="Says hello",
        source=ScratchSource(element="phantom-debian", release="bookworm", architecture="amd64"),
        clouds={"nimbus": CloudOverride(image_name=template)} if template else {},
        definition=Path("images/hello/appliance.yaml"),
    )
    return dataclasses.replace(made, **changes)


def make_site(name: str = "hotel", /, **options: object) -> Site:
    return Site(name=name, cloud="nimbus", options=options, where="sites.yaml:3")


@pytest.fixture
def booted(tmp_path: Path, nimbus: NimbusHarness) -> BootedImage:
    return make_booted(tmp_path / "image", DATA, nimbus.make_nimbus().disk)


# ---- names


@pytest.mark.parametrize(
    ("template", "disk", "partition"),
    [
        (None, "hello-1.0-b1.gz", "hello-1.0-b1-bare.gz"),
        ("{name}.gz", "hello.gz", "hello-bare.gz"),
        ("{name}_{build}", "hello_b1.gz", "hello_b1-bare.gz"),
        ("{name}.gz.{version}", "hello.gz.1.0", "hello-bare.gz.1.0"),
        ("{name}.{layout}", "hello.mbr.gz", "hello.bare.gz"),
    ],
)
def test_image_name(template: str | None, disk: str, partition: str) -> None:
    """Sites with different layouts may share a repository, and each image has its own name."""
    appliance = make_appliance(template)
    assert Nimbus(make_site()).image_name(appliance, "b1") == disk
    assert Nimbus(make_site(root="sda1")).image_name(appliance, "b1") == partition


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"version": "1.0+deb"}, "letters, digits"),
        ({"version": "1.0~rc1"}, "letters, digits"),
        ({"name": "-hello"}, "starts with a letter"),
        ({"name": "hello/you"}, "letters, digits"),
        ({"name": "grüße"}, "letters, digits"),
        ({"version": "1..0"}, "`..`"),
        ({"version": "1.0\n"}, "letters, digits"),
        ({"version": "1" * 120}, "characters of at most 128"),
    ],
)
def test_refused_name(changes: dict[str, str], reason: str) -> None:
    with pytest.raises(ImageNameError) as caught:
        Nimbus(make_site()).image_name(make_appliance(**changes), "b1")
    assert reason in caught.value.what
    assert caught.value.where == "images/hello/appliance.yaml"
    assert "image_name" in (caught.value.todo or "")


def test_longest_name_fits() -> None:
    appliance = make_appliance("{name}.gz", name="n" * 125)
    assert len(Nimbus(make_site()).image_name(appliance, "b1")) == 128


def test_name_whose_key_is_too_long() -> None:
    site = make_site(prefix="P" * 60)
    with pytest.raises(ImageNameError, match="of at most 192"):
        Nimbus(site).image_name(make_appliance("{name}.gz", name="n" * 125), "b1")


def test_hardware_of_a_node() -> None:
    (machine,) = Nimbus(make_site()).machines
    assert (machine.board, machine.disk_bus, machine.network_card) == ("pc", "ide", "rtl8139")
    assert machine.memory == 512 * MIB
    assert [(str(edit.path), oct(edit.mode), edit.text) for edit in machine.edits] == [
        ("/root/.ssh/authorized_keys", "0o600", "{public_key}\n"),
        ("/var/nimbus-metadata-server-url", "0o644", "{metadata_url}"),
    ]


# ---- cloud.properties


def test_cloud_properties_are_read_as_java_does() -> None:
    text = (
        "# comment\n! comment\n\nvws.repository=host.example.org:8888\n"
        "vws.repository.s3id : id\n  vws.repository.s3key\tk=e:y\\\\1\n"
        "vws.repository.canonicalid=abc\\\n    def\nempty=\nwith\\ space=\\u00fc\n"
        "vws.repository.s3https = true  \r\n"
    )
    assert parse_properties(text) == {
        "vws.repository": "host.example.org:8888",
        "vws.repository.s3id": "id",
        "vws.repository.s3key": "k=e:y\\1",
        "vws.repository.canonicalid": "abcdef",
        "empty": "",
        "with space": "ü",
        "vws.repository.s3https": "true",
    }


def write_properties(path: Path, **changes: str) -> Path:
    values = {
        "": "file.example.org:8888",
        ".s3id": "file-id",
        ".s3key": "file-key",
        ".canonicalid": "file-canonical",
        ".s3bucket": "FileRepo",
        ".s3basekey": "FILEVMS",
        ".s3https": "true",
        ".s3selfsigned": "false",
        **{f".{name}" if name else "": value for name, value in changes.items()},
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(f"vws.repository{key}={value}\n" for key, value in values.items()))
    return path


def test_all_settings_from_cloud_properties(tmp_path: Path) -> None:
    path = write_properties(tmp_path / "cloud.properties")
    settings = resolve_settings(make_site(cloud_properties=str(path)), {})
    assert settings.endpoint == "https://file.example.org:8888"
    assert (settings.bucket, settings.prefix) == ("FileRepo", "FILEVMS")
    assert settings.verify is True
    assert settings.credentials.s3id == "file-id"
    assert settings.credentials.secret == "file-key"
    assert settings.owner == "file-canonical"


def test_options_outrank_cloud_properties(tmp_path: Path) -> None:
    path = write_properties(tmp_path / "cloud.properties")
    site = make_site(
        cloud_properties=str(path),
        repository="site.example.org:1",
        bucket="SiteRepo",
        prefix="SITEVMS",
        https=False,
        self_signed=False,
        canonical_id="site-canonical",
        visibility="common",
    )
    settings = resolve_settings(site, {})
    assert settings.endpoint == "http://site.example.org:1"
    assert (settings.bucket, settings.prefix) == ("SiteRepo", "SITEVMS")
    assert settings.verify is True
    assert settings.credentials.canonical_id == "site-canonical"
    assert settings.owner == "common"


def test_defaults() -> None:
    environ = {"NIMBUS_S3ID": "i", "NIMBUS_S3KEY": "k", "NIMBUS_CANONICAL_ID": "c"}
    settings = resolve_settings(make_site(repository="h:8888"), environ)
    assert (settings.bucket, settings.prefix, settings.owner) == ("Repo", "VMS", "c")
    assert (settings.endpoint, settings.verify) == ("http://h:8888", True)


def test_precedence_of_credentials(tmp_path: Path) -> None:
    """The most specific source wins; sources are never mixed."""
    own = write_properties(tmp_path / "own", s3id="own-id")
    option = write_properties(tmp_path / "option", s3id="option-id")
    write_properties(tmp_path / ".nimbus/cloud.properties", s3id="usual-id")
    environ = {
        "HOME": str(tmp_path),
        "PHANTOM_MY_SITE_2_S3ID": "env-id",
        "PHANTOM_MY_SITE_2_S3KEY": "k",
        "PHANTOM_MY_SITE_2_CANONICAL_ID": "c",
        "PHANTOM_MY_SITE_2_CLOUD_PROPERTIES": str(own),
        "NIMBUS_S3ID": "general-id",
        "NIMBUS_S3KEY": "k",
        "NIMBUS_CANONICAL_ID": "c",
    }
    seen = []
    site = make_site("my-site.2", cloud_properties=str(option))
    for without in ("none", "_S3", "_2_CLOUD", "option", "NIMBUS"):
        environ = {k: v for k, v in environ.items() if without not in k}
        if without == "_S3":
            environ |= {"NIMBUS_S3ID": "general-id", "NIMBUS_S3KEY": "k"}
        if without == "option":
            site = make_site("my-site.2")
        seen.append(resolve_settings(site, environ).credentials.s3id)
    assert seen == ["env-id", "own-id", "option-id", "general-id", "usual-id"]


def test_usual_file_of_another_site_is_not_used(tmp_path: Path) -> None:
    """Credentials go only to the server that they belong to."""
    write_properties(tmp_path / ".nimbus/cloud.properties")
    with pytest.raises(CredentialsError):
        resolve_settings(make_site(repository="other.example.org:8888"), {"HOME": str(tmp_path)})


def test_home_is_filled_in(tmp_path: Path) -> None:
    write_properties(tmp_path / "my.properties")
    site = make_site(cloud_properties="~/my.properties")
    assert resolve_settings(site, {"HOME": str(tmp_path)}).credentials.s3id == "file-id"


def test_missing_credentials_are_named() -> None:
    with pytest.raises(CredentialsError) as caught:
        resolve_settings(make_site("my-site", repository="h:1"), {})
    for name in ("PHANTOM_MY_SITE_S3ID", "PHANTOM_MY_SITE_S3KEY", "PHANTOM_MY_SITE_CANONICAL_ID"):
        assert name in (caught.value.todo or "")


def test_incomplete_credentials_are_named() -> None:
    environ = {"PHANTOM_HOTEL_S3ID": "i", "NIMBUS_S3KEY": "k", "NIMBUS_CANONICAL_ID": "c"}
    with pytest.raises(CredentialsError) as caught:
        resolve_settings(make_site(repository="h:1"), environ)
    assert "PHANTOM_HOTEL_S3KEY and PHANTOM_HOTEL_CANONICAL_ID missing" in caught.value.what


@pytest.mark.parametrize("canonical_id", ["common", "a/b", "a b", "-"])
def test_canonical_id_that_is_none(canonical_id: str) -> None:
    environ = {"NIMBUS_S3ID": "i", "NIMBUS_S3KEY": "k", "NIMBUS_CANONICAL_ID": canonical_id}
    with pytest.raises(CredentialsError, match="canonical id"):
        resolve_settings(make_site(repository="h:1"), environ)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"repository": "no-port"},
        {"repository": "h:1", "cloud_properties": "gone"},
        {"repository": "h:1", "ca_bundle": "gone"},
    ],
)
def test_site_that_lacks_something(options: dict[str, object]) -> None:
    environ = {"NIMBUS_S3ID": "i", "NIMBUS_S3KEY": "k", "NIMBUS_CANONICAL_ID": "c"}
    with pytest.raises(DefinitionError) as caught:
        resolve_settings(make_site(**options), environ)
    assert caught.value.where == "sites.yaml:3" and caught.value.todo


def test_properties_variable_that_names_nothing(tmp_path: Path) -> None:
    environ = {"PHANTOM_HOTEL_CLOUD_PROPERTIES": str(tmp_path / "gone")}
    with pytest.raises(CredentialsError, match="PHANTOM_HOTEL_CLOUD_PROPERTIES names"):
        resolve_settings(make_site(), environ)


def test_schema_takes_and_refuses() -> None:
    check = jsonschema.Draft202012Validator(dict(Nimbus.site_schema))
    good = {"repository": "h.example.org:8888", "visibility": "common", "root": "hda"}
    xen = {"root": "sda1", "kernel": "vmlinuz", "ramdisk": "initrd"}
    assert all(map(check.is_valid, (good, xen, {})))
    bad: list[dict[str, object]] = [
        {"repository": "http://h:8888"},
        {"canonical_id": "common"},
        {"visibility": "public"},
        {"root": "sda2"},
        {"certificate_sha256": "ab" * 31},
        {"certificate_sha256": "xy" * 32},
        {"s3key": "x"},
    ]
    assert not any(check.is_valid(each) for each in bad)


# ---- secrets


def test_secrets_never_show(
    nimbus: NimbusHarness, booted: BootedImage, caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    """Neither a repr nor boto3's most detailed log shows a secret."""
    caplog.set_level(logging.DEBUG)
    cloud = nimbus.make_nimbus()
    with cloud.open(tmp_path):
        cloud.check()
        cloud.upload(booted, make_release(tmp_path, "image.gz"), Watched())
        shown = repr(cloud._opened) + repr(cloud._opened.settings)
        shown += repr(cloud._opened.settings.credentials)
    path = write_properties(tmp_path / "p", s3key=SECRET)
    resolver = nimbus_settings._Resolver(make_site(cloud_properties=str(path)), nimbus.environ)
    shown += repr(list(resolver._accounts())) + repr(resolver.settings())
    assert S3ID in shown
    assert SECRET not in shown
    assert caplog.text and SECRET not in caplog.text


# ---- folders and visibility


def get_object(nimbus: NimbusHarness, key: str) -> tuple[bytes, bool] | None:
    opened = nimbus.server.store.open(key)
    if opened is None:
        return None
    with opened[1] as file:
        return file.read(), opened[0].public


def test_private_image_and_description(
    nimbus: NimbusHarness, booted: BootedImage, tmp_path: Path
) -> None:
    cloud = nimbus.make_nimbus()
    with cloud.open(tmp_path):
        made = cloud.upload(booted, make_release(tmp_path, "image.gz"), Watched())
        cloud.publish(made, make_release(tmp_path, "image.gz", summary="Says\nhello"), Watched())
    assert made.image_id == "image.gz"
    assert made.location == (
        f"cumulus://127.0.0.1:{nimbus.server.port}/Repo/VMS/{CANONICAL_ID}/image.gz"
    )
    assert get_object(nimbus, f"VMS/{CANONICAL_ID}/image.gz") == (DATA, False)
    described = get_object(nimbus, f"VMS.description/{CANONICAL_ID}/image.gz")
    assert described == (f"Says hello (sha256 {booted.image.sha256})\n".encode(), False)


def test_common_image_is_readable_by_all(
    nimbus: NimbusHarness, booted: BootedImage, tmp_path: Path
) -> None:
    cloud = nimbus.make_nimbus(visibility="common")
    with cloud.open(tmp_path):
        made = cloud.upload(booted, make_release(tmp_path, "image.gz"), Watched())
        assert get_object(nimbus, "VMS/common/image.gz") == (DATA, True)
        cloud._opened.put_text("VMS/common/image.gz", DATA, public=False)  # drops the ACL
        cloud.publish(made, make_release(tmp_path, "image.gz", summary="Says hello"), Watched())
        assert get_object(nimbus, "VMS/common/image.gz") == (DATA, True)
        described = f"Says hello (sha256 {booted.image.sha256})\n".encode()
        assert get_object(nimbus, "VMS.description/common/image.gz") == (described, True)
        assert [each.location for each in cloud.list()] == [made.location]
        cloud.retire(made)
        assert nimbus.server.store.list("") == []


def test_upload_is_one_put_with_its_length(
    nimbus: NimbusHarness, booted: BootedImage, tmp_path: Path
) -> None:
    cloud = nimbus.make_nimbus()
    with cloud.open(tmp_path):
        cloud.upload(booted, make_release(tmp_path, "image.gz"), Watched())
    puts = [each for each in nimbus.server.requests if each.method != "GET"]
    assert [(each.method, each.body_bytes) for each in puts] == [("PUT", len(DATA))]


def test_common_image_of_another_account(
    nimbus: NimbusHarness, booted: BootedImage, tmp_path: Path
) -> None:
    """We refuse before we send the bytes; Cumulus would refuse only after them."""
    environ = {
        "PHANTOM_HOTEL_S3ID": OTHER.s3id,
        "PHANTOM_HOTEL_S3KEY": OTHER.secret,
        "PHANTOM_HOTEL_CANONICAL_ID": OTHER.canonical_id,
    }
    other = nimbus.make_nimbus(environ, visibility="common")
    theirs = make_booted(tmp_path / "theirs", b"theirs", other.disk)
    with other.open(tmp_path):
        made = other.upload(theirs, make_release(tmp_path, "image.gz"), Watched())
    sent = nimbus.count_sent()
    cloud = nimbus.make_nimbus(visibility="common")
    with cloud.open(tmp_path):
        with pytest.raises(UploadError, match="belongs to another account"):
            cloud.upload(booted, make_release(tmp_path, "image.gz"), Watched())
        with pytest.raises(CredentialsError):
            cloud.retire(made)
    assert nimbus.count_sent() == sent


def test_check_sees_a_canonical_id_of_another(
    nimbus: NimbusHarness, booted: BootedImage, tmp_path: Path
) -> None:
    cloud = nimbus.make_nimbus()
    with cloud.open(tmp_path):
        cloud.upload(booted, make_release(tmp_path, "image.gz"), Watched())
    environ = {
        "PHANTOM_HOTEL_S3ID": OTHER.s3id,
        "PHANTOM_HOTEL_S3KEY": OTHER.secret,
        "PHANTOM_HOTEL_CANONICAL_ID": CANONICAL_ID,
    }
    wrong = nimbus.make_nimbus(environ)
    with wrong.open(tmp_path), pytest.raises(CredentialsError, match="belong to another account"):
        wrong.check()


def test_missing_bucket_is_a_mistake_in_the_definition(
    nimbus: NimbusHarness, tmp_path: Path
) -> None:
    cloud = nimbus.make_nimbus(bucket="Other")
    with cloud.open(tmp_path), pytest.raises(DefinitionError) as caught:
        cloud.check()
    assert caught.value.where == "sites.yaml:3" and "Other" in caught.value.what


@pytest.mark.parametrize(
    "location",
    [
        "cumulus://{host}/Repo/VMS/someone-else/image.gz",
        "cumulus://{host}/Repo/VMS/common/../x.gz",
        "cumulus://{host}/Other/VMS/common/x.gz",
        "cumulus://elsewhere:1/Repo/VMS/common/x.gz",
        "cumulus://{host}/Repo/VMS/common/",
    ],
)
def test_retire_touches_nothing_foreign(
    nimbus: NimbusHarness, booted: BootedImage, tmp_path: Path, location: str
) -> None:
    cloud = nimbus.make_nimbus()
    with cloud.open(tmp_path):
        made = cloud.upload(booted, make_release(tmp_path, "image.gz"), Watched())
        foreign = location.format(host=f"127.0.0.1:{nimbus.server.port}")
        with pytest.raises(UsageError):
            cloud.retire(dataclasses.replace(made, location=foreign))
    assert not any(each.method == "DELETE" for each in nimbus.server.requests)


# ---- where Cumulus differs from S3


def test_find_on_a_monday(nimbus: NimbusHarness, booted: BootedImage, tmp_path: Path) -> None:
    """HEAD's date of an object stored on a Monday breaks boto3, so `find` must not use HEAD."""
    monday = datetime(2025, 11, 24, 9, 30, tzinfo=UTC)
    nimbus.server.clock = monday.timestamp
    cloud = nimbus.make_nimbus()
    with cloud.open(tmp_path):
        cloud.upload(booted, make_release(tmp_path, "image.gz"), Watched())
        found = cloud.find(booted.image, make_release(tmp_path, "image.gz"))
        assert found is not None and found.published_at == "2025-11-24T09:30:00Z"
        assert cloud.list()[0].published_at == "2025-11-24T09:30:00Z"
    assert not any(each.method == "HEAD" for each in nimbus.server.requests)


def test_published_at_is_of_the_clock(nimbus: NimbusHarness, booted: BootedImage) -> None:
    noon = datetime(2025, 1, 2, 12, 0, 0, 999, tzinfo=UTC)
    cloud = Nimbus(nimbus.make_site(), environ=nimbus.environ, clock=lambda: noon)
    with cloud.open(Path()):
        made = cloud.upload(booted, make_release(Path(), "image.gz"), Watched())
    assert made.published_at == "2025-01-02T12:00:00Z"


def test_like_wildcards_are_no_matches(
    nimbus: NimbusHarness, booted: BootedImage, tmp_path: Path
) -> None:
    """The server takes `_` as a wildcard and ignores case; we compare names exactly."""
    cloud = nimbus.make_nimbus()
    with cloud.open(tmp_path):
        for name in ("axb.gz", "A_B.gz", "a_b.gz.old"):
            cloud.upload(booted, make_release(tmp_path, name), Watched())
        assert cloud.find(booted.image, make_release(tmp_path, "a_b.gz")) is None
        cloud.upload(booted, make_release(tmp_path, "a_b.gz"), Watched())
        assert cloud.find(booted.image, make_release(tmp_path, "a_b.gz")) is not None


def test_list_with_an_id_of_other_case(
    nimbus: NimbusHarness, booted: BootedImage, tmp_path: Path
) -> None:
    upper = {**nimbus.environ, "PHANTOM_HOTEL_CANONICAL_ID": CANONICAL_ID.upper()}
    cloud = nimbus.make_nimbus(upper)
    with cloud.open(tmp_path):
        cloud.upload(booted, make_release(tmp_path, "image.gz"), Watched())
    own = nimbus.make_nimbus()
    with own.open(tmp_path):
        assert own.list() == []


@pytest.mark.parametrize("fault", ["none", "refused", "wrong bytes"])
def test_a_copy_at_the_server(
    nimbus: NimbusHarness, booted: BootedImage, tmp_path: Path, fault: str
) -> None:
    """Where the server does not copy, or copies something else, the image is sent."""
    cloud = nimbus.make_nimbus(visibility="common")
    with cloud.open(tmp_path):
        cloud.upload(booted, make_release(tmp_path, "one.gz"), Watched())
        sent = nimbus.count_sent()
        nimbus.server.refuse_copies = fault == "refused"
        nimbus.server.damage_copies = fault == "wrong bytes"
        made = cloud.upload(booted, make_release(tmp_path, "two.gz"), Watched())
        cloud.publish(made, make_release(tmp_path, "two.gz"), Watched())
    assert get_object(nimbus, "VMS/common/two.gz") == (DATA, True)
    copied = nimbus.count_sent() < sent + len(DATA)
    assert copied is (fault == "none")


def test_a_copy_beyond_the_quota(
    nimbus: NimbusHarness, booted: BootedImage, tmp_path: Path
) -> None:
    cloud = nimbus.make_nimbus()
    with cloud.open(tmp_path):
        cloud.upload(booted, make_release(tmp_path, "one.gz"), Watched())
        sent = nimbus.count_sent()
        nimbus.set_quota(len(DATA))
        with pytest.raises(QuotaError):
            cloud.upload(booted, make_release(tmp_path, "two.gz"), Watched())
    assert nimbus.count_sent() == sent


def test_another_accounts_image_is_not_copied(
    nimbus: NimbusHarness, booted: BootedImage, tmp_path: Path
) -> None:
    environ = {
        "PHANTOM_HOTEL_S3ID": OTHER.s3id,
        "PHANTOM_HOTEL_S3KEY": OTHER.secret,
        "PHANTOM_HOTEL_CANONICAL_ID": OTHER.canonical_id,
    }
    other = nimbus.make_nimbus(environ, visibility="common")
    with other.open(tmp_path):
        other.upload(booted, make_release(tmp_path, "theirs.gz"), Watched())
    sent = nimbus.count_sent()
    cloud = nimbus.make_nimbus(visibility="common")
    with cloud.open(tmp_path):
        cloud.upload(booted, make_release(tmp_path, "ours.gz"), Watched())
    assert nimbus.count_sent() == sent + len(DATA)


def test_same_size_and_other_bytes_are_not_the_same(
    nimbus: NimbusHarness, booted: BootedImage, tmp_path: Path
) -> None:
    cloud = nimbus.make_nimbus()
    with cloud.open(tmp_path):
        cloud.upload(booted, make_release(tmp_path, "image.gz"), Watched())
        other = dataclasses.replace(booted.image, md5="0" * 32, sha256=Sha256("0" * 64))
        assert cloud.find(other, make_release(tmp_path, "image.gz")) is None


def test_answer_that_is_not_of_a_cumulus(tmp_path: Path) -> None:
    """If some other web server answers, the message says so, instead of a parser's error."""
    import http.server
    import threading

    class Page(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.end_headers()
            self.wfile.write(b"<html><p>It works!")

        def log_message(self, *_: object) -> None: ...

    with http.server.HTTPServer(("127.0.0.1", 0), Page) as server:
        threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
        environ = {"NIMBUS_S3ID": "i", "NIMBUS_S3KEY": "k", "NIMBUS_CANONICAL_ID": "c"}
        site = make_site(repository=f"127.0.0.1:{server.server_port}")
        cloud = Nimbus(site, environ=environ, pause=lambda _: None)
        with cloud.open(tmp_path), pytest.raises(SiteUnreachableError, match="as a Cumulus"):
            cloud.check()
        server.shutdown()


def test_verbs_need_open(booted: BootedImage) -> None:
    with pytest.raises(RuntimeError, match="open comes first"):
        Nimbus(make_site()).check()


def test_surroundings_of_aws_do_not_count(
    nimbus: NimbusHarness, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """AWS profiles, endpoints and tokens are ignored, and the sandbox ignores a proxy."""
    monkeypatch.setenv("AWS_PROFILE", "no-such-profile")
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:1")
    monkeypatch.setenv("AWS_SESSION_TOKEN", "token")
    cloud = nimbus.make_nimbus()
    with cloud.open(tmp_path):
        cloud.check()
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:1")
    sandbox = nimbus.make_sandbox_cloud()
    with sandbox.open(tmp_path / "sandbox"):
        sandbox.check()


# ---- TLS


@pytest.fixture(scope="session")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("tls")
    cert, key = folder / "cert.pem", folder / "key.pem"
    command = "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 2"
    subprocess.run(
        [
            *command.split(),
            *("-subj", "/CN=localhost", "-addext", "subjectAltName=IP:127.0.0.1"),
            *("-out", str(cert), "-keyout", str(key)),
        ],
        check=True,
        capture_output=True,
    )
    return cert, key


@pytest.mark.parametrize(
    ("how", "works"),
    [
        ("", False),
        ("self_signed", True),
        ("ca_bundle", True),
        ("pinned", True),
        ("another pinned", False),
        ("properties", False),
        ("http", False),
    ],
)
def test_tls(certificate: tuple[Path, Path], tmp_path: Path, how: str, works: bool) -> None:
    user = CumulusUser(s3id=S3ID, secret=SECRET, canonical_id=CANONICAL_ID)
    environ = {"NIMBUS_S3ID": S3ID, "NIMBUS_S3KEY": SECRET, "NIMBUS_CANONICAL_ID": CANONICAL_ID}
    with StrictCumulus(tmp_path / "service", [user], tls=certificate) as server:
        options: dict[str, object] = {
            "repository": f"127.0.0.1:{server.port}",
            "https": how != "http",
        }
        if how == "self_signed":
            options["self_signed"] = True
        if how == "ca_bundle":
            options["ca_bundle"] = str(certificate[0])
        if how.endswith("pinned"):
            der = ssl.PEM_cert_to_DER_cert(certificate[0].read_text())
            digest = hashlib.sha256(der if how == "pinned" else b"another").hexdigest().upper()
            options["certificate_sha256"] = ":".join(re.findall("..", digest))
        if how == "properties":
            properties = {"": f"127.0.0.1:{server.port}", "s3selfsigned": "true"}
            path = write_properties(tmp_path / "cloud.properties", **properties)
            options["cloud_properties"] = str(path)
        cloud = Nimbus(make_site(**options), environ=environ, pause=lambda _: None)
        with cloud.open(tmp_path):
            if works:
                cloud.check()
            else:
                with pytest.raises(SiteUnreachableError) as caught:
                    cloud.check()
                told = str(caught.value)
                assert "certificate" in told
                assert ("name it in sites.yaml with `ca_bundle`" in told) is (how != "http")


# ---- what weakens a site


SELF_SIGNED = {"s3selfsigned": "true"}
PIN = "ab" * 32
NO_TLS = "requests and images go without TLS ({}): others can read and change them"
UNCHECKED = (
    "the repository's certificate is not checked (`self_signed: true`): whoever sits in between "
    "can read and change images; name it with `certificate_sha256`"
)
IGNORED = (
    "vws.repository.s3selfsigned in FILE does not count, and the repository's certificate is "
    "checked: if it is self-signed, name it with `certificate_sha256` or `ca_bundle` of the site "
    "in sites.yaml"
)


@pytest.mark.parametrize(
    ("properties", "options", "verify", "risks"),
    [
        ({}, {}, True, []),
        (SELF_SIGNED, {}, True, [IGNORED]),
        (SELF_SIGNED, {"self_signed": False}, True, [IGNORED]),
        (SELF_SIGNED, {"self_signed": True}, False, [UNCHECKED]),
        ({}, {"self_signed": True}, False, [UNCHECKED]),
        (SELF_SIGNED, {"certificate_sha256": PIN}, False, []),
        ({"s3https": "false"}, {}, True, [NO_TLS.format("vws.repository.s3https=false in FILE")]),
        ({"s3https": ""}, {}, True, [NO_TLS.format("nothing says `https: true`")]),
        ({}, {"https": False}, True, [NO_TLS.format("`https: false`")]),
        ({"s3https": "false"}, {"https": True}, True, []),
    ],
)
def test_only_sites_yaml_turns_a_check_off(
    tmp_path: Path,
    properties: dict[str, str],
    options: dict[str, object],
    verify: bool,
    risks: list[str],
) -> None:
    path = write_properties(tmp_path / "p", **{"s3selfsigned": "false", **properties})
    site = make_site(cloud_properties=str(path), **options)
    assert resolve_settings(site, {}).verify is verify
    told = Nimbus(site, environ={}).find_risks()
    assert [risk.replace(str(path), "FILE") for risk in told] == risks


def test_the_file_of_the_cloud_client_turns_nothing_off(tmp_path: Path) -> None:
    path = write_properties(tmp_path / ".nimbus/cloud.properties", **SELF_SIGNED)
    site, environ = make_site(), {"HOME": str(tmp_path)}
    assert resolve_settings(site, environ).verify is True
    (told,) = Nimbus(site, environ=environ).find_risks()
    assert told.replace(str(path), "FILE") == IGNORED


# ---- memory

_UPLOAD_OF_300_MB = """
import hashlib, json, re, sys
from pathlib import Path
from pipeline.clouds.nimbus.sandbox_site import NimbusSandbox
from pipeline.model import *

def peak():
    # Of this program alone: ru_maxrss starts from what the process that started it took.
    return int(re.search(r"VmHWM:\\s+([0-9]+) kB", Path("/proc/self/status").read_text())[1])

folder, size = Path(sys.argv[1]), 300 * MIB
file, md5 = folder / "sparse", hashlib.md5()
with file.open("wb") as out:
    out.truncate(size)
for _ in range(300):
    md5.update(bytes(MIB))
disk = Disk(layout="mbr", format="raw", compression="gzip")
image = Image(site="s", cloud="nimbus", file=file, disk=disk, bytes=size, sha256=Sha256(""),
              md5=md5.hexdigest(), disk_bytes=size, disk_sha256=Sha256(""))
booted = BootedImage(image=image, reports=(BootReport(machine="bios", passed=True, facts={}),))
cloud = NimbusSandbox(Site(name="nimbus-sandbox", cloud="nimbus", where="built in", sandbox=True))
with cloud.open(folder / "sandbox"):
    cloud.check()
    before = peak()
    release = Release(appliance="big", version="1", build="b", name="sparse.gz", summary="Big",
                      folder=folder)
    made = cloud.upload(booted, release, NoProgress())
    grown = peak() - before
    cloud.retire(made)
print(json.dumps({"grown": grown, "peak": before + grown}))
"""


def test_memory_does_not_grow_with_the_image(tmp_path: Path) -> None:
    """Client and sandbox server pass 300 MB in one process, which must stay below 200 MB."""
    root = Path(__file__).parents[2]
    done = subprocess.run(
        [sys.executable, "-c", _UPLOAD_OF_300_MB, str(tmp_path)],
        env={**os.environ, "PYTHONPATH": str(root)},
        capture_output=True,
        text=True,
        check=True,
    )
    kib = json.loads(done.stdout)
    assert kib["grown"] < 8 * 1024
    assert kib["peak"] < 150 * 1024
