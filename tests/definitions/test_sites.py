"""`sites.yaml`: its sites, the messages about its mistakes, and the choice of sites."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import jsonschema
import pytest
import yaml
from definition_texts import Write

from pipeline.clouds import Cloud, clouds
from pipeline.definitions.nightly import (
    CatalogSettings,
    Hooks,
    NightSettings,
    load_nightly,
    nightly_schema,
)
from pipeline.definitions.phantoms import load_phantoms, phantoms_schema
from pipeline.definitions.sites import load_sites, select_sites, sites_schema
from pipeline.definitions.yaml import shown
from pipeline.errors import DefinitionError, UsageError
from pipeline.model import Site
from pipeline.phantom.named import PhantomService

REPOSITORY = Path(__file__).parents[2]
UNSUPPORTED = (
    "is not supported; write the value at each place, or share it between definitions by 'extends'"
)
TODO = "  do: correct {}; sites.example.yaml shows what the file can say"


class Cumulonimbus:
    """A cloud of which these tests use only the schema of its sites."""

    site_schema: Mapping[str, object] = {
        "type": "object",
        "required": ["host"],
        "additionalProperties": False,
        "properties": {
            "host": {
                "description": "Host and port, such as a.example.org:80. Nothing else.",
                "type": "string",
                "pattern": "^[a-z.]+:[0-9]+$",
            },
            "https": {"description": "Whether it speaks HTTPS.", "type": "boolean"},
            "visibility": {"description": "Who sees it.", "enum": ["private", "common"]},
            "bucket": {"description": "The bucket.", "type": "string", "not": {"const": "common"}},
        },
    }


CLOUDS = cast(
    dict[str, type[Cloud]], {"nimbus": Cumulonimbus, "ec2": type("Ec2", (), {"site_schema": {}})}
)

BUILT_IN_SITES = load_sites(None, CLOUDS)
BUILT_IN_SITE = BUILT_IN_SITES[0]


@pytest.mark.usefixtures("root")
def test_without_a_file_there_are_the_built_in_sites() -> None:
    nimbus = Site(name="nimbus-sandbox", cloud="nimbus", sandbox=True, where="built in")
    ec2 = Site(name="ec2-sandbox", cloud="ec2", sandbox=True, where="built in")
    assert load_sites(None, CLOUDS) == (nimbus, ec2)
    assert load_sites(Path("sites.yaml"), CLOUDS) == (nimbus, ec2)
    assert load_sites(None, {"nimbus": CLOUDS["nimbus"]}) == (nimbus,)


def test_sites_in_the_order_of_the_file_then_the_built_in_ones(write: Write) -> None:
    path = write(
        "sites.yaml",
        "sites:\n"
        "  hotel:\n"
        "    cloud: nimbus\n"
        "    host: a.b:80\n"
        "    https: true\n"
        "  alamo: {cloud: nimbus, host: c.d:80, https: true}\n"
        "  try: {cloud: nimbus, sandbox: true}\n",
    )
    assert load_sites(path, CLOUDS) == (
        Site(
            name="hotel",
            cloud="nimbus",
            options={"host": "a.b:80", "https": True},
            where="sites.yaml:2:3",
        ),
        Site(
            name="alamo",
            cloud="nimbus",
            options={"host": "c.d:80", "https": True},
            where="sites.yaml:6:3",
        ),
        Site(name="try", cloud="nimbus", sandbox=True, where="sites.yaml:7:3"),
        *BUILT_IN_SITES,
    )


def test_the_built_in_site_can_be_redefined(write: Write) -> None:
    path = write("sites.yaml", "sites:\n  nimbus-sandbox: {cloud: nimbus, host: a.b:80}\n")
    sites = load_sites(path, CLOUDS)
    assert [(site.name, site.sandbox) for site in sites] == [
        ("nimbus-sandbox", False),
        ("ec2-sandbox", True),
    ]
    assert select_sites(sites, ["nimbus"], None) == sites[:1]
    assert select_sites(sites, None, None) == sites[:1]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", [" is empty"]),
        ("- a\n", ["1:1: the file must be a mapping, not a list"]),
        ("sites:\n", ["1:1: 'sites' has no value; it must be a mapping"]),
        ("sits: {}\n", ["1:1: unknown key 'sits'; did you mean 'sites'?"]),
        (
            "sites: {a: &a {cloud: ec2}, b: *a, c: {<<: *a}}\n",
            [
                f"1:12: the anchor &a {UNSUPPORTED}",
                f"1:32: the alias *a {UNSUPPORTED}",
                f"1:44: the alias *a {UNSUPPORTED}",
            ],
        ),
        ("sites: {a: {}}\n", ["1:12: 'cloud' is missing in 'sites.a'"]),
        (
            "sites: {a: {clod: nimbus}}\n",
            ["1:13: unknown key 'clod' in 'sites.a'; did you mean 'cloud'?"],
        ),
        ("sites: {a: {cloud: nimbus}}\n", ["1:12: 'host' is missing in 'sites.a'"]),
        (
            "sites: {a: {cloud: nimbsu}, b@c: {cloud: ec2}, c: ec2, 1: {cloud: ec2}}\n",
            [
                "1:20: 'sites.a.cloud' must be one of ec2, nimbus, not 'nimbsu'; did you mean "
                "'nimbus'?",
                "1:29: the key 'b@c' must be a site's name: letters, digits, '.', '_' and '-', "
                "beginning with a letter or digit",
                "1:51: 'sites.c' must be a mapping, not a string",
                '1:56: a key must be text, and YAML reads 1 as the number 1; put it in quotes: "1"',
            ],
        ),
        (
            "sites:\n"
            "  a:\n"
            "    cloud: nimbus\n"
            "    sandbox: 1\n"
            "    host: a.b\n"
            "    https: 'yes'\n"
            "    visibility: no\n"
            "    bukket: x\n"
            "    bucket: common\n",
            [
                "4:14: 'sites.a.sandbox' must be true or false, not the number 1",
                "5:11: 'sites.a.host' cannot be 'a.b'; it is: Host and port, such as "
                "a.example.org:80",
                "6:12: 'sites.a.https' must be true or false; take the quotes away",
                "7:17: 'sites.a.visibility' must be one of private, common, not no",
                "8:5: unknown key 'bukket' in 'sites.a'; did you mean 'bucket'?",
                "9:13: 'sites.a.bucket' cannot be 'common'; it is: The bucket",
            ],
        ),
    ],
)
def test_whole_message(write: Write, text: str, said: list[str]) -> None:
    with pytest.raises(DefinitionError) as caught:
        load_sites(write("sites.yaml", text), CLOUDS)
    if len(said) == 1:
        assert str(caught.value) == f"sites.yaml:{said[0]}\n{TODO.format('it')}"
    else:
        lines = "\n".join(f"  | sites.yaml:{one}" for one in said)
        assert str(caught.value) == (
            f"{len(said)} mistakes in sites.yaml\n{lines}\n{TODO.format('them')}"
        )


def test_a_folder_is_no_file(root: Path) -> None:
    with pytest.raises(DefinitionError) as caught:
        load_sites(root, CLOUDS)
    assert caught.value.what == "is a folder; name the file in it"


HOTEL = Site(name="hotel", cloud="nimbus", where="sites.yaml:2:3")
ALAMO = Site(name="alamo", cloud="nimbus", where="sites.yaml:3:3")
EAST = Site(name="east", cloud="ec2", where="sites.yaml:4:3")
EC2_SANDBOX = BUILT_IN_SITES[1]
SITES = (HOTEL, EAST, ALAMO, *BUILT_IN_SITES)


@pytest.mark.parametrize(
    ("sites", "cloud", "site", "chosen"),
    [
        (SITES, None, None, (HOTEL, EAST, ALAMO)),
        (SITES, [], [], (HOTEL, EAST, ALAMO)),
        (SITES, ["nimbus"], None, (HOTEL, ALAMO)),
        (SITES, ["ec2", "nimbus"], None, (HOTEL, EAST, ALAMO)),
        (SITES, None, ["alamo", "hotel", "alamo"], (HOTEL, ALAMO)),
        (SITES, ["nimbus"], ["nimbus-sandbox"], (BUILT_IN_SITE,)),
        ((EAST, BUILT_IN_SITE), ["nimbus"], None, (BUILT_IN_SITE,)),
        ((EAST, BUILT_IN_SITE), None, None, (EAST,)),
        (BUILT_IN_SITES, None, None, (BUILT_IN_SITE,)),
        (BUILT_IN_SITES, ["ec2"], None, (EC2_SANDBOX,)),
        (BUILT_IN_SITES, ["nimbus", "ec2"], None, BUILT_IN_SITES),
        ((HOTEL, *BUILT_IN_SITES), None, None, (HOTEL,)),
        ((HOTEL, *BUILT_IN_SITES), ["ec2"], None, (EC2_SANDBOX,)),
        (SITES, ["ec2"], None, (EAST,)),
        (SITES, None, ["ec2-sandbox"], (EC2_SANDBOX,)),
    ],
)
def test_chosen_sites(
    sites: tuple[Site, ...],
    cloud: list[str] | None,
    site: list[str] | None,
    chosen: tuple[Site, ...],
) -> None:
    assert select_sites(sites, cloud, site) == chosen


@pytest.mark.parametrize(
    ("cloud", "site", "message"),
    [
        (
            None,
            ["hotl"],
            "there is no site 'hotl'; did you mean 'hotel'?\n"
            "  do: choose one of: hotel, east, alamo, nimbus-sandbox, ec2-sandbox",
        ),
        (
            ["Nimbus"],
            None,
            "no site has cloud 'Nimbus'; did you mean 'nimbus'?\n  do: choose one of: nimbus, ec2",
        ),
        (
            ["openstack"],
            None,
            "no site has cloud 'openstack'\n  do: choose one of: nimbus, ec2",
        ),
        (
            ["nimbus"],
            ["east"],
            "site 'east' is a site of cloud 'ec2', not of 'nimbus'\n"
            "  do: name the site alone, or the cloud alone",
        ),
    ],
)
def test_words_that_fit_no_site(
    cloud: list[str] | None, site: list[str] | None, message: str
) -> None:
    with pytest.raises(UsageError) as caught:
        select_sites(SITES, cloud, site)
    assert str(caught.value) == message


def test_the_example_shows_each_option_of_its_cloud() -> None:
    path = REPOSITORY / "sites.example.yaml"
    sites = load_sites(path, clouds())
    assert [site.name for site in sites] == [
        "hotel",
        "sierra",
        "tango",
        "frankfurt",
        "publisher",
        "nimbus-sandbox",
        "ec2-sandbox",
    ]
    text = path.read_text()
    for cloud in clouds().values():
        options = cast(dict[str, Any], cloud.site_schema["properties"])
        for option, part in options.items():
            assert part["description"], option
            # The example leaves out an option that weakens security, because people copy it.
            assert f"{option}: " in text or option == "self_signed", option
    options = phantoms_schema()["additionalProperties"]["properties"]
    assert [option for option in options if f"{option}: " not in text] == []
    line = text[: text.index("\n  nimbus:\n")].count("\n") + 2
    nimbus = PhantomService(
        name="nimbus",
        url="https://phantom.example.org:8445",
        credentials=Path("~/nimbus/phantom-credentials").expanduser(),
        where=f"{shown(path)}:{line}:3",
    )
    assert load_phantoms(path) == {"nimbus": nimbus}
    hooks = nightly_schema()["properties"]["hooks"]["properties"]
    assert [each for each in hooks if f"{each}: " not in text] == []
    assert load_nightly(path) == NightSettings()


def test_hooks_of_a_night(write: Write) -> None:
    assert load_nightly(None) == load_nightly(Path("nowhere.yaml")) == NightSettings()
    assert load_nightly(write("sites.yaml", "sites: {}\n")) == NightSettings()
    path = write(
        "sites.yaml",
        "sites: {}\nnightly:\n  hooks:\n    always: cat\n    failure: |\n      a\n      b\n"
        "    seconds: 5\n",
    )
    hooks = Hooks(commands={"failure": "a\nb\n", "always": "cat"}, seconds=5)
    assert load_nightly(path) == NightSettings(hooks=hooks)
    assert load_sites(path, CLOUDS) == BUILT_IN_SITES


def test_what_else_a_night_does_at_its_end(write: Write) -> None:
    told = "{folder: /srv/a, title: Ours, url: 'https://images.example.org/a/'}"
    text = f"sites: {{}}\nnightly: {{fail_above: low, catalog: {told}}}\n"
    catalog = CatalogSettings(
        folder=Path("/srv/a"), title="Ours", url="https://images.example.org/a"
    )
    settings = NightSettings(fail_above="low", catalog=catalog)
    assert load_nightly(write("sites.yaml", text)) == settings
    given = load_nightly(write("sites.yaml", "nightly: {catalog: {folder: a}}\n")).catalog
    assert given == CatalogSettings(folder=Path("a").absolute(), title="Appliances", url="")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("nightly: []", "1:10: 'nightly' must be a mapping, not a list"),
        ("nightly: {hook: {}}", "1:11: unknown key 'hook' in 'nightly'; did you mean 'hooks'?"),
        (
            "nightly: {hooks: {failed: x}}",
            "1:19: unknown key 'failed' in 'nightly.hooks'; did you mean 'failure'?",
        ),
        (
            "nightly: {hooks: {always: [a]}}",
            "1:27: 'nightly.hooks.always' must be a string, not a list",
        ),
        ("nightly: {hooks: {always: ''}}", "1:27: 'nightly.hooks.always' must not be empty"),
        (
            "nightly: {hooks: {seconds: 0}}",
            "1:28: 'nightly.hooks.seconds' must be at least 1, not 0",
        ),
        (
            "nightly: {fail_above: worst}",
            "1:23: 'nightly.fail_above' must be one of unimportant, low, unknown, medium, high, "
            "not 'worst'",
        ),
        ("nightly: {catalog: {title: x}}", "1:20: 'folder' is missing in 'nightly.catalog'"),
        (
            "nightly: {catalog: {folder: a, url: 'ftp://a'}}",
            "1:37: 'nightly.catalog.url' must be an address such as https://images.example.org"
            ", not 'ftp://a'",
        ),
    ],
)
def test_mistakes_of_hooks(write: Write, text: str, message: str) -> None:
    path = write("sites.yaml", f"{text}\nsites: {{}}\n")
    with pytest.raises(DefinitionError) as caught:
        load_nightly(path)
    assert str(caught.value) == f"sites.yaml:{message}\n{TODO.format('it')}"


def test_the_schema_is_sound_and_takes_what_we_take() -> None:
    schema = sites_schema(clouds())
    validator = jsonschema.Draft202012Validator(schema)
    validator.check_schema(schema)
    validator.validate(yaml.safe_load((REPOSITORY / "sites.example.yaml").read_text()))
    for wrong in ({}, {"cloud": "x"}, {"cloud": "nimbus", "bukket": "x"}):
        assert not validator.is_valid({"sites": {"a": wrong}})
    strict = jsonschema.Draft202012Validator(sites_schema(CLOUDS))
    assert not strict.is_valid({"sites": {"a": {"cloud": "nimbus"}}})
    assert strict.is_valid({"sites": {"a": {"cloud": "nimbus", "sandbox": True}}})
