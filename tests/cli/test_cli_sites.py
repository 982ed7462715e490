"""Publishing: what a site refuses, what breaks on the way, and that nothing is sent twice."""

from __future__ import annotations

import hashlib
import json
import os
import pty
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from cli_runs import Hello, Project, assert_clean, find_running
from cli_sites import CANONICAL_ID, S3ID, SECRET, CumulusSite, configure, find_dead_port

from pipeline.model import format_size


@pytest.fixture
def site(shared: Project, tmp_path: Path) -> Iterator[CumulusSite]:
    with CumulusSite(tmp_path / "cumulus") as made:
        made.configure(shared)
        yield made


def masked(project: Project, site: CumulusSite, text: str) -> str:
    return project.masked(text).replace(str(site.server.port), "PORT")


# ---- errors before anything is built


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
    refused = shared.run("retire", "--site", "hotel", **site.environ)
    assert refused.status == 24
    assert masked(shared, site, refused.error) == (
        "error: this removes the images of hello-phantom 1.0, build HEX, for good, and nobody is "
        "here to be asked\n"
        "  | hello-phantom-1.0-HEX.gz at hotel: cumulus://127.0.0.1:PORT/Repo/VMS/"
        "6f1c2d3e-0000-4000-8000-HEX/hello-phantom-1.0-HEX.gz\n"
        "  do: give --yes as well\n"
    )
    assert list(site.images()) == [name]
    retired = shared.succeed("retire", "--yes", "--site", "hotel", **site.environ)
    assert retired.out == f"retired {name} at hotel\n"
    assert site.images() == {}
    assert shared.manifest("hello-phantom")["publications"] == []
    assert_clean(shared)


def test_upload_that_is_cut_once(shared: Project, site: CumulusSite) -> None:
    site.server.cut_puts, site.server.cut_after = 1, 50_000_000
    done = shared.succeed("image", "--site", "hotel", **site.environ)
    assert "the upload was cut" in done.err
    assert [status for _, status, _ in site.puts()] == [0, 200]
    assert len(site.images()) == 1
    assert_clean(shared)


def test_upload_that_is_always_cut(shared: Project, site: CumulusSite, hello: Hello) -> None:
    site.server.cut_puts, site.server.cut_after = 99, 50_000_000
    done = shared.run("image", "--site", "hotel", **site.environ)
    assert done.status == 33
    # The kernel's words for a broken connection depend on which side notices it first.
    told = re.sub("(cut 3 times: ).*", r"\1REASON", masked(shared, site, done.error))
    assert told == (
        "error: site hotel: the upload of hello-phantom-1.0-HEX.gz was cut 3 times: REASON\n"
        "  do: run the same command again: the site kept what it had under this name, and nothing "
        "of the new image\n"
    )
    assert site.images() == {}
    assert shared.manifest("hello-phantom")["publications"] == []
    assert_clean(shared)

    site.server.cut_puts = 0
    done = shared.succeed("image", "--site", "hotel", "--json", **site.environ)
    assert all(stage["reused"] for stage in done.json["stages"])
    assert list(site.images().values()) == [hello.manifest["images"][0]["bytes"]]
    assert len(shared.manifest("hello-phantom")["publications"]) == 1
    assert_clean(shared)


def test_upload_that_is_damaged(shared: Project, site: CumulusSite) -> None:
    site.server.damage_puts = 1
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


@pytest.mark.parametrize("answer", ["", "y"])
def test_retire_asks_at_a_terminal(shared: Project, answer: str) -> None:
    name = shared.succeed("image", "--json").json["publications"][0]["image_id"]
    main, side = pty.openpty()
    os.write(main, f"{answer}\n".encode())
    ended = subprocess.run(
        shared.command("retire"),
        cwd=shared.folder,
        env=shared.env(),
        stdin=side,
        capture_output=True,
        text=True,
        check=True,
    )
    os.close(main)
    os.close(side)
    build = shared.manifest("hello-phantom")["appliance"]["build"]
    asked = (
        f"hello-phantom 1.0, build {build}; this removes for good:\n  {name} at nimbus-sandbox: "
        f"cumulus://sandbox/Repo/VMS/00000000-0000-4000-8000-000000000000/{name}\nremove? [y/N] "
    )
    done = f"retired {name} at nimbus-sandbox\n" if answer == "y" else "nothing was removed\n"
    assert ended.stdout == asked + done
    published = shared.manifest("hello-phantom")["publications"]
    assert len(published) == (0 if answer == "y" else 1)


def test_an_image_that_another_site_has_stays(shared: Project, site: CumulusSite) -> None:
    """Two sites of one repository have one object."""
    host = site.host
    shared.write(
        "sites.yaml",
        f"sites:\n  hotel: {{cloud: nimbus, repository: '{host}'}}\n"
        f"  annex: {{cloud: nimbus, repository: '{host}'}}\n",
    )
    account = {"NIMBUS_S3ID": S3ID, "NIMBUS_S3KEY": SECRET, "NIMBUS_CANONICAL_ID": CANONICAL_ID}
    environ = {**site.environ, **account}
    shared.define("variant")
    shared.succeed("image", "variant", "--site", "hotel,annex", **environ)
    (name,) = site.images()
    first = shared.succeed("retire", "variant", "--yes", "--site", "hotel", **environ)
    assert f"{name} at hotel stays: site annex has it too\n" in first.err
    assert list(site.images()) == [name]
    shared.succeed("retire", "variant", "--yes", "--site", "annex", **environ)
    assert site.images() == {}


# ---- what the site has already


def test_a_new_version_is_copied_at_the_site(shared: Project, site: CumulusSite) -> None:
    """Nothing is sent again, and each build can be retired by itself."""
    shared.define("variant")
    shared.succeed("image", "variant", **site.environ)
    sent = site.count_sent()
    (first,) = site.images()
    shared.define("variant", "labels: {os: other}\n")  # another build with the same image
    (planned,) = shared.succeed("plan", "variant", "--json", **site.environ).json["publications"]
    assert (planned["action"], planned["bytes"]) == ("copy", 0)
    assert planned["detail"] == f"the site copies {first}, which has the same bytes"
    done = shared.succeed("image", "variant", "--json", **site.environ)
    second = done.json["publications"][0]["image_id"]
    assert site.count_sent() - sent < 1000  # its description
    assert sorted(site.images()) == sorted([first, second]) and first != second
    assert site.read(first) == site.read(second)
    shared.succeed("retire", "variant", "--yes", **site.environ)
    assert list(site.images()) == [first]


def test_plan_shows_what_would_be_sent(shared: Project, site: CumulusSite, hello: Hello) -> None:
    (image,) = hello.manifest["images"]
    name, size = image["file"], image["bytes"]

    def plan() -> dict[str, object]:
        before = site.count_sent()
        told = shared.succeed("plan", "--site", "hotel", "--json", **site.environ).json
        assert site.count_sent() == before
        (publication,) = told["publications"]
        assert isinstance(publication, dict)
        return publication

    assert plan() == {
        "site": "hotel",
        "cloud": "nimbus",
        "sandbox": False,
        "image_name": name,
        "file": name,
        "action": "send",
        "bytes": size,
        "detail": "not there yet",
        "credentials": "the environment",
    }
    shown = shared.succeed("plan", "--site", "hotel", **site.environ).out
    assert f"publish hotel  {name}  send {format_size(size)}: not there yet\n" in shown
    assert "credentials: the environment\n" in shown
    assert "warning: site hotel: requests and images go without TLS" in shown


def test_plan_needs_no_network_and_no_credentials(shared: Project) -> None:
    configure(shared, f"127.0.0.1:{find_dead_port()}", f", canonical_id: {CANONICAL_ID}")
    (found,) = shared.succeed("plan", "--site", "hotel", "--json").json["publications"]
    assert (found["action"], found["credentials"]) == ("unknown", None)
    assert found["detail"] == "no Nimbus credentials"
    environ = {"NIMBUS_S3ID": S3ID, "NIMBUS_S3KEY": SECRET, "no_proxy": "127.0.0.1"}
    done = shared.succeed("plan", "--site", "hotel", "--json", **environ)
    (found,) = done.json["publications"]
    assert (found["action"], found["credentials"]) == ("unknown", "the environment")
    assert "does not answer: Connection refused" in found["detail"]


# ---- several clouds


SEVERAL = """
sites:
  hotel: {cloud: nimbus, sandbox: true}
  xen: {cloud: nimbus, sandbox: true, root: sda1}
  amazon: {cloud: ec2, sandbox: true}
"""


@pytest.mark.parametrize("command", ["image", "publish"])
def test_nobody_publishes_everywhere_by_leaving_a_word_out(project: Project, command: str) -> None:
    project.write("sites.yaml", SEVERAL)
    done = project.run(command)
    assert done.status == 24
    assert done.error == (
        "error: sites.yaml has sites of several clouds (hotel, xen, amazon), and none is named\n"
        "  do: name some with --cloud (nimbus, ec2) or --site, or all with --all-sites; "
        "`phantom-image plan` shows what would be sent to each\n"
    )
    assert project.artifacts() == []
    both = project.run(command, "--all-sites", "--site", "hotel")
    assert both.status == 24
    assert both.error == (
        "error: --all-sites is given beside --cloud or --site\n  do: leave one out\n"
    )


def test_plan_of_several_sites(shared: Project) -> None:
    """Each image has its own name, and the launch configuration is looked at, too."""
    real = "repository: 'h:1'"
    shared.write(
        "sites.yaml",
        SEVERAL.replace("sandbox: true", real, 1) + f"  annex: {{cloud: nimbus, {real}}}\n",
    )
    environ = {"NIMBUS_S3ID": S3ID, "NIMBUS_S3KEY": SECRET, "NIMBUS_CANONICAL_ID": CANONICAL_ID}
    told = shared.succeed("plan", "--json", **environ).json
    names = {each["site"]: each["image_name"] for each in told["publications"]}
    # Another test of this process may have built Amazon's disk already: then its digest is known.
    assert re.fullmatch("hello-phantom-1.0-(<build>|[0-9a-f]{12})", names.pop("amazon"))
    assert re.sub("[0-9a-f]{12}", "HEX", json.dumps(names)) == json.dumps(
        {
            "hotel": "hello-phantom-1.0-HEX.gz",
            "xen": "hello-phantom-1.0-<build>-bare.gz",
            "annex": "hello-phantom-1.0-HEX.gz",
        }
    )
    assert len({each["file"] for each in told["publications"]}) == 3
    assert [warning.partition(":")[0] for warning in told["warnings"]] == [
        "site hotel",
        "site annex",
        "Phantom never gets to annex",
    ]


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


# ---- output in pipes


def test_no_colours_in_pipes(shared: Project) -> None:
    for environ in ({}, {"NO_COLOR": "1"}, {"TERM": "xterm-256color", "FORCE_COLOR": "1"}):
        done = shared.succeed("image", **environ)
        assert "\x1b" not in done.out + done.err
