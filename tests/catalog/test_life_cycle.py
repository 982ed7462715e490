"""What is said of finished builds, and what the catalog makes of it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from catalog_kit import build
from cli_runs import Project, make_project
from cli_sites import CANONICAL_ID, S3ID, SECRET, CumulusSite

from benchmarks.catalog_builds import HOTEL, SIERRA
from pipeline.build.lifecycle import Mark, State, find_state


@pytest.fixture
def project(tmp_path: Path) -> Project:
    return make_project(tmp_path)


def cataloged(project: Project, name: str = "web") -> dict[str, Any]:
    """An appliance as the catalog has it, with its builds' states by digits."""
    project.succeed("catalog")
    path = project.build / "catalog/appliances" / name / "appliance.json"
    told: dict[str, Any] = json.loads(path.read_text())
    return {"current": told["current"], **{one["build"]: one["state"] for one in told["builds"]}}


def test_the_current_build_is_the_newest_that_may_be_used(project: Project) -> None:
    first = build(project, "web", 1, date="2026-01-01T00:00:00Z")
    second = build(project, "web", 2, date="2026-02-01T00:00:00Z")
    unsent = build(project, "web", 3, places=())
    told = {first: "published", second: "published", unsent: "unpublished"}
    assert cataloged(project) == {"current": second, **told}

    done = project.succeed("mark", "withdrawn", "web", "--of", second, "--reason", "it leaks")
    assert done.out == f"web 1.0, build {second}: withdrawn\n"
    assert cataloged(project) == {"current": first, **told, second: "withdrawn"}
    project.succeed("mark", "deprecated", "web", "--of", first, "--replacement", "web2")
    assert cataloged(project)["current"] == first  # it still starts

    again = project.succeed("mark", "published", "web", "--of", second, "--json")
    assert again.json == {
        "appliance": "web",
        "build": second,
        "state": "published",
        "replacement": None,
        "reason": "",
    }
    assert cataloged(project)["current"] == second


def test_a_build_whose_last_image_was_retired_is_deleted(project: Project, tmp_path: Path) -> None:
    project.define("web")
    digits = build(project, "web", places=(HOTEL, SIERRA))
    project.succeed("mark", "deprecated", "web", "--of", digits, "--replacement", "web2")
    path = project.build / "web" / digits / "manifest.json"
    with CumulusSite(tmp_path / "cumulus") as site:
        project.write(
            "sites.yaml",
            "sites:\n"
            f"  hotel: {{cloud: nimbus, repository: '{site.host}'}}\n"
            f"  sierra: {{cloud: nimbus, repository: '{site.host}'}}\n",
        )
        at = f"cumulus://{site.host}/Repo/VMS/{CANONICAL_ID}/"
        text = path.read_text()
        for name in ("hotel", "sierra"):
            text = text.replace(f"nimbus://{name}/", f"{at}{name}-")
        path.write_text(text)
        account = {"NIMBUS_S3ID": S3ID, "NIMBUS_S3KEY": SECRET, "NIMBUS_CANONICAL_ID": CANONICAL_ID}
        for name, state in (("hotel", "deprecated"), ("sierra", "deleted")):
            words = ("--site", name, "--of", digits, "--yes")
            project.succeed("retire", "web", *words, **account, **site.environ)
            assert cataloged(project)[digits] == state
    page = (project.build / "catalog/appliances/web/index.html").read_text()
    assert "Deleted: no site has it any more." in page
    assert '<a href="../web2/index.html">web2</a>' in page


@pytest.mark.parametrize(
    ("said", "published", "state"),
    [
        (State.PUBLISHED, True, State.PUBLISHED),
        (State.PUBLISHED, False, State.UNPUBLISHED),
        (State.DEPRECATED, True, State.DEPRECATED),
        (State.DEPRECATED, False, State.UNPUBLISHED),
        (State.WITHDRAWN, True, State.WITHDRAWN),
        (State.WITHDRAWN, False, State.WITHDRAWN),
        (State.DELETED, True, State.PUBLISHED),  # it was published again
        (State.DELETED, False, State.DELETED),
    ],
)
def test_states(said: State, published: bool, state: State) -> None:
    assert find_state(Mark(state=said), published=published) is state


def test_a_damaged_mark_counts_for_nothing(project: Project) -> None:
    digits = build(project, "web")
    project.succeed("mark", "withdrawn", "web", "--of", digits)
    path = project.build / "web" / digits / "state.json"
    path.write_text(path.read_text()[:9])
    assert cataloged(project)[digits] == "published"


@pytest.mark.parametrize(
    ("words", "status", "complaint"),
    [
        (("gone", "web"), 2, "argument STATE: invalid choice: 'gone'"),
        (("deprecated", "web", "--replacement", "../x"), 2, "'../x' is neither APPLIANCE nor"),
        (("deprecated", "web", "--reason", "a\nb"), 2, "it must be one line of at most 1,000"),
        (("withdrawn", "nothing"), 24, "there is no build 'latest' of 'nothing'"),
        (("withdrawn", ".."), 24, "there is no build 'latest' of '..'"),
        (
            ("published", "web", "--reason", "why"),
            24,
            "a published build has neither a replacement nor a reason",
        ),
    ],
)
def test_what_nobody_can_say(
    project: Project, words: tuple[str, ...], status: int, complaint: str
) -> None:
    build(project, "web")
    done = project.run("mark", *words)
    assert (done.status, complaint in done.err) == (status, True), done.err
