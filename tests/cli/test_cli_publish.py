"""`publish --build`: a build that was made and booted is sent as it is, whatever changed since."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path

import pytest
from cli_runs import Project, assert_clean
from cli_sites import CANONICAL_ID, S3ID, SECRET, CumulusSite, find_dead_port

ACCOUNT = {"NIMBUS_S3ID": S3ID, "NIMBUS_S3KEY": SECRET, "NIMBUS_CANONICAL_ID": CANONICAL_ID}


@pytest.fixture
def site(shared: Project, tmp_path: Path) -> Iterator[CumulusSite]:
    with CumulusSite(tmp_path / "cumulus") as made:
        made.configure(shared)
        yield made


def test_yesterdays_build_goes_to_its_site_and_to_a_further_one(
    shared: Project, site: CumulusSite, tmp_path: Path
) -> None:
    """The archive cannot be reached, and the definition asks for something else: neither matters to
    a build that is there."""
    shared.define("variant")
    built = shared.succeed("build", "variant", "--site", "hotel", "--json", **site.environ).json
    build, (image,) = built["build"], built["images"]
    before = shared.manifest("variant")
    assert before["publications"] == []

    shared.define("variant", "packages: [nano]\n")
    gone = f"http://127.0.0.1:{find_dead_port()}/debian"
    environ = {**site.environ, **ACCOUNT, "PHANTOM_DEBIAN_MIRROR": gone}
    assert shared.run("publish", "variant", "--site", "hotel", **environ).status != 0
    words = ("publish", "variant", "--build", build)
    done = shared.succeed(*words, "--site", "hotel", "--json", **environ).json
    assert (done["build"], done["stages"]) == (build, [])
    (name,) = site.images()
    assert hashlib.sha256(site.read(name)).hexdigest() == image["sha256"]
    assert (shared.build / "variant" / "latest").readlink() == Path(build)
    after = shared.manifest("variant")
    assert [each["image_id"] for each in after["publications"]] == [name]
    assert {**after, "publications": [], "phantom": before["phantom"]} == before
    assert after["phantom"]["launch_configuration"]["cloud_params"]["hotel"]["image_id"] == name

    sent = site.count_sent()
    shared.succeed(*words, "--site", "hotel", **environ)
    assert site.count_sent() == sent
    assert shared.manifest("variant") == after

    with CumulusSite(tmp_path / "annex") as annex:
        shared.write(
            "sites.yaml",
            f"sites:\n  hotel: {{cloud: nimbus, repository: '{site.host}'}}\n"
            f"  annex: {{cloud: nimbus, repository: '{annex.host}'}}\n",
        )
        further = shared.succeed(*words, "--site", "annex,hotel", "--json", **environ).json
        assert annex.read(name) == site.read(name)
    assert [stage["stage"] for stage in further["stages"]][-2:] == [
        "drivers annex",
        "boot annex bios",
    ]
    assert [each["site"] for each in further["publications"]] == ["annex", "hotel"]
    assert [each["site"] for each in further["images"]] == ["annex", "hotel"]
    manifest = shared.manifest("variant")
    assert set(manifest["phantom"]["launch_configuration"]["cloud_params"]) == {"annex", "hotel"}
    assert manifest["inputs"] == before["inputs"]
    assert_clean(shared)


def test_a_build_that_cannot_be_published_as_it_is(shared: Project, site: CumulusSite) -> None:
    shared.define("variant")
    shared.succeed("build", "variant", "--site", "hotel", **site.environ)
    (file,) = shared.built("variant").glob("*.gz")
    build = file.parent.name

    def fail(*words: str) -> str:
        done = shared.run("publish", "variant", "--site", "hotel", *words, **site.environ)
        assert done.out == "" and done.status in (19, 24)
        return shared.masked(done.error)

    assert fail("--build", "elsewhere/build") == (
        "error: 'elsewhere/build' is no build: behind `publish`, --build names one\n"
        "  do: give the twelve digits that `phantom-image list` shows, or `latest`; the option "
        "that names the folder of builds stands before the command\n"
    )
    assert fail("--build", "0" * 12) == (
        "error: there is no build 'HEX' of 'variant'\n"
        "  do: `phantom-image list` lists the builds, `phantom-image image` makes one\n"
    )
    shared.define("variant", "clouds: {nimbus: {image_name: 'other-{build}.gz'}}\n")
    assert fail("--build", build) == (
        "error: images/variant/appliance.yaml:5:31: build HEX has the image variant-1.0-HEX.gz "
        "for site hotel, and the definition now calls it other-HEX.gz\n"
        "  do: give the definition its old template of names, or publish with `phantom-image "
        "image` what it makes now\n"
    )
    shared.define("variant", "disk_size: 4GiB\n")
    shared.write(
        "sites.yaml",
        f"sites:\n  hotel: {{cloud: nimbus, repository: '{site.host}', root: sda1}}\n",
    )
    assert fail("--build", build) == (
        "error: build HEX was not booted as its site boots it: hotel; the definition, or a program "
        "that makes disks, has changed since, so its image would be that of another build\n"
        "  do: `phantom-image image` builds the appliance as it is now, for these sites too\n"
    )
    site.configure(shared)
    shared.define("variant")
    content = bytearray(file.read_bytes())
    content[5_000_000] ^= 1
    file.unlink()  # the store's file stays whole
    file.write_bytes(content)
    assert fail("--build", build) == (
        f"error: PROJECT/build/variant/HEX/{file.name.replace(build, 'HEX')}: this is no longer "
        "the image that was booted: its bytes have changed\n"
        "  do: `phantom-image image` builds the appliance as it is now\n"
    )
    assert site.images() == {}
