"""Cluster checks in definitions: what they come to, and each whole message of a mistake."""

from __future__ import annotations

from pathlib import Path

import pytest
from definition_texts import HEAD, Load, Write

from pipeline.cluster_policy import ClusterGuest, ClusterPolicy, fill
from pipeline.errors import DefinitionError

FILE = "images/web/appliance.yaml"
GUESTS = "boot_check.cluster.guests"
TODO = "  do: correct {}; `phantom-image schema` prints all that a definition can say"
HEAD_SH = """\
#!/bin/sh
echo @cluster_secret@ @address:head@ @address:worker@ user@host >/run/cluster
"""
WITH_PHANTOM = f"""{HEAD_SH}
echo @phantom_url@ @phantom_access_key@ @phantom_secret_key@ @site@ @image@ @instance_type@
"""


def text(*guests: str, phantom: bool = False) -> str:
    """A definition with these guests, the first one on line 8."""
    lines = "".join(f"      - {{{guest}}}\n" for guest in guests)
    middle = f"    phantom: {'true' if phantom else 'false'}\n" if phantom else "    # none\n"
    return f"{HEAD}boot_check:\n  cluster:\n{middle}    guests:\n{lines}"


@pytest.fixture(autouse=True)
def files(write: Write) -> None:
    write("images/web/check.sh", "#!/bin/sh\nexit 0\n")
    write("images/web/head.sh", HEAD_SH)
    write("images/web/phantom.sh", WITH_PHANTOM)
    write("images/web/odd.sh", "#!/bin/sh\n# @clutser_secret@\necho @address:wroker@ @me@\n")
    write("images/web/long.sh", "#!/bin/sh\n" + "# more\n" * 3000)


def test_a_cluster_check(root: Path, load: Load) -> None:
    web = root / "images/web"
    guests = ("name: head, user_data: phantom.sh, script: check.sh", "name: worker, count: 2")
    appliance = load(text(*guests, phantom=True) + "    seconds: 1800\n  script: check.sh\n")
    assert appliance.boot_check.script == web / "check.sh"
    assert appliance.boot_check.cluster == ClusterPolicy(
        guests=(
            ClusterGuest(name="head", user_data=web / "phantom.sh", script=web / "check.sh"),
            ClusterGuest(name="worker", count=2),
        ),
        phantom=True,
        seconds=1800,
    )


def test_an_extending_definition_says_more(root: Path, write: Write, load: Load) -> None:
    """Of two guests with one name, the child's counts."""
    base = text("name: head, script: check.sh", "name: worker, count: 2, user_data: odd.sh")
    write("images/base/check.sh", "#!/bin/sh\nexit 0\n")
    write("images/base/odd.sh", "#!/bin/sh\necho @address:db@\n")
    write("images/base/appliance.yaml", base.replace("name: web", "name: base"))
    own = text("name: worker, user_data: head.sh", "name: db")
    appliance = load(f"extends: base\n{own}")
    cluster = appliance.boot_check.cluster
    assert cluster is not None
    assert [(guest.name, guest.count) for guest in cluster.guests] == [
        ("head", 1),
        ("worker", 1),
        ("db", 1),
    ]
    with pytest.raises(DefinitionError) as error:
        load(f"extends: base\n{text('name: other')}")
    assert error.value.where == "images/base/appliance.yaml:9:45"
    assert error.value.what == (
        f"'{GUESTS}[1].user_data': 'odd.sh' has @address:db@ on line 2, and no guest has the name "
        "'db'"
    )


@pytest.mark.parametrize(
    ("guests", "mistakes"),
    [
        (
            ["name: head"],
            [f"8:7: '{GUESTS}': no guest has a 'script', which says whether the check has passed"],
        ),
        (
            ["name: head, script: check.sh", "name: worker", "name: head"],
            [f"10:16: '{GUESTS}[2].name': another guest has the name 'head', on line 8"],
        ),
        (
            ["name: Head, count: 17, script: check.sh", "count: 2"],
            [
                "8:16: 'boot_check.cluster.guests[0].name' must be lower-case letters, digits and "
                "'-', beginning with a letter or digit, not 'Head'",
                f"8:29: '{GUESTS}[0].count' must be at most 16, not 17",
                f"9:9: 'name' is missing in '{GUESTS}[1]'",
            ],
        ),
        (
            ["name: head, user_data: odd.sh, script: check.sh", "name: worker"],
            [
                f"8:33: '{GUESTS}[0].user_data': 'odd.sh' has @clutser_secret@ on line 2, which is "
                "no placeholder; did you mean 'cluster_secret'?",
                f"8:33: '{GUESTS}[0].user_data': 'odd.sh' has @address:wroker@ on line 3, and no "
                "guest has the name 'wroker'; did you mean 'worker'?",
                f"8:33: '{GUESTS}[0].user_data': 'odd.sh' has @me@ on line 3, which is no "
                "placeholder; known are cluster_secret, address:NAME",
            ],
        ),
        (
            ["name: head, user_data: long.sh, script: chek.sh"],
            [
                f"8:33: '{GUESTS}[0].user_data': 'long.sh' has 21,010 characters; user-data has at "
                "most 16,384",
                f"8:50: '{GUESTS}[0].script': there is no 'chek.sh' in images/web; did you mean "
                "'check.sh'?",
            ],
        ),
    ],
)
def test_mistakes(load: Load, guests: list[str], mistakes: list[str]) -> None:
    with pytest.raises(DefinitionError) as error:
        load(text(*guests))
    one = len(mistakes) == 1
    places = [f"{FILE}:{mistake}" for mistake in mistakes]
    lines = places if one else [f"{len(mistakes)} mistakes in {FILE}"]
    lines += [] if one else [f"  | {place}" for place in places]
    assert str(error.value).splitlines() == [*lines, TODO.format("it" if one else "them")]


def test_placeholders_of_phantom_need_one(load: Load) -> None:
    with pytest.raises(DefinitionError) as error:
        load(text("name: head, user_data: phantom.sh, script: check.sh", "name: worker"))
    assert error.value.detail is not None
    lines = error.value.detail.splitlines()
    assert len(lines) == 6
    assert lines[0] == (
        f"{FILE}:8:33: '{GUESTS}[0].user_data': 'phantom.sh' has @phantom_url@ on line 4, which "
        "needs 'phantom: true' in 'boot_check.cluster'"
    )


def test_values_take_the_place_of_placeholders() -> None:
    values = {"cluster_secret": "0a", "address:head": "10.99.0.2", "site": "sandbox"}
    assert fill("a@b @site@@address:head@ x@ @cluster_secret@\n", values) == (
        "a@b sandbox10.99.0.2 x@ 0a\n"
    )
