"""The contract of `pipeline.clouds.Cloud`: each cloud's real client and a real local service."""

from __future__ import annotations

import traceback
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path, PurePosixPath

import jsonschema
import pytest
from cli_runs import list_tree
from harness import Harness, Watched, make_booted, make_release

from pipeline.clouds import Cloud, clouds
from pipeline.errors import (
    CredentialsError,
    ImageNameError,
    NameTakenError,
    PhantomError,
    QuotaError,
    SiteUnreachableError,
    UploadError,
)
from pipeline.model import (
    MIB,
    Appliance,
    BootedImage,
    CloudOverride,
    Outlook,
    Release,
    ScratchSource,
    parse_size,
)

DATA = bytes(range(256)) * 4096  # 1 MiB: more than sockets and buffers take at once
OTHER_DATA = DATA[::-1]


def make_appliance(cloud: str, template: str | None = None) -> Appliance:
    return Appliance(
        name="hello-phantom",
        version="1.2.0",
        summary="Says hello",
        source=ScratchSource(element="phantom-debian", release="bookworm", architecture="amd64"),
        clouds={cloud: CloudOverride(image_name=template)},
        definition=Path("images/hello-phantom/appliance.yaml"),
    )


class Bench:
    """An opened cloud and an image for it."""

    def __init__(self, harness: Harness, cloud: Cloud, folder: Path) -> None:
        self.harness, self.cloud, self.folder = harness, cloud, folder
        self.name = cloud.image_name(make_appliance(cloud.site.cloud), "4f2a9c01")
        self.release = make_release(folder, self.name)
        self.booted = self.make(DATA)

    def make(self, data: bytes) -> BootedImage:
        return make_booted(self.folder / f"image-{data[0]}", data, self.cloud.disk)


@pytest.fixture
def bench(harness: Harness, tmp_path: Path) -> Bench:
    return Bench(harness, harness.make_cloud(), tmp_path)


def check_message(error: PhantomError, harness: Harness) -> None:
    """The error says what failed, where, and what to do; it and its traceback show no secret."""
    assert error.what and error.where and error.todo
    shown = str(error) + "".join(traceback.format_exception(error))
    assert not any(secret in shown for secret in harness.secrets)


def test_upload_is_stored_whole_and_found_again(bench: Bench, progress: Watched) -> None:
    with bench.cloud.open(bench.folder):
        bench.cloud.check()
        assert bench.cloud.find(bench.booted.image, bench.release) is None
        made = bench.cloud.upload(bench.booted, bench.release, progress)
        assert bench.harness.read(bench.name) == DATA
        found = bench.cloud.find(bench.booted.image, bench.release)
    assert found is not None
    assert replace(found, published_at="") == replace(made, published_at="")
    assert made.sha256 == bench.booted.image.sha256
    assert (made.site, made.cloud) == (bench.cloud.site.name, bench.cloud.site.cloud)
    assert made.sandbox is False
    assert made.image_id and made.location
    assert made.published_at.endswith("Z") and len(made.published_at) == 20


def test_upload_tells_how_far_it_is(bench: Bench, progress: Watched) -> None:
    with bench.cloud.open(bench.folder):
        bench.cloud.upload(bench.booted, bench.release, progress)
    assert progress.done[-1] == (len(DATA), len(DATA))
    assert [done for done, _ in progress.done] == sorted(done for done, _ in progress.done)
    assert bench.name in progress.steps[0]


def test_second_upload_sends_nothing(bench: Bench, progress: Watched) -> None:
    with bench.cloud.open(bench.folder):
        first = bench.cloud.upload(bench.booted, bench.release, progress)
        before = bench.harness.count_sent()
        second = bench.cloud.upload(bench.booted, bench.release, progress)
        assert bench.harness.count_sent() == before
    assert second.image_id == first.image_id and second.location == first.location


def test_foresight_is_what_happens(bench: Bench, progress: Watched) -> None:
    """Whatever `upload` would do is known before, by calls that change nothing."""

    def foresee(booted: BootedImage, release: Release) -> Outlook:
        before = bench.harness.count_sent()
        outlook = bench.cloud.foresee(booted.image, release, bench.folder)
        assert bench.harness.count_sent() == before
        return outlook

    first = foresee(bench.booted, bench.release)
    assert (first.action, first.bytes) == ("send", len(DATA))
    with bench.cloud.open(bench.folder):
        assert bench.cloud.list() == []
        bench.cloud.upload(bench.booted, bench.release, progress)
    same = foresee(bench.booted, bench.release)
    assert (same.action, same.bytes) == ("reuse", 0)
    renamed = make_release(bench.folder, bench.name.replace("1.2.0", "1.3.0"))
    twin = foresee(bench.booted, renamed)
    assert (twin.action, twin.bytes) == ("copy", 0)
    changed = foresee(bench.make(OTHER_DATA), bench.release)
    assert changed.action == ("send" if bench.harness.replaces else "refuse")


def test_the_same_bytes_under_another_name_are_not_sent_again(
    bench: Bench, progress: Watched
) -> None:
    """As after a new version, or other user-data."""
    renamed = make_release(bench.folder, bench.name.replace("1.2.0", "1.3.0"))
    with bench.cloud.open(bench.folder):
        first = bench.cloud.upload(bench.booted, bench.release, progress)
        before = bench.harness.count_sent()
        second = bench.cloud.upload(bench.booted, renamed, progress)
        assert bench.harness.count_sent() == before
        assert second.image_id != first.image_id
        assert bench.harness.read(renamed.name) == DATA
        bench.cloud.retire(first)
        assert bench.cloud.find(bench.booted.image, renamed) is not None
    assert bench.harness.read(renamed.name) == DATA


def test_settings_are_looked_at_without_network(harness: Harness) -> None:
    assert harness.make_cloud().find_credentials()
    assert list(harness.make_unreachable_cloud().find_risks())  # it speaks without TLS
    with pytest.raises(CredentialsError) as caught:
        harness.make_cloud_without_credentials().find_credentials()
    check_message(caught.value, harness)
    sandbox = harness.make_sandbox_cloud()
    assert (sandbox.find_credentials(), list(sandbox.find_risks())) == ("made by the command", [])


def test_a_sandbox_is_looked_at_without_starting_it(
    harness: Harness, tmp_path: Path, progress: Watched
) -> None:
    cloud = harness.make_sandbox_cloud()
    bench = Bench(harness, cloud, tmp_path)
    folder = tmp_path / "sandbox"
    assert cloud.foresee(bench.booted.image, bench.release, folder).action == "send"
    assert not folder.exists()
    with cloud.open(folder):
        made = cloud.upload(bench.booted, bench.release, progress)
        cloud.publish(made, bench.release, progress)
    before, servers = list_tree(folder), harness.count_servers()
    assert cloud.foresee(bench.booted.image, bench.release, folder).action == "reuse"
    assert harness.count_servers() == servers
    assert list_tree(folder) == before


def test_changed_bytes_replace_the_image_or_are_refused(bench: Bench, progress: Watched) -> None:
    changed = bench.make(OTHER_DATA)
    with bench.cloud.open(bench.folder):
        bench.cloud.upload(bench.booted, bench.release, progress)
        assert bench.cloud.find(changed.image, bench.release) is None
        if not bench.harness.replaces:
            before = bench.harness.count_sent()
            with pytest.raises(NameTakenError) as caught:
                bench.cloud.upload(changed, bench.release, progress)
            check_message(caught.value, bench.harness)
            assert bench.harness.count_sent() == before
            assert bench.harness.read(bench.name) == DATA
            return
        bench.cloud.upload(changed, bench.release, progress)
        assert bench.cloud.find(bench.booted.image, bench.release) is None
        assert bench.cloud.find(changed.image, bench.release) is not None
    assert bench.harness.read(bench.name) == OTHER_DATA


def test_publish_is_safe_to_repeat(bench: Bench, progress: Watched) -> None:
    with bench.cloud.open(bench.folder):
        made = bench.cloud.upload(bench.booted, bench.release, progress)
        once = bench.cloud.publish(made, bench.release, progress)
        twice = bench.cloud.publish(once[0], bench.release, progress)
    assert once == twice == (made,)


def test_publish_of_what_is_not_there_is_an_error(bench: Bench, progress: Watched) -> None:
    with bench.cloud.open(bench.folder):
        made = bench.cloud.upload(bench.booted, bench.release, progress)
        bench.cloud.retire(made)
        with pytest.raises(UploadError) as caught:
            bench.cloud.publish(made, bench.release, progress)
    check_message(caught.value, bench.harness)


def test_retire_removes_the_image_and_is_safe_to_repeat(bench: Bench, progress: Watched) -> None:
    with bench.cloud.open(bench.folder):
        made = bench.cloud.upload(bench.booted, bench.release, progress)
        bench.cloud.publish(made, bench.release, progress)
        bench.cloud.retire(made)
        assert bench.cloud.find(bench.booted.image, bench.release) is None
        assert bench.cloud.list() == []
        bench.cloud.retire(made)
    assert bench.harness.read(bench.name) is None


def test_list_names_the_images_and_nothing_else(bench: Bench, progress: Watched) -> None:
    with bench.cloud.open(bench.folder):
        assert bench.cloud.list() == []
        made = bench.cloud.upload(bench.booted, bench.release, progress)
        bench.cloud.publish(made, bench.release, progress)
        listed = bench.cloud.list()
    assert [each.image_id for each in listed] == [made.image_id]
    assert listed[0].location == made.location


def test_check_leaves_nothing_behind(bench: Bench) -> None:
    with bench.cloud.open(bench.folder):
        bench.cloud.check()
        bench.cloud.check()
        assert bench.cloud.list() == []


@pytest.mark.parametrize("verb", ["check", "upload"])
def test_wrong_secret(harness: Harness, tmp_path: Path, progress: Watched, verb: str) -> None:
    cloud = harness.make_cloud_with_wrong_secret()
    bench = Bench(harness, cloud, tmp_path)
    verbs: dict[str, Callable[[], object]] = {
        "check": cloud.check,
        "upload": lambda: cloud.upload(bench.booted, bench.release, progress),
    }
    with cloud.open(tmp_path), pytest.raises(CredentialsError) as caught:
        verbs[verb]()
    check_message(caught.value, harness)
    assert harness.count_sent() == 0  # a cheap call finds out before the image is sent


def test_no_credentials(harness: Harness, tmp_path: Path) -> None:
    cloud = harness.make_cloud_without_credentials()
    with pytest.raises(CredentialsError) as caught, cloud.open(tmp_path):
        pass
    check_message(caught.value, harness)


@pytest.mark.parametrize("verb", ["check", "upload"])
def test_unreachable(harness: Harness, tmp_path: Path, progress: Watched, verb: str) -> None:
    cloud = harness.make_unreachable_cloud()
    bench = Bench(harness, cloud, tmp_path)
    verbs: dict[str, Callable[[], object]] = {
        "check": cloud.check,
        "upload": lambda: cloud.upload(bench.booted, bench.release, progress),
    }
    with cloud.open(tmp_path), pytest.raises(SiteUnreachableError) as caught:
        verbs[verb]()
    check_message(caught.value, harness)


def test_upload_cut_once_is_tried_again(bench: Bench, progress: Watched) -> None:
    with bench.cloud.open(bench.folder):
        bench.harness.cut_uploads(1)
        bench.cloud.upload(bench.booted, bench.release, progress)
    assert bench.harness.read(bench.name) == DATA
    # A client that repairs sends one block again in a moment: that is not worth a message.
    assert bench.harness.repairs or any("cut" in step for step in progress.steps)


def test_upload_always_cut_keeps_the_old_image(bench: Bench, progress: Watched) -> None:
    changed = bench.make(OTHER_DATA)
    name = bench.name if bench.harness.replaces else f"{bench.name}-changed"
    release = make_release(bench.folder, name)
    with bench.cloud.open(bench.folder):
        bench.cloud.upload(bench.booted, bench.release, progress)
        bench.harness.cut_uploads(None)
        with pytest.raises(UploadError) as caught:
            bench.cloud.upload(changed, release, progress)
        assert bench.harness.read(bench.name) == DATA
        bench.harness.cut_uploads(0)
        # The same command again, as the message advises, completes the upload.
        bench.cloud.upload(changed, release, progress)
    assert bench.harness.read(name) == OTHER_DATA
    check_message(caught.value, bench.harness)
    assert "again" in (caught.value.todo or "")


def test_damaged_on_the_way_is_noticed(bench: Bench, progress: Watched) -> None:
    with bench.cloud.open(bench.folder):
        bench.harness.damage_uploads(1)
        if bench.harness.repairs:
            bench.cloud.upload(bench.booted, bench.release, progress)
            assert bench.harness.read(bench.name) == DATA
            return
        with pytest.raises(UploadError) as caught:
            bench.cloud.upload(bench.booted, bench.release, progress)
    assert bench.harness.read(bench.name) is None
    check_message(caught.value, bench.harness)


def test_quota(bench: Bench, progress: Watched) -> None:
    with bench.cloud.open(bench.folder):
        bench.harness.set_quota(len(DATA) - 1)
        with pytest.raises(QuotaError) as caught:
            bench.cloud.upload(bench.booted, bench.release, progress)
        assert bench.harness.count_sent() <= len(DATA)  # another attempt would find no more room
    check_message(caught.value, bench.harness)


@pytest.mark.parametrize("template", ["{nmae}.gz", "{name.__class__}", "{", "{}", "{0}"])
def test_template_with_unknown_field(bench: Bench, template: str) -> None:
    with pytest.raises(ImageNameError) as caught:
        bench.cloud.image_name(make_appliance(bench.cloud.site.cloud, template), "4f2a9c01")
    check_message(caught.value, bench.harness)
    assert caught.value.where == "images/hello-phantom/appliance.yaml"


def test_image_name_is_of_the_build(bench: Bench) -> None:
    appliance = make_appliance(bench.cloud.site.cloud)
    assert bench.name == bench.cloud.image_name(appliance, "4f2a9c01")
    assert bench.name != bench.cloud.image_name(appliance, "4f2a9c02")


def test_sandbox_runs_the_same_verbs_and_keeps_its_objects(
    harness: Harness, tmp_path: Path, progress: Watched
) -> None:
    cloud = harness.make_sandbox_cloud()
    bench = Bench(harness, cloud, tmp_path)
    with cloud.open(tmp_path / "sandbox"):
        cloud.check()
        uploaded = cloud.upload(bench.booted, bench.release, progress)
        (made,) = cloud.publish(uploaded, bench.release, progress)
    assert made.sandbox is True
    assert str(tmp_path) not in made.location and "127.0.0.1" not in made.location
    with harness.make_sandbox_cloud().open(tmp_path / "elsewhere"):
        pass
    again = harness.make_sandbox_cloud()
    with again.open(tmp_path / "sandbox"):
        assert [each.location for each in again.list()] == [made.location]
        assert again.find(bench.booted.image, bench.release) is not None
        again.retire(made)
        assert again.list() == []


def test_sandbox_ends_when_an_error_passes(harness: Harness, tmp_path: Path) -> None:
    cloud = harness.make_sandbox_cloud()
    before = harness.count_servers()
    with pytest.raises(ZeroDivisionError), cloud.open(tmp_path / "sandbox"):
        assert harness.count_servers() > before
        _ = 1 / 0
    assert harness.count_servers() == before


def test_leftovers_of_a_good_run_are_none(bench: Bench, progress: Watched) -> None:
    with bench.cloud.open(bench.folder):
        bench.cloud.check()
        made = bench.cloud.upload(bench.booted, bench.release, progress)
        bench.cloud.publish(made, bench.release, progress)
        assert list(bench.cloud.find_leftovers()) == []


def test_any_disk_fits_unless_the_site_says_otherwise(bench: Bench) -> None:
    bench.cloud.check_size(2 << 40)


def test_disk_and_machines_are_complete(harness: Harness) -> None:
    cloud = harness.make_cloud()
    assert cloud.disk.suffix.startswith(".")
    names = [each.name for each in cloud.machines]
    assert names and len(set(names)) == len(names)
    for machine in cloud.machines:
        assert machine.memory >= 64 * MIB > parse_size("1MiB")
        assert all(edit.path.is_absolute() for edit in machine.edits)
        assert all(isinstance(edit.path, PurePosixPath) for edit in machine.edits)


@pytest.mark.parametrize("cloud", sorted(clouds()))
def test_site_schema_is_one_and_says_what_everything_is(cloud: str) -> None:
    schema = dict(clouds()[cloud].site_schema)
    jsonschema.Draft202012Validator.check_schema(schema)
    assert schema["additionalProperties"] is False
    properties = schema["properties"]
    assert isinstance(properties, dict)
    assert all(each.get("description") for each in properties.values())
    assert not any("secret" in name or "s3key" in name for name in properties)
