"""Why a stage will run, in words for people, and with the digests for programs."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import Any, ClassVar

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from soak import examples

from pipeline.build.explain import _reasons
from pipeline.build.reasons import describe_fields, find_differences
from pipeline.model import GIB, MIB, Package, Sha256
from pipeline.sources.copied import CopiedFile
from pipeline.sources.element_trees import ElementTree
from pipeline.stages.base import Context, LocalFile, Stage
from pipeline.store import Artifact

A, B, C = (Sha256(letter * 64) for letter in "abc")


@dataclass(frozen=True)
class Board:
    memory: int = 512 * MIB
    disks: tuple[str, ...] = ("ide",)


@dataclass(frozen=True, kw_only=True)
class Toy(Stage):
    """A stage with fields of every kind."""

    name: ClassVar[str] = "toy"

    apt_sources: str = "deb one\n"
    check: LocalFile | None = None
    disk_size: int = 2 * GIB
    elements: tuple[ElementTree, ...] = ()
    environment: Mapping[str, str] | None = None
    epoch: int = 0
    files: tuple[CopiedFile, ...] = ()
    kernel: str = "generic"
    machine: Board = Board()
    network: bool = False
    packages: tuple[Package, ...] = ()
    requested: tuple[str, ...] = ()
    scripts: tuple[LocalFile, ...] = ()
    sha256: Sha256 | None = None
    tools: Mapping[str, str] | None = None

    def run(self, inputs: Sequence[Artifact], context: Context) -> Mapping[str, Any]:
        raise NotImplementedError


def script(name: str, digest: Sha256 = A) -> LocalFile:
    return LocalFile(digest=digest, path=Path("/definition", name))


def package(name: str, version: str, sha256: Sha256 = A) -> Package:
    return Package(name=name, version=version, architecture="amd64", sha256=sha256)


def copied(digest: Sha256 = A, mode: int = 0o644) -> CopiedFile:
    content = LocalFile(digest=digest, path=Path("/definition/motd"))
    return CopiedFile(target=PurePosixPath("/etc/motd"), mode=mode, content=content)


ONE, TWO = script("one.sh"), script("two.sh", C)


def described(stage: Stage) -> Any:
    """A stage's description, as a later run reads it."""
    inputs = {each.title: each.key for each in stage.inputs}
    return json.loads(
        json.dumps(
            {
                "key": stage.key,
                "revision": stage.revision,
                "fields": describe_fields(stage),
                "inputs": inputs,
            }
        )
    )


@pytest.mark.parametrize(
    ("old", "new", "reasons"),
    [
        (
            {"scripts": (ONE, TWO)},
            {"scripts": (ONE, script("two.sh", B))},
            ["scripts: two.sh changed"],
        ),
        ({"scripts": (ONE,)}, {"scripts": (ONE, TWO)}, ["scripts: two.sh is new"]),
        ({"scripts": (ONE, TWO)}, {"scripts": (TWO,)}, ["scripts: one.sh is gone"]),
        ({"scripts": (ONE, TWO)}, {"scripts": (TWO, ONE)}, ["scripts: in another order"]),
        (
            {"scripts": (ONE, script("a/one.sh"))},
            {"scripts": (ONE, script("a/one.sh", B))},
            ["scripts: one.sh (number 2) changed"],
        ),
        ({"check": script("check.sh")}, {"check": script("check.sh", B)}, ["check.sh changed"]),
        ({}, {"check": script("check.sh")}, ["check.sh is new"]),
        ({"check": script("check.sh")}, {}, ["check.sh is gone"]),
        ({"files": (copied(),)}, {"files": (copied(B),)}, ["files: /etc/motd changed"]),
        (
            {"files": (copied(),)},
            {"files": (copied(mode=0o755),)},
            ["files: /etc/motd: mode 644 -> 755"],
        ),
        ({"files": (copied(),)}, {}, ["files: /etc/motd is gone"]),
        (
            {"packages": (package("less", "590-1"), package("vim", "9"), package("nano", "1"))},
            {
                "packages": (
                    package("less", "590-2", B),
                    package("ed", "7"),
                    package("nano", "1", B),
                )
            },
            [
                "package ed 7 is new",
                "package less 590-1 -> 590-2",
                "package nano changed",
                "package vim is gone",
            ],
        ),
        (
            {"requested": ("bash",), "packages": (package("less", "1"),)},
            {"requested": ("bash", "less"), "packages": (package("less", "1"),)},
            ["package less is asked for by name"],
        ),
        (
            {"requested": ("less",), "packages": (package("less", "1"),)},
            {"requested": (), "packages": ()},
            ["package less is gone"],
        ),
        (
            {"elements": (ElementTree(name="grow", tree=script("grow")),)},
            {"elements": (ElementTree(name="grow", tree=script("grow", B)),)},
            ["element grow changed"],
        ),
        ({"disk_size": 2 * GIB}, {"disk_size": 3 * GIB}, ["disk size 2 GiB -> 3 GiB"]),
        ({"kernel": "generic"}, {"kernel": "cloud"}, ["kernel generic -> cloud"]),
        ({"network": False}, {"network": True}, ["network no -> yes"]),
        ({"epoch": 0}, {"epoch": 86400}, ["epoch 1970-01-01 -> 1970-01-02"]),
        (
            {"machine": Board()},
            {"machine": Board(memory=GIB, disks=("nvme",))},
            [
                "machine disks: nvme is new",
                "machine disks: ide is gone",
                "machine memory 512 MiB -> 1 GiB",
            ],
        ),
        ({"environment": {"DIB_A": A}}, {"environment": {"DIB_A": B}}, ["DIB_A changed"]),
        ({"environment": {}}, {"environment": {"DIB_A": B}}, ["DIB_A is new"]),
        (
            {"tools": {"mmdebstrap": "1.3"}},
            {"tools": {"mmdebstrap": "1.4"}},
            ["mmdebstrap 1.3 -> 1.4"],
        ),
        ({"sha256": A}, {"sha256": B}, ["its digest changed"]),
        ({}, {"apt_sources": "deb two\ndeb three\n"}, ["the image's package sources changed"]),
    ],
)
def test_reasons_are_in_people_s_words(
    old: dict[str, Any], new: dict[str, Any], reasons: list[str]
) -> None:
    before, now = Toy(**old), Toy(**new)
    told = [*_reasons(now, described(before))]
    assert [reason.text for reason in told] == reasons
    assert not any(A[:12] in reason.text or B[:12] in reason.text for reason in told)


def test_links_and_folders_among_the_files() -> None:
    link, folder = {"target": "/a", "leads_to": "b"}, {"target": "/a"}
    file = {"target": "/a", "mode": 0o644, "content": {"name": "a", "digest": A}}

    def told(old: Any, new: Any) -> list[str]:
        return [each.full for each in find_differences({"files": old}, {"files": new})]

    assert told([link], [{**link, "leads_to": "c"}]) == ["files: /a: leads to b -> c"]
    assert told([file], [link]) == told([folder], [file]) == ["files: /a changed"]
    assert told([], [folder]) == ["files: /a is new"]


def test_digests_are_in_the_full_reason() -> None:
    (reason,) = _reasons(Toy(scripts=(script("two.sh", B),)), described(Toy(scripts=(TWO,))))
    assert reason.full == "scripts: two.sh changed (cccccccccccc -> bbbbbbbbbbbb)"


def test_an_input_that_changed() -> None:
    root, other = Toy(label="one"), Toy(label="one", kernel="cloud")
    disk = Toy(inputs=(root,))
    (reason,) = _reasons(replace(disk, inputs=(other,)), described(disk))
    assert reason.text == "its input toy one changed"
    assert reason.digests == f"{root.key[:12]} -> {other.key[:12]}"


def test_a_name_that_decides_nothing_is_no_reason() -> None:
    """A script may be renamed; the key and the reasons stay."""
    before, now = Toy(check=script("check.sh")), Toy(check=script("renamed.sh"))
    assert before.key == now.key
    (reason,) = _reasons(now, described(before))
    assert reason.text == "what was stored is gone or was changed"


def test_what_an_earlier_version_wrote_has_no_names() -> None:
    before = described(Toy(scripts=(ONE,), check=script("check.sh")))
    for fields in (before["fields"]["check"], *before["fields"]["scripts"]):
        del fields["name"]
    now = Toy(scripts=(script("one.sh", B),), check=script("check.sh", B))
    assert [each.text for each in _reasons(now, before)] == ["check.sh changed", "scripts changed"]
    now = Toy(scripts=(ONE,), check=script("check.sh"), kernel="cloud")
    assert [each.text for each in _reasons(now, before)] == ["kernel generic -> cloud"]


_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=3),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["name", "digest", "content", "version", "x"]), inner)
    ),
    max_leaves=6,
)


@settings(max_examples=examples(100), deadline=None)
@example("epoch", -62_135_596_801)  # before the first year
@given(st.sampled_from(sorted(describe_fields(Toy()))), _JSON)
def test_a_damaged_record_is_no_obstacle(name: str, value: Any) -> None:
    now = Toy(
        scripts=(ONE,),
        files=(copied(),),
        check=TWO,
        packages=(package("a", "1"),),
        tools={"t": "1"},
    )
    before = described(now)
    before["fields"][name] = value
    before["key"] = "other"
    for reason in (*_reasons(now, before), *find_differences(before["fields"], {})):
        assert reason.text
        assert "None" not in reason.text or "None" in str(value)
    assert next(_reasons(now, value)).text == "not built here before"
