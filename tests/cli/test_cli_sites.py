"""Publishing: what a site refuses, what breaks on the way, and what is sent once only."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from cli_runs import Hello, Project, assert_clean, find_running
from cli_sites import CANONICAL_ID, S3ID, SECRET, CumulusSite, configure, find_dead_port


@pytest.fixture
def site(shared: Project, tmp_path: Path) -> Iterator[CumulusSite]:
    with CumulusSite(tmp_path / "cumulus") as made:
        made.configure(shared)
        yield made


def masked(project: Project, site: CumulusSite, text: str) -> str:
    return project.masked(text).replace(str(site.server.port), "PORT")


# ---- found before anything is built


def test_no_credentials(project: Project) -> None:
    configure(project, "127.0.0.1:8888")
    done = project.run("image")
    assert done.status == 30
    assert done.error == (
        "error: site hotel: no Nimbus credentials\n"
        "  do: set PHANTOM_HOTEL_S3ID, PHANTOM_HOTEL_S3KEY and PHANTOM_HOTEL_CANONICAL_ID (for "
        "every site at once: NIMBUS_S3ID, NIMBUS_S3KEY, NIMBUS_CANONICAL_ID), or let "
        "PHANTOM_HOTEL_CLOUD_PROPERTIES name the site's cloud.properties\n"
    )
    assert project.artifacts() == []
    assert_clean(project)


def test_wrong_credentials(project: Project, tmp_path: Path) -> None:
    with CumulusSite(tmp_path / "cumulus") as site:
        site.configure(project)
        done = project.run("image", **{**site.environ, "PHANTOM_HOTEL_S3KEY": "wr0ng-secret"})
        assert done.status == 30
        assert masked(project, site, done.error) == (
            "error: site hotel: 127.0.0.1:PORT refuses the credentials of the environment, or the "
            "account has no right to do this (it answers the same to both)\n"
            "  do: compare access key id, secret and canonical id with those of the account; if "
            "they are right, ask the site for the right to write to its bucket Repo\n"
        )
        assert site.count_sent() == 0
    assert "wr0ng-secret" not in done.err + done.out
    assert project.artifacts() == []
    assert_clean(project)


def test_site_that_does_not_answer(project: Project) -> None:
    port = find_dead_port()
    configure(project, f"127.0.0.1:{port}", f", canonical_id: {CANONICAL_ID}")
    done = project.run("image", NIMBUS_S3ID=S3ID, NIMBUS_S3KEY=SECRET, no_proxy="127.0.0.1")
    assert done.status == 31
    assert done.error.replace(str(port), "PORT") == (
        "error: site hotel: http://127.0.0.1:PORT does not answer: Connection refused\n"
        "  do: compare `repository`, `https` and the certificate options of the site with the "
        "account's cloud.properties, and look whether a firewall or proxy is in between\n"
    )
    assert project.artifacts() == []
    assert_clean(project)


def test_broken_sites(project: Project) -> None:
    project.write("sites.yaml", "sites:\n  hotel: {clod: nimbus}\n")
    done = project.run("image")
    assert done.status == 10
    assert done.error == (
        "error: sites.yaml:2:11: unknown key 'clod' in 'sites.hotel'; did you mean 'cloud'?\n"
        "  do: correct it; sites.example.yaml shows what the file can say\n"
    )


# ---- uploads


def test_nothing_is_sent_twice(shared: Project, site: CumulusSite, hello: Hello) -> None:
    first = shared.succeed("image", "--site", "hotel", "--json", **site.environ)
    (name,) = site.images()
    image = hello.manifest["images"][0]
    assert hashlib.sha256(site.read(name)).hexdigest() == image["sha256"]
    assert [(status, size) for _, status, size in site.puts()] == [(200, image["bytes"])]
    manifest = (shared.build / "hello-phantom" / "latest" / "manifest.json").read_bytes()
    sent = site.count_sent()

    again = shared.succeed("image", "--site", "hotel", "--json", **site.environ)
    assert all(stage["reused"] for stage in again.json["stages"])
    assert site.count_sent() == sent
    assert (shared.build / "hello-phantom" / "latest" / "manifest.json").read_bytes() == manifest
    assert {**first.json, "stages": 0} == {**again.json, "stages": 0}

    published = json.loads(manifest)["publications"]
    assert [each["location"] for each in published] == [
        f"cumulus://{site.host}/Repo/VMS/{CANONICAL_ID}/{name}"
    ]
    assert published[0]["sandbox"] is False

    listed = shared.succeed("list", "--site", "hotel", "--json", **site.environ).json
    assert [each["image_id"] for each in listed] == [name]
    retired = shared.succeed("retire", "--site", "hotel", **site.environ)
    assert retired.out == f"retired {name} at hotel\n"
    assert site.images() == {}
    assert shared.manifest("hello-phantom")["publications"] == []
    assert_clean(shared)


def test_upload_that_is_cut_once(shared: Project, site: CumulusSite) -> None:
    site.faults.cut_puts, site.faults.cut_after = 1, 50_000_000
    done = shared.succeed("image", "--site", "hotel", **site.environ)
    assert "the upload was cut" in done.err
    assert [status for _, status, _ in site.puts()] == [0, 200]
    assert len(site.images()) == 1
    assert_clean(shared)


def test_upload_that_is_always_cut(shared: Project, site: CumulusSite, hello: Hello) -> None:
    site.faults.cut_puts, site.faults.cut_after = 99, 50_000_000
    done = shared.run("image", "--site", "hotel", **site.environ)
    assert done.status == 33
    # What the kernel says of a broken connection depends on who notices first.
    told = re.sub("(cut 3 times: ).*", r"\1REASON", masked(shared, site, done.error))
    assert told == (
        "error: site hotel: the upload of hello-phantom-1.0-HEX.gz was cut 3 times: REASON\n"
        "  do: run the same command again: the site kept what it had under this name, and nothing "
        "of the new image\n"
    )
    assert site.images() == {}
    assert shared.manifest("hello-phantom")["publications"] == []
    assert_clean(shared)

    site.faults.cut_puts = 0
    done = shared.succeed("image", "--site", "hotel", "--json", **site.environ)
    assert all(stage["reused"] for stage in done.json["stages"])
    assert list(site.images().values()) == [hello.manifest["images"][0]["bytes"]]
    assert len(shared.manifest("hello-phantom")["publications"]) == 1
    assert_clean(shared)


def test_upload_that_is_damaged(shared: Project, site: CumulusSite) -> None:
    site.faults.damage_puts = 1
    done = shared.run("image", "--site", "hotel", **site.environ)
    assert done.status == 33
    assert masked(shared, site, done.error) == (
        "error: site hotel: hello-phantom-1.0-HEX.gz came to hotel with md5 HEX in place of HEX; "
        "what it stored was removed\n"
        "  do: run the same command again; if it happens again, look for a proxy in between, and "
        "whether the file changed while it was sent\n"
    )
    assert site.images() == {}
    shared.succeed("publish", "--site", "hotel", **site.environ)
    assert len(site.images()) == 1


# ---- secrets


def test_secrets_are_told_nowhere(shared: Project, site: CumulusSite) -> None:
    running = shared.start("image", "-v", "--site", "hotel", **site.environ)
    told = set()
    while running.process.poll() is None:
        told.update(find_running(shared.folder))
    done = running.end()
    assert done.status == 0, done.err
    texts = [done.out, done.err, *told]
    assert not any(SECRET in text for text in texts)
    for folder in (shared.folder, shared.store / "logs", shared.store / "resolutions"):
        for path in folder.rglob("*"):
            if path.is_file() and not path.name.endswith(".gz"):
                assert SECRET.encode() not in path.read_bytes(), path


# ---- every output is for people and for programs


def test_no_colours_in_pipes(shared: Project) -> None:
    for environ in ({}, {"NO_COLOR": "1"}, {"TERM": "xterm-256color", "FORCE_COLOR": "1"}):
        done = shared.succeed("image", **environ)
        assert "\x1b" not in done.out + done.err
