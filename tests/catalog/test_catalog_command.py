"""`phantom-image catalog` from run to run, and what it refuses."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import threading
import urllib.error
import urllib.request
from pathlib import Path

import jsonschema
import pytest
from catalog_kit import build
from cli_runs import Project, make_project

from benchmarks.catalog_builds import FRANKFURT, HOTEL, SIERRA
from pipeline.build.manifest import SCHEMA


@pytest.fixture
def project(tmp_path: Path) -> Project:
    return make_project(tmp_path)


def times(output: Path) -> dict[str, int]:
    """When each file of a catalog was written, without the catalog's own records."""
    return {
        str(path.relative_to(output)): path.stat().st_mtime_ns
        for path in sorted(output.rglob("*"))
        if path.is_file() and ".catalog" not in path.parts
    }


def changed(before: dict[str, int], after: dict[str, int]) -> set[str]:
    return {name for name in before.keys() | after.keys() if before.get(name) != after.get(name)}


def whole(output: Path) -> dict[str, bytes]:
    files = (path for path in output.rglob("*") if path.is_file())
    return {str(path.relative_to(output)): path.read_bytes() for path in files}


# ---- from run to run


def test_what_did_not_change_is_not_written_again(project: Project) -> None:
    old = build(project, "web", 1)
    build(project, "batch", 1)
    output = project.build / "catalog"
    first = project.succeed("catalog", "--json").json
    assert (first["appliances"], first["builds"], first["output"]) == (2, 2, str(output))
    jsonschema.validate(first, project.succeed("schema", "cataloged").json)
    before = times(output)
    again = project.succeed("catalog", "--json").json
    assert (again["written"], again["removed"]) == (0, 0)
    assert times(output) == before

    new = build(project, "web", 2, date="2026-03-01T00:00:00Z")
    project.succeed("catalog")
    assert changed(before, times(output)) == {
        *(f"appliances/web/builds/{digits}/launch-configuration.json" for digits in (old, new)),
        *(f"appliances/web/builds/{digits}/user-data" for digits in (old, new)),
        f"appliances/web/builds/{new}/manifest.json",
        "appliances/web/appliance.json",
        "appliances/web/index.html",
        "catalog.json",
        "feed.atom",
        "index.html",
        "search.js",
        "streams/v1/index.json",
        "streams/v1/web.json",
    }


def test_a_catalog_that_was_brought_up_to_date_is_as_one_made_anew(project: Project) -> None:
    digits = [
        build(project, "web", number, date=f"2026-0{number}-01T00:00:00Z") for number in (1, 2)
    ]
    build(project, "batch", places=(SIERRA,))
    build(project, "gone")
    project.succeed("catalog")
    build(project, "web", 3, date="2026-03-01T00:00:00Z", places=(HOTEL, FRANKFURT))
    shutil.rmtree(project.build / "web" / digits[0])
    shutil.rmtree(project.build / "gone")
    project.succeed("mark", "deprecated", "batch", "--replacement", "web")
    (project.build / "web" / digits[1] / "sbom.cdx.json").write_text("{}\n")
    made = project.succeed("catalog", "--json").json
    assert (made["appliances"], made["builds"]) == (2, 3)
    project.succeed("catalog", "--output", "anew")

    def published(folder: Path) -> dict[str, bytes]:
        return {name: data for name, data in whole(folder).items() if ".catalog" not in name}

    assert published(project.build / "catalog") == published(project.folder / "anew")
    assert not (project.build / "catalog/appliances/gone").exists()
    assert not (project.build / "catalog/streams/v1/gone.json").exists()


def test_what_was_lost_of_a_catalog_is_made_again(project: Project) -> None:
    build(project, "web")
    project.succeed("catalog")
    output = project.build / "catalog"
    before = whole(output)
    (output / "index.html").unlink()
    (output / "appliances/web/index.html").unlink()
    (output / ".catalog/catalog.json").write_text("{")
    project.succeed("catalog")
    assert whole(output) == before


def test_another_title_changes_every_page(project: Project) -> None:
    build(project, "web")
    project.succeed("catalog")
    project.succeed("catalog", "--title", "The lab's")
    for name in ("index.html", "appliances/web/index.html"):
        assert "The lab&#39;s" in (project.build / "catalog" / name).read_text()


def test_a_reader_never_sees_half_a_catalog(project: Project) -> None:
    """Whoever reads it while it is written again and again finds whole files, and all that they
    refer to."""
    output = project.build / "catalog"
    build(project, "web", 0)
    project.succeed("catalog")
    ended, faults, rounds = threading.Event(), [], [0]

    def read() -> None:
        while not ended.is_set():
            try:
                follow(output)
            except (OSError, ValueError, AssertionError, KeyError) as error:
                faults.append(repr(error))
                return
            rounds[0] += 1

    reader = threading.Thread(target=read)
    reader.start()
    for number in range(1, 6):
        build(project, "web", number, date=f"2026-02-0{number}T00:00:00Z")
        build(project, f"more-{number}")
        project.succeed("catalog", "--title", f"Number {number}")
    ended.set()
    reader.join()
    assert faults == []
    assert rounds[0] > 5


def follow(output: Path) -> None:
    """Reads a catalog as a program does, from the outside in."""
    index = (output / "index.html").read_text()
    assert index.endswith("</html>\n")
    catalog = json.loads((output / "catalog.json").read_text())
    for each in catalog["appliances"]:
        assert (output / each["page"]).read_text().endswith("</html>\n")
        appliance = json.loads((output / each["data"]).read_text())
        digits = [one["build"] for one in appliance["builds"]]
        assert each["current"]["build"] in digits
        for one in appliance["builds"]:
            json.loads((output / each["data"]).parent.joinpath(one["manifest"]).read_text())
    streams = json.loads((output / "streams/v1/index.json").read_text())
    for one in streams["index"].values():
        products = json.loads((output / one["path"]).read_text())["products"]
        assert set(one["products"]) <= set(products)


def test_named_manifests_alone(project: Project) -> None:
    digits = build(project, "web")
    build(project, "batch")
    shutil.copy(project.build / "web" / digits / "manifest.json", project.folder / "copy.json")
    for words in (("copy.json",), (f"build/web/{digits}", f"build/web/{digits}/manifest.json")):
        project.succeed("catalog", *words, "--output", "out")
        catalog = json.loads((project.folder / "out/catalog.json").read_text())
        assert [each["name"] for each in catalog["appliances"]] == ["web"]
        assert catalog["appliances"][0]["builds"] == 1


def test_a_catalog_of_nothing(project: Project) -> None:
    done = project.succeed("catalog")
    assert done.out.splitlines()[0].startswith("0 appliances, 0 builds: ")
    assert "There is no build yet." in (project.build / "catalog/index.html").read_text()


def test_many_appliances_take_several_pages(project: Project) -> None:
    pattern = project.build / "a" / build(project, "a") / "manifest.json"
    text = pattern.read_text()
    for number in range(201):
        path = project.build / f"web-{number:03}" / pattern.parent.name / "manifest.json"
        path.parent.mkdir(parents=True)
        path.write_text(text.replace('"name": "a"', f'"name": "web-{number:03}"', 2))
    project.succeed("catalog")
    output = project.build / "catalog"
    assert "appliances/web-198/" in (output / "index.html").read_text()
    second = (output / "index-2.html").read_text()
    assert "appliances/web-199/" in second and "appliances/web-200/" in second
    for number in range(3, 201):
        shutil.rmtree(project.build / f"web-{number:03}")
    project.succeed("catalog")
    assert not (output / "index-2.html").exists()


# ---- what is refused


def damage(project: Project) -> tuple[Path, Path]:
    """A catalog whose next run finds a manifest that is broken, and one of a future schema."""
    build(project, "web")
    broken = project.build / "broken" / build(project, "broken") / "manifest.json"
    future = project.build / "future" / build(project, "future") / "manifest.json"
    project.succeed("catalog")
    broken.write_text(broken.read_text()[:1000])
    future.write_text(future.read_text().replace(f'"schema": {SCHEMA}', '"schema": 999'))
    build(project, "web", 2, date="2026-03-01T00:00:00Z")
    return broken, future


def test_manifests_that_cannot_be_used_leave_the_catalog_as_it_was(project: Project) -> None:
    broken, future = damage(project)
    before = whole(project.build / "catalog")
    done = project.run("catalog", "--json")
    assert done.status == 82
    assert done.error == (
        "error: 2 manifests cannot be used, so the catalog stays as it was\n"
        f"  | {broken}: the manifest cannot be used: it holds no JSON\n"
        f"  | {future}: the manifest cannot be used: it has schema 999, and this program knows "
        f"{SCHEMA}\n"
        "  do: build these appliances again or remove the builds' folders, or leave them out by "
        "--skip-broken\n"
    )
    assert done.json["exit_code"] == 82
    assert whole(project.build / "catalog") == before


def test_manifests_that_cannot_be_used_are_left_out_if_told_so(project: Project) -> None:
    broken, future = damage(project)
    for _ in range(2):  # the second run tells of them again
        done = project.succeed("catalog", "--skip-broken", "--json")
        assert done.json["skipped"] == [str(broken), str(future)]
        assert f"left out: {broken}: the manifest cannot be used: it holds no JSON\n" in done.err
    catalog = json.loads((project.build / "catalog/catalog.json").read_text())
    assert [(each["name"], each["builds"]) for each in catalog["appliances"]] == [("web", 2)]


def test_a_build_in_another_appliances_folder(project: Project) -> None:
    digits = build(project, "web")
    (project.build / "web").rename(project.build / "other")
    done = project.run("catalog")
    path = project.build / "other" / digits / "manifest.json"
    assert (done.status, done.error) == (
        82,
        "error: a manifest cannot be used, so the catalog stays as it was\n"
        f"  | {path}: the manifest is of 'web', and lies in the folder of 'other'\n"
        "  do: build these appliances again or remove the builds' folders, or leave them out by "
        "--skip-broken\n",
    )


def test_a_folder_with_other_files_is_left_alone(project: Project) -> None:
    build(project, "web")
    project.write("mine/letter.txt", "dear\n")
    done = project.run("catalog", "--output", "mine")
    assert (done.status, done.error) == (
        83,
        f"error: {project.folder}/mine: the folder has files that are no catalog\n"
        "  do: let --output name a new folder, or an earlier catalog\n",
    )
    assert os.listdir(project.folder / "mine") == ["letter.txt"]


def test_a_file_in_the_place_of_the_folder(project: Project) -> None:
    build(project, "web")
    project.write("file", "")
    done = project.run("catalog", "--output", "file/out")
    assert (done.status, done.error) == (
        83,
        f"error: {project.folder}/file: the catalog cannot be written: Not a directory\n"
        "  do: let --output name a folder that this user may write to\n",
    )


def test_a_manifest_that_is_not_there(project: Project) -> None:
    done = project.run("catalog", "nowhere.json")
    assert (done.status, done.error) == (
        24,
        "error: there is no manifest 'nowhere.json'\n"
        "  do: name a manifest's file or its folder; without any, the catalog has all builds of "
        "this host\n",
    )


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        (("--url", "javascript:alert(1)"), "argument --url: 'javascript:alert(1)' is no address"),
        (("--title", " "), "argument --title: it must be one line of at most 200 characters"),
        (("--port", "x"), "argument --port: 'x' is no port from 0 to 65535"),
    ],
)
def test_options_that_make_no_sense(
    project: Project, words: tuple[str, ...], complaint: str
) -> None:
    done = project.run("catalog", *words)
    assert done.status == 2
    assert complaint in done.err


# ---- served


def test_it_is_served_until_it_is_interrupted(project: Project) -> None:
    build(project, "web")
    argv = project.command("catalog", "--serve")
    with subprocess.Popen(
        argv, cwd=project.folder, env=project.env(), stdout=subprocess.PIPE, text=True
    ) as server:
        try:
            assert server.stdout is not None
            url = [server.stdout.readline() for _ in range(3)][2].strip()
            check_served(url)
            port = url.rstrip("/").rpartition(":")[2]
            taken = project.run("catalog", "--serve", "--port", port)
            assert (taken.status, taken.error) == (
                24,
                f"error: port {port} cannot be used: Address already in use\n"
                "  do: name another one with --port, or leave it out for a free one\n",
            )
        finally:
            server.terminate()
        assert server.wait() == 0


def check_served(url: str) -> None:
    with urllib.request.urlopen(url) as answer:
        assert answer.headers["Content-Type"] == "text/html; charset=utf-8"
        assert answer.headers["Content-Security-Policy"].startswith("default-src 'none'; ")
        assert b"appliances/web/index.html" in answer.read()
    for path, method, status in (
        ("appliances/", "GET", 404),
        ("../x", "GET", 404),
        ("index.html", "POST", 405),
    ):
        with pytest.raises(urllib.error.HTTPError) as refused:
            urllib.request.urlopen(urllib.request.Request(url + path, method=method))
        assert refused.value.code == status
        refused.value.close()
