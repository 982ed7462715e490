"""What a manifest says of the definition that a build was made from."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from pipeline.build.origin import describe_definition
from pipeline.definitions.appliance import load_appliance
from pipeline.sources.element_trees import ElementTree, describe_elements


def write(folder: Path, *, text: str = "hello") -> Path:
    """A definition that extends another one, and names a file."""
    for name, more in (
        ("base", ""),
        ("web", "extends: base\nfiles: [{from: motd, to: /etc/motd}]\n"),
    ):
        path = folder / f"images/{name}/appliance.yaml"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f'{more}name: {name}\nversion: "1.0"\nsummary: A server\n')
    (path.parent / "motd").write_text(text)
    return path


def describe(folder: Path) -> dict[str, object]:
    return describe_definition(load_appliance("web", folder / "images"))


def git(folder: Path, *words: str) -> str:
    told = ["git", "-c", "user.name=t", "-c", "user.email=t@example.org", *words]
    done = subprocess.run(told, cwd=folder, check=True, capture_output=True, text=True)
    return done.stdout.strip()


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    write(tmp_path)
    git(tmp_path, "init", "-q")
    git(tmp_path, "add", ".")
    git(tmp_path, "commit", "-q", "-m", "first")
    return tmp_path


def test_without_a_repository_there_is_no_commit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    write(tmp_path)
    told = describe(tmp_path)
    assert (told["commit"], told["dirty"]) == (None, None)


def test_a_clean_tree(repository: Path) -> None:
    told = describe(repository)
    assert told["commit"] == git(repository, "rev-parse", "HEAD")
    assert told["dirty"] is False


def test_a_commit_is_of_the_definitions_own_repository(
    repository: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Git hooks run with variables that name another repository."""
    monkeypatch.setenv("GIT_DIR", str(repository / "elsewhere"))
    assert describe(repository)["dirty"] is False


@pytest.mark.parametrize("name", ["images/web/appliance.yaml", "images/base/appliance.yaml"])
def test_a_changed_definition(repository: Path, name: str) -> None:
    before = describe(repository)
    (repository / name).write_text((repository / name).read_text() + "# a remark\n")
    after = describe(repository)
    assert after["commit"] == before["commit"] and after["dirty"] is True
    assert after["digest"] != before["digest"]


def test_a_file_that_a_definition_names(repository: Path) -> None:
    before = describe(repository)
    write(repository, text="goodbye")
    after = describe(repository)
    assert after["digest"] != before["digest"] and after["dirty"] is True


@pytest.mark.parametrize("ignored", [True, False])
def test_a_definition_that_git_does_not_know(repository: Path, ignored: bool) -> None:
    (repository / "images/web/notes").write_text("of no concern")
    assert describe(repository)["dirty"] is False
    git(repository, "rm", "-q", "--cached", "images/web/motd")
    if ignored:
        (repository / ".git/info/exclude").write_text("motd\n")
    git(repository, "commit", "-q", "-m", "second")
    assert describe(repository)["dirty"] is True


def test_the_digest_is_of_the_content_alone(tmp_path: Path) -> None:
    write(tmp_path / "one")
    write(tmp_path / "other")
    assert describe(tmp_path / "one")["digest"] == describe(tmp_path / "other")["digest"]


def test_elements_have_the_commit_of_their_repository(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path))
    folders = [tmp_path / name for name in ("own/elements/clean", "own/elements/edited")]
    folders += [tmp_path / name for name in ("own/elements/added", "own/elements/ignored", "other")]
    for folder in folders:
        folder.mkdir(parents=True)
        (folder / "element-deps").write_text("dpkg\n")
    own = tmp_path / "own"
    git(own, "init", "-q")
    (own / ".gitignore").write_text("ignored\n")
    git(own, "add", ".gitignore", "elements/clean", "elements/edited")
    git(own, "commit", "-q", "-m", "first")
    (folders[1] / "element-deps").write_text("dpkg\nmore\n")
    commit = git(own, "rev-parse", "HEAD")
    told = describe_elements(ElementTree.read(folder.name, folder) for folder in folders)
    assert {each["name"]: (each.get("commit"), each.get("dirty")) for each in told} == {
        "added": (None, None),
        "clean": (commit, False),
        "edited": (commit, True),
        "ignored": (None, None),
        "other": (None, None),
    }
