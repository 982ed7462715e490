"""Packages that an image is not to have: what a definition says, and what apt makes of it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from archives import read_lists, write_archive

from pipeline.definitions.appliance import load_appliance
from pipeline.errors import DefinitionError, UnknownPackageError
from pipeline.model import Appliance
from pipeline.sources.element_facts import unwanted_packages, wanted_packages
from pipeline.tools.apt_lists import Lists
from pipeline.tools.apt_request import Wanted, choose

HEAD = 'name: {name}\nversion: "1"\nsummary: s\n'
MAIN = {
    "mailer": "Depends: mail-a | mail-b",
    "mail-a": "",
    "mail-b": "",
    "strict": "Depends: mail-a",
    "shell": "Priority: required\nDepends: library",
    "library": "",
}
Define = Callable[[str, str], Appliance]


@pytest.fixture(scope="module")
def lists(tmp_path_factory: pytest.TempPathFactory) -> Lists:
    folder = tmp_path_factory.mktemp("archive")
    return read_lists(write_archive(folder / "archive", {"main": MAIN}), folder / "lists")


@pytest.fixture
def define(tmp_path: Path) -> Define:
    def make(name: str, text: str) -> Appliance:
        folder = tmp_path / "images" / name
        folder.mkdir(parents=True)
        (folder / "appliance.yaml").write_text(HEAD.format(name=name) + text)
        return load_appliance(name, tmp_path / "images")

    return make


def test_apt_takes_another_package_or_says_what_needs_it(lists: Lists) -> None:
    lists.without = {}
    assert "mail-a_" in choose(lists, [Wanted.parse("mailer")])[1]
    lists.without = {"mail-a": "web.yaml:5:1"}
    _, answer = choose(lists, [Wanted.parse("mailer")])
    assert "mail-b_" in answer and "mail-a_" not in answer
    with pytest.raises(UnknownPackageError) as caught:
        choose(lists, [Wanted.parse("strict", asker="web.yaml:4:1")])
    assert str(caught.value) == (
        "web.yaml:4:1: strict (web.yaml:4:1) cannot be installed\n"
        "  | strict : Depends: mail-a but it is not going to be installed\n"
        "  do: take mail-a out of `without_packages`"
    )


@pytest.mark.parametrize("name", ["base-files", "library"])
def test_a_package_that_no_image_can_do_without(lists: Lists, name: str) -> None:
    lists.without = {"mail-a": "web.yaml:4:20", name: "web.yaml:5:20"}
    with pytest.raises(UnknownPackageError) as caught:
        choose(lists, [Wanted.parse("mailer")])
    assert str(caught.value) == (
        f"web.yaml:5:20: no image can do without {name}\n  do: take it out of `without_packages`"
    )


def test_what_an_element_asks_for_is_left_out(define: Define) -> None:
    web = define("web", "packages: [curl]\nwithout_packages: [mail-a]\n")
    asked = {"mail-a": "post", "mail-b": "post"}
    assert [each.name for each in wanted_packages(web, {}, asked)] == ["curl", "mail-b"]
    (unwanted,) = unwanted_packages(web)
    assert (unwanted.name, unwanted.asker.rpartition("/")[2]) == ("mail-a", "appliance.yaml:5:20")


def test_the_child_decides_for_its_parent(define: Define) -> None:
    define("parent", "packages: [curl, rsync=1]\nwithout_packages: [nano, vim]\n")
    child = define("child", "extends: parent\npackages: [vim]\nwithout_packages: [rsync]\n")
    assert child.packages == ("curl", "vim")
    assert child.without_packages == ("nano", "rsync")


def test_a_package_that_is_asked_for_too(define: Define) -> None:
    with pytest.raises(DefinitionError) as caught:
        define("web", "packages: [curl]\nwithout_packages: [nano, curl]\n")
    assert "appliance.yaml:5:26: 'without_packages[1]': line 4 asks for it" in str(caught.value)
