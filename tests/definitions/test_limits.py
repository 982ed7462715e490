"""What definitions and sites may hold at most, and that reading them takes no more than their
length says."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from definition_texts import HEAD, Load, Write

from pipeline.clouds import clouds
from pipeline.definitions.appliance import load_appliance
from pipeline.definitions.sites import load_sites
from pipeline.errors import DefinitionError

Make = Callable[[int], str]


def repeat(before: str, entry: str, after: str = "") -> Make:
    return lambda count: before + "".join(entry.format(number) for number in range(count)) + after


DEFINITIONS: dict[str, Make] = {
    "packages": repeat(f"{HEAD}packages:\n", "- p{}\n"),
    "the same packages": repeat(f"{HEAD}packages:\n", "- same\n"),
    "mappings as packages": repeat(f"{HEAD}packages:\n", "- {{a: {0}}}\n"),
    "lists as packages": repeat(f"{HEAD}packages:\n", "- [{}]\n"),
    "elements": repeat(f"{HEAD}elements:\n", "- e{}\n"),
    "scripts that are missing": repeat(f"{HEAD}scripts:\n", "- s{}.sh\n"),
    "unknown keys": repeat(HEAD, "packges{}: 1\n"),
    "labels": repeat(f"{HEAD}labels:\n", "  l{}: a\n"),
    "wrong labels": repeat(f"{HEAD}labels:\n", '  "{}!": 1\n'),
    "repeated keys": repeat(HEAD, "a: 1\n"),
    "tags": repeat(f"{HEAD}packages:\n", "- !a b{}\n"),
    "aliases": repeat(f"{HEAD}packages: [", "*a{}, ", "]\n"),
    "a long line": repeat(f'{HEAD}kernel: "', "aaaaaaaaaa", '\\nb"\n'),
    "long labels": repeat(f'{HEAD}labels: {{a: "', "aaaaaaaaaa", '\\nb"}\n'),
    "blanks": repeat(f'{HEAD}labels: {{a: "', "          ", '\\n"}\n'),
    "a template": repeat(f'{HEAD}clouds: {{ec2: {{image_name: "', "{{x}}", '"}}\n'),
    "clouds": repeat(f"{HEAD}clouds:\n", "  c{}: {{disk_size: 1GiB}}\n"),
}
SITES: dict[str, Make] = {
    "sites": repeat("sites:\n", "  s{}: {{cloud: nimbs}}\n"),
    "options": repeat("sites:\n  s:\n    cloud: nimbus\n", "    o{}: 1\n"),
    "regions": repeat(
        "sites:\n  s:\n    cloud: ec2\n    region: eu-central-1\n    copy_to:\n",
        "    - eu-central-{}\n",
    ),
}


def least_time(work: Callable[[], object]) -> float:
    """The least processor time of three runs, whether they end well or not."""
    times = []
    for _ in range(3):
        started = time.process_time()
        with contextlib.suppress(DefinitionError):
            work()
        times.append(time.process_time() - started)
    return min(times)


@pytest.mark.parametrize("kind", [*DEFINITIONS, *SITES])
def test_time_grows_with_the_length_only(kind: str, write: Write) -> None:
    make = DEFINITIONS.get(kind) or SITES[kind]
    path = write("images/web/f", "x").parent / "appliance.yaml"
    sites = path.parents[2] / "sites.yaml"

    def measure(count: int) -> float:
        if kind in SITES:
            sites.write_text(make(count))
            return least_time(lambda: load_sites(sites, clouds()))
        path.write_text(make(count))
        return least_time(lambda: load_appliance("web", Path("images")))

    few, many = measure(400), measure(2400)  # six times: quadratic time is 36 times
    assert many < 15 * max(few, 0.003), (few, many)


def test_the_most_entries(load: Load) -> None:
    made = load(DEFINITIONS["packages"](5000))
    assert len(made.packages) == 5000
    with pytest.raises(DefinitionError) as caught:
        load(DEFINITIONS["packages"](5001))
    assert caught.value.what == "'packages' must have at most 5,000 entries, and has 5,001"
    with pytest.raises(DefinitionError) as caught:
        load(DEFINITIONS["labels"](1001))
    assert caught.value.what == "'labels' must have at most 1,000 keys, and has 1,001"
    with pytest.raises(DefinitionError) as caught:
        load(f"{HEAD}files: [{{from: f, to: /{'a' * 4096}}}]\n")
    assert caught.value.what == ("'files[0].to' must have at most 4,096 characters, and has 4,097")


def test_a_message_has_an_end(load: Load) -> None:
    with pytest.raises(DefinitionError) as caught:
        load(DEFINITIONS["unknown keys"](3000))
    assert caught.value.what == "3000 mistakes in images/web/appliance.yaml"
    assert caught.value.detail is not None
    lines = caught.value.detail.splitlines()
    assert (len(lines), lines[-1]) == (101, "and 2,900 more")
    with pytest.raises(DefinitionError) as caught:
        load(f'{HEAD}? "{"k" * 100_000}"\n: 1\n')
    assert len(str(caught.value)) < 1000


def test_a_chain_of_definitions_has_an_end(write: Write) -> None:
    for number in range(30):
        extends = f"extends: d{number + 1}\n" if number < 29 else ""
        text = f'name: d{number}\nversion: "1"\nsummary: s\n{extends}'
        write(f"images/d{number}/appliance.yaml", text)
    with pytest.raises(DefinitionError) as caught:
        load_appliance("d0", Path("images"))
    assert caught.value.what == "'extends': more than 20 definitions, one after the other"
    assert caught.value.where == "images/d20/appliance.yaml:4:10"
    assert load_appliance("d10", Path("images")).name == "d10"


@pytest.mark.parametrize("name", ["store", "sites", "latest", "nightly", "catalog"])
def test_names_of_folders_beside_the_builds(name: str, write: Write) -> None:
    write(f"images/{name}/appliance.yaml", f'name: {name}\nversion: "1"\nsummary: s\n')
    with pytest.raises(DefinitionError) as caught:
        load_appliance(name, Path("images"))
    words = ("store", "sites", "latest", "nightly", "catalog")
    *others, last = (word for word in words if word != name)
    assert (caught.value.where, caught.value.what) == (
        f"images/{name}/appliance.yaml:1:7",
        f"'name': {name!r} is kept for a folder beside those of the builds, as "
        f"{', '.join(others)} and {last} are",
    )
