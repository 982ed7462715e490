"""What a definition may ask of the archive, and how it is told: real apt on small archives."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path

import pytest
from archives import read_lists, write_archive
from hypothesis import example, given, settings
from hypothesis import strategies as st
from soak import examples

from pipeline.errors import UnknownPackageError
from pipeline.tools.apt_lists import Lists
from pipeline.tools.apt_request import Wanted, check_exist, choose, element_asker, merge

MAIN = {
    "zstd": "",
    "zsta": "",
    "curl": "",
    "curl-extra": "",
    "g++": "",
    "web=2.0-1": "",
    "web=1.0-1": "",
    "web-light": "",
    "shell=2.0": "Depends: libshell (= 2.0)",
    "shell=1.0": "Depends: libshell (= 1.0)",
    "libshell=2.0": "Depends: libshell-data (= 2.0)",
    "libshell=1.0": "Depends: libshell-data (= 1.0)",
    "libshell-data=2.0": "",
    "libshell-data=1.0": "",
    "clock": "Provides: time-daemon\nConflicts: time-daemon",
    "chrony": "Provides: time-daemon\nConflicts: time-daemon",
    "needs-chrony": "Depends: chrony",
    "names": "Provides: resolver\nConflicts: resolver",
    "resolver": "",
    "init-a": "Conflicts: init-b",
    "init-b": "Conflicts: init-a",
    "mail-a": "Provides: mail-agent\nConflicts: mail-agent",
    "mail-b": "Provides: mail-agent\nConflicts: mail-agent",
    "needs-mail-b": "Depends: mail-b",
    "broken": "Depends: nowhere",
}
TODO = (
    "correct the name, or take out the package, in the definition or in the element that asks for "
    "it; for a package of another archive, name that in `repositories`"
)


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Path:
    others = {"non-free": {"driver": "", "firmware-x": ""}, "contrib": {"helper": ""}}
    return write_archive(tmp_path_factory.mktemp("archive"), {"main": MAIN, **others})


@pytest.fixture(scope="module")
def lists(archive: Path, tmp_path_factory: pytest.TempPathFactory) -> Lists:
    return read_lists(archive, tmp_path_factory.mktemp("lists"))


def no_others() -> AbstractContextManager[Lists | None]:
    return nullcontext()


def fetched(answer: str) -> set[str]:
    """The names of the packages that apt would fetch."""
    return {*re.findall(r"^'\S+ ([^_]+)_", answer, re.MULTILINE)}


def check(lists: Lists, *packages: str) -> None:
    wanted = [Wanted.parse(each, asker=f"web.yaml:{line}") for line, each in enumerate(packages)]
    check_exist(lists, wanted, release="toy", others=no_others)


def refused(lists: Lists, *packages: str) -> str:
    with pytest.raises(UnknownPackageError) as caught:
        check(lists, *packages)
    return str(caught.value)


@pytest.mark.parametrize("name", ["zst.", "curl-", "curl+", "cur", "zst", "libfoo.+", "web-1.0"])
def test_a_name_is_neither_a_pattern_nor_an_order(lists: Lists, name: str) -> None:
    assert refused(lists, name).startswith(f"web.yaml:0: toy has no package {name}")


@settings(max_examples=examples(6), deadline=None)
@given(st.from_regex(r"[a-z0-9][a-z0-9+.-]{1,5}", fullmatch=True))
@example("zst.")
@example("curl-")
@example("c.*l+")
def test_any_name_is_taken_as_it_is_written(lists: Lists, name: str) -> None:
    if name in {package.partition("=")[0] for package in MAIN}:
        check(lists, name)
    else:
        assert f"toy has no package {name}" in refused(lists, name)


def test_names_with_signs_of_their_own(lists: Lists) -> None:
    check(lists, "g++", "curl-extra")
    _, answer = choose(lists, [Wanted.parse("g++"), Wanted.parse("curl")])
    assert fetched(answer) == {"apt", "base-files", "curl", "g++"}


def test_a_name_that_is_nearly_right(lists: Lists) -> None:
    assert refused(lists, "web-lite") == (
        "web.yaml:0: toy has no package web-lite; did you mean 'web-light'?\n" + f"  do: {TODO}"
    )


def test_a_name_that_is_like_none(lists: Lists) -> None:
    assert refused(lists, "docker-ce") == (
        "web.yaml:0: toy has no package docker-ce\n" + f"  do: {TODO}"
    )


def test_a_virtual_package(lists: Lists) -> None:
    assert refused(lists, "mail-agent") == (
        "web.yaml:0: mail-agent is a virtual package, which these provide: mail-a, mail-b\n"
        "  do: name one of those that provide it"
    )


def test_providers_of_several_packages_at_once(lists: Lists) -> None:
    found = lists.providers(["mail-agent", "time-daemon", "nowhere"])
    assert found["mail-agent"] == ["mail-a", "mail-b"]
    assert found["time-daemon"] == ["chrony", "clock"]
    assert found.get("nowhere", []) == []


def test_a_package_that_others_only_mention(lists: Lists) -> None:
    assert refused(lists, "nowhere").startswith("web.yaml:0: toy has no package nowhere\n")


def test_a_package_of_another_component(archive: Path, lists: Lists, tmp_path: Path) -> None:
    @contextmanager
    def others() -> Iterator[Lists | None]:
        yield read_lists(archive, tmp_path / "others", "contrib non-free")

    with pytest.raises(UnknownPackageError) as caught:
        wanted = [Wanted.parse("driver", asker="web.yaml:3")]
        check_exist(lists, wanted, release="toy", others=others)
    assert str(caught.value) == (
        "web.yaml:3: toy has driver in its component non-free, which `components` does not name\n"
        "  do: write `source: {scratch: {components: [non-free]}}`, or take it out"
    )


def test_a_version_that_is_not_there(lists: Lists) -> None:
    check(lists, "web=1.0-1", "curl=1.0")
    assert refused(lists, "web=3") == (
        "web.yaml:0: toy has no version 3 of web; it has 2.0-1, 1.0-1\n"
        "  do: write a version that there is, or the name alone for the newest"
    )


def test_several_faults_at_once(lists: Lists) -> None:
    message = refused(lists, "curl", "mail-agent", "web=3")
    assert message.splitlines()[:3] == [
        "2 packages cannot be had",
        "  | web.yaml:1: mail-agent is a virtual package, which these provide: mail-a, mail-b",
        "  | web.yaml:2: toy has no version 3 of web; it has 2.0-1, 1.0-1",
    ]


def test_a_pinned_version_is_the_one_that_comes(lists: Lists) -> None:
    assert " web_2.0-1_amd64.deb " in choose(lists, [Wanted.parse("web")])[1]
    assert " web_1.0-1_amd64.deb " in choose(lists, [Wanted.parse("web=1.0-1")])[1]


def test_a_pinned_version_brings_what_it_needs(lists: Lists) -> None:
    chosen, answer = choose(lists, [Wanted.parse("shell=1.0")])
    assert [each.word for each in chosen] == ["shell=1.0"]
    assert {*re.findall(r"lib\S+_[0-9.]+", answer)} == {"libshell_1.0", "libshell-data_1.0"}
    message = conflict(lists, Wanted.parse("shell=1.0"), Wanted.parse("libshell=2.0"))
    assert "libshell=2.0 and shell=1.0 cannot be installed together" in message
    assert message.endswith("do: take out one of them, or ask for another version")


# ---- who asks


def of_element(name: str, *, preferred: bool = False) -> Wanted:
    return Wanted.parse(name, asker=element_asker("os"), preferred=preferred)


def test_a_pin_outweighs_a_name() -> None:
    pinned = Wanted.parse("web=1.0-1", asker="web.yaml:2")
    for wanted in ([of_element("web"), pinned], [pinned, of_element("web")]):
        (merged,) = merge(wanted)
        assert merged.word == "web=1.0-1"


def test_two_pins_of_one_package() -> None:
    with pytest.raises(UnknownPackageError) as caught:
        merge([Wanted.parse("web=1.0-1", asker="web.yaml:2"), of_element("web=2.0-1")])
    assert str(caught.value) == (
        "web.yaml:2: web is asked for in two versions: web=1.0-1 (web.yaml:2) and web=2.0-1 "
        "(element os)\n  do: ask for one of them"
    )


def test_whoever_insists_outweighs_a_preference() -> None:
    preferred, insists = of_element("clock", preferred=True), Wanted.parse("clock", asker="a.yaml")
    for wanted in ([preferred, insists], [insists, preferred]):
        assert merge(wanted) == [insists]


# ---- what takes whose place


@pytest.mark.parametrize("asked", ["chrony", "needs-chrony", "resolver"])
def test_what_the_definition_asks_for_takes_a_preference_s_place(lists: Lists, asked: str) -> None:
    preferred = [of_element("clock", preferred=True), of_element("names", preferred=True)]
    chosen, answer = choose(lists, merge([Wanted.parse(asked, asker="web.yaml:1"), *preferred]))
    names = {each.name for each in chosen}
    assert names == {asked, "names" if "chrony" in asked else "clock"}
    assert names <= fetched(answer)


def test_preferences_that_nothing_conflicts_with_stay(lists: Lists) -> None:
    preferred = [of_element("clock", preferred=True), of_element("names", preferred=True)]
    chosen, _ = choose(lists, merge([Wanted.parse("curl"), *preferred]))
    assert [each.name for each in chosen] == ["clock", "curl", "names"]


def conflict(lists: Lists, *wanted: Wanted) -> str:
    with pytest.raises(UnknownPackageError) as caught:
        choose(lists, merge(wanted))
    return str(caught.value)


def test_a_conflict_names_who_asked_for_what(lists: Lists) -> None:
    mine = Wanted.parse("init-a", asker="web.yaml:4:12")
    message = conflict(
        lists, Wanted.parse("curl", asker="web.yaml:3:12"), mine, of_element("init-b")
    )
    first, *_, todo = message.splitlines()
    assert first == (
        "web.yaml:4:12: init-a (web.yaml:4:12) and init-b (element os) cannot be installed together"
    )
    assert todo == "  do: take out init-a: element os needs init-b"


def test_a_conflict_of_what_packages_depend_on(lists: Lists) -> None:
    others = [Wanted.parse(name, asker="web.yaml:1") for name in ("curl", "zstd", "g++", "web")]
    message = conflict(
        lists,
        *others,
        Wanted.parse("mail-a", asker="web.yaml:5"),
        Wanted.parse("needs-mail-b", asker="web.yaml:6"),
    )
    assert message.splitlines()[0] == (
        "web.yaml:5: mail-a (web.yaml:5) and needs-mail-b (web.yaml:6) cannot be installed together"
    )
    assert message.splitlines()[-1] == "  do: take out one of them"


def test_a_package_that_can_never_be_installed(lists: Lists) -> None:
    message = conflict(lists, Wanted.parse("broken", asker="web.yaml:5"), Wanted.parse("curl"))
    assert message == (
        "web.yaml:5: broken (web.yaml:5) cannot be installed\n"
        "  | broken : Depends: nowhere but it is not installable\n"
        "  do: take it out"
    )
