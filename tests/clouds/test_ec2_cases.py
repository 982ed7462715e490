"""EC2's failures: each loses nothing, and gives an exit status and a message with what to do."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from ec2_kit import Kit
from harness import Watched, find_free_port

from pipeline.clouds.ec2.cloud import Ec2
from pipeline.clouds.ec2.rights import make_probes
from pipeline.clouds.ec2.settings import resolve_settings
from pipeline.errors import (
    CredentialsError,
    CredentialsExpiredError,
    DefinitionError,
    ImportRoleError,
    PhantomError,
    QuotaError,
    RegionError,
    RightsError,
    SharingBlockedError,
    SiteUnreachableError,
    UploadError,
    UsageError,
    VolumeTooSmallError,
)
from pipeline.model import Site
from pipeline.tools.aws import Account, Outage
from pipeline.tools.aws_session import make_session

DOCUMENT = Path(__file__).parents[2] / "docs/ec2.md"
WAYS = (
    "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE, or name a profile of "
    "~/.aws/config with `profile:` of the site; `aws configure` writes one"
)
AGAIN = "then run the same command again: it goes on where it was"
EVERYTHING: dict[str, Any] = {
    "copy_to": ["eu-west-1"],
    "share_with": ["all"],
    "deprecate_after": "730d",
}
IMPORT: dict[str, Any] = {"method": "import", "bucket": "example-images"}


def check(kit: Kit, **options: Any) -> None:
    with kit.open(**options) as cloud:
        cloud.check()


def fail(kit: Kit, kind: type[PhantomError], **options: Any) -> PhantomError:
    with pytest.raises(kind) as caught:
        check(kit, **options)
    return caught.value


# ---- credentials


def test_no_credentials_at_all(kit: Kit, tmp_path: Path) -> None:
    cloud = kit.ec2.make_ec2({"HOME": str(tmp_path)})
    with pytest.raises(CredentialsError) as caught, cloud.open(tmp_path):
        pass
    assert str(caught.value) == (
        "site virginia: no AWS credentials: none of the usual places has any\n  do: " + WAYS
    )
    assert caught.value.exit_code == 30


def test_half_of_the_credentials(kit: Kit, tmp_path: Path) -> None:
    cloud = kit.ec2.make_ec2({"AWS_ACCESS_KEY_ID": "AKIDEXAMPLE"})
    with pytest.raises(CredentialsError) as caught, cloud.open(tmp_path):
        pass
    assert caught.value.what == (
        "no AWS credentials: Partial credentials found in env, missing: AWS_SECRET_ACCESS_KEY"
    )


def test_profile_that_is_not_there(kit: Kit, tmp_path: Path) -> None:
    cloud = kit.ec2.make_ec2({**kit.ec2.environ, "HOME": str(tmp_path)}, profile="images")
    with pytest.raises(CredentialsError) as caught, cloud.open(tmp_path):
        pass
    assert str(caught.value) == (
        "site virginia: no AWS credentials: The config profile (images) could not be found\n"
        f"  do: write profile images to ~/.aws/config, or change the site's; or {WAYS}"
    )


def write_profiles(home: Path, kit: Kit) -> None:
    (home / ".aws").mkdir()
    (home / ".aws/credentials").write_text(
        "[default]\naws_access_key_id = AKIDNOBODY\naws_secret_access_key = none\n"
        f"[images]\naws_access_key_id = {kit.ec2.server.account.key}\n"
        f"aws_secret_access_key = {kit.ec2.server.account.secret}\n"
    )


def test_profile_stands_above_keys_in_the_environment(kit: Kit, tmp_path: Path) -> None:
    write_profiles(tmp_path, kit)
    environ = {
        "HOME": str(tmp_path),
        "AWS_ACCESS_KEY_ID": "AKIDOTHER",
        "AWS_SECRET_ACCESS_KEY": "other",
    }
    cloud = kit.ec2.make_ec2(environ, profile="images")
    with cloud.open(tmp_path):
        cloud.check()


def test_profile_of_the_environment(kit: Kit, tmp_path: Path) -> None:
    write_profiles(tmp_path, kit)
    cloud = kit.ec2.make_ec2({"HOME": str(tmp_path), "AWS_PROFILE": "images"})
    with cloud.open(tmp_path):
        cloud.check()


def test_process_environment_as_all_aws_tools_read_it(
    kit: Kit, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_profiles(tmp_path, kit)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    assert Account(make_session("images")).credentials().access_key == kit.ec2.server.account.key
    monkeypatch.setenv("AWS_PROFILE", "images")
    assert Account(make_session()).credentials().access_key == kit.ec2.server.account.key
    monkeypatch.setenv("AWS_PROFILE", "none")
    with pytest.raises(CredentialsError), Ec2(kit.ec2.make_site()).open(tmp_path):
        pass


def test_wrong_secret(kit: Kit, tmp_path: Path) -> None:
    cloud = kit.ec2.make_ec2({**kit.ec2.environ, "AWS_SECRET_ACCESS_KEY": "wr0ng-secret"})
    with cloud.open(tmp_path), pytest.raises(CredentialsError) as caught:
        cloud.check()
    assert " refuses the credentials: SignatureDoesNotMatch: " in caught.value.what
    assert caught.value.todo == WAYS


def test_expired_before_the_build(kit: Kit) -> None:
    kit.ec2.server.expire_credentials()
    error = fail(kit, CredentialsExpiredError)
    assert error.what.startswith("the AWS credentials have expired: ")
    assert error.todo == f"get new ones (such as with `aws sso login`), {AGAIN}"
    assert error.exit_code == 35


def test_expired_in_the_middle(kit: Kit) -> None:
    """The blocks already sent stay: with new credentials, the same snapshot is completed."""
    kit.ec2.faults.on("ebs:CompleteSnapshot", kit.ec2.server.expire_credentials)
    kit.ec2.faults.refuse("ebs:CompleteSnapshot", "ExpiredTokenException", status=403)
    with pytest.raises(CredentialsExpiredError):
        kit.upload()
    kit.ec2.server.renew_credentials()
    kit.upload()
    assert kit.ec2.server.count("ebs:StartSnapshot", ok=True) == 1
    assert not kit.ec2.server.costs()


# ---- rights


def allowed_actions(kit: Kit, **options: Any) -> set[str]:
    settings = resolve_settings(kit.ec2.make_site(**options))
    return {
        f"ec2:{operation}"
        for region in settings.regions
        for operation, _ in make_probes(settings, region)
    }


@pytest.mark.parametrize(
    "action",
    [
        "ec2:DescribeRegions",
        "ec2:DescribeImages",
        "ec2:DescribeSnapshots",
        "ec2:CreateTags",
        "ec2:DeleteSnapshot",
        "ec2:DeregisterImage",
        "ec2:DescribeImageReferences",
        "ec2:DescribeInstances",
        "ec2:DescribeLaunchTemplateVersions",
        "ec2:RegisterImage",
        "ec2:ModifyImageAttribute",
        "ec2:ModifySnapshotAttribute",
        "ec2:EnableImageDeprecation",
        "ec2:GetImageBlockPublicAccessState",
        "ec2:GetSnapshotBlockPublicAccessState",
        "ebs:StartSnapshot",
        "ebs:PutSnapshotBlock",
        "ebs:CompleteSnapshot",
    ],
)
def test_missing_right_is_named_before_the_build(kit: Kit, action: str) -> None:
    kit.ec2.faults.deny(action)
    error = fail(kit, RightsError, **EVERYTHING)
    assert str(error) == (
        f"site virginia: the account may not call {action} in us-east-1\n"
        f"  do: let a policy of the user or role allow {action}; docs/ec2.md has the whole policy "
        "that a site needs"
    )
    assert error.exit_code == 36
    assert not kit.ec2.server.snapshots() and not kit.ec2.server.images()


def test_missing_right_in_a_further_region(kit: Kit) -> None:
    kit.ec2.faults.deny("ec2:CopyImage", region="eu-west-1")
    error = fail(kit, RightsError, **EVERYTHING)
    assert error.what == "the account may not call ec2:CopyImage in eu-west-1"


@pytest.mark.parametrize("action", ["ec2:ModifyImageAttribute", "ec2:EnableImageDeprecation"])
def test_right_that_the_site_does_not_need(kit: Kit, action: str) -> None:
    kit.ec2.faults.deny(action)
    check(kit)


def test_check_changes_nothing(kit: Kit) -> None:
    kit.ec2.server.add_bucket("example-images")
    kit.ec2.server.add_role()
    check(kit, **EVERYTHING)
    check(kit, **IMPORT)
    assert not kit.ec2.server.costs()
    assert not kit.ec2.server.images()
    changing = re.compile("^ec2:(Register|Copy|Modify|Delete|Deregister|Create|Enable|Import)")
    assert all(each.dry_run for each in kit.ec2.server.requests if changing.match(each.action))


def test_missing_right_in_the_middle(kit: Kit) -> None:
    kit.ec2.faults.deny("ec2:RegisterImage")
    with pytest.raises(RightsError) as caught:
        kit.upload()
    assert caught.value.what == "the account may not call ec2:RegisterImage in us-east-1"
    assert kit.ec2.server.count("ec2:RegisterImage") == 1  # not repeated
    kit.ec2.faults.clear()
    kit.upload()
    assert not kit.ec2.server.costs()


def read_policy() -> set[str]:
    """The actions of the first policy in the documentation."""
    found = re.search(r"```json\n(.*?)```", DOCUMENT.read_text(), re.DOTALL)
    assert found is not None
    statements = json.loads(found[1])["Statement"]
    listed = [each["Action"] for each in statements]
    actions = [one for each in listed for one in ([each] if isinstance(each, str) else each)]
    assert len(actions) == len(set(actions))
    return set(actions)


def test_documented_policy_is_what_is_called(kit: Kit, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every operation of a cloud, with both ways to upload; the policy has nothing else."""
    called: set[str] = set()
    monkeypatch.setattr(Account, "note", lambda _, action: called.add(action))
    kit.ec2.server.add_bucket("example-images")
    kit.ec2.server.add_role()
    for options in (EVERYTHING, {**IMPORT, "copy_to": ["eu-west-1"]}):
        with kit.open(**options) as cloud:
            cloud.check()
            made = cloud.upload(kit.booted, kit.release, kit.progress)
            published = cloud.publish(made, kit.release, kit.progress)
        cloud.foresee(kit.booted.image, kit.release, kit.folder)
        # On another host, which has no records.
        elsewhere = replace(kit.release, folder=kit.folder / "elsewhere" / "build")
        with kit.open(**options) as cloud:
            cloud.find(kit.booted.image, elsewhere)
            cloud.list()
            cloud.find_leftovers()
            for each in published:
                cloud.retire(each)
    # This is called only to clean up after a fault.
    called |= {"s3:AbortMultipartUpload"}
    policy = read_policy()
    keys = {each for each in policy if each.startswith("kms:")}  # EC2 calls these on our behalf
    assert called - {"sts:GetCallerIdentity"} == policy - keys
    assert keys == {
        "kms:CreateGrant",
        "kms:Decrypt",
        "kms:DescribeKey",
        "kms:GenerateDataKeyWithoutPlaintext",
        "kms:ReEncrypt*",
    }


# ---- regions


def test_region_that_does_not_exist(kit: Kit) -> None:
    error = fail(kit, RegionError, region="eu-centrall-1")
    assert str(error) == (
        "sites.yaml:3:3: there is no region 'eu-centrall-1'; did you mean 'eu-central-1'?\n"
        "  do: correct `region` or `copy_to` of the site; `aws ec2 describe-regions` lists all"
    )
    assert error.exit_code == 37


def test_further_region_that_does_not_exist(kit: Kit) -> None:
    error = fail(kit, RegionError, copy_to=["eu-west-1", "xx-nowhere-9"])
    assert error.what == "there is no region 'xx-nowhere-9'"


@pytest.mark.parametrize("options", [{"region": "ap-east-1"}, {"copy_to": ["ap-east-1"]}])
def test_region_that_is_not_enabled(kit: Kit, options: dict[str, Any]) -> None:
    error = fail(kit, RegionError, **options)
    assert str(error) == (
        "sites.yaml:3:3: region ap-east-1 is not enabled for the account\n"
        "  do: enable it in the account's settings, or leave it out of the site's options"
    )


def test_made_up_region_of_amazon_has_no_address(kit: Kit, tmp_path: Path) -> None:
    """Without an endpoint in the site, we tell an unknown region from a dead network."""
    site = Site(name="s", cloud="ec2", options={"region": "eu-centrall-1"}, where="sites.yaml:3:3")
    environ = {**kit.ec2.environ}
    cloud = Ec2(site, environ=environ, pause=lambda _: None)
    with cloud.open(tmp_path), pytest.raises(RegionError) as caught:
        cloud.check()
    assert caught.value.what == ("there is no region 'eu-centrall-1'; did you mean 'eu-central-1'?")


# ---- the network


def test_endpoint_that_does_not_answer(kit: Kit) -> None:
    port = find_free_port()
    error = fail(kit, SiteUnreachableError, endpoint=f"http://127.0.0.1:{port}")
    assert error.what.startswith(f"http://127.0.0.1:{port} does not answer: Could not connect")
    assert error.todo == (
        "look at this host's network, proxy and firewall, and compare `endpoint` of the site; "
        + AGAIN
    )
    assert error.exit_code == 31


@pytest.mark.parametrize("action", ["ec2:RegisterImage", "ec2:DescribeImages", "ec2:CopyImage"])
def test_throttling_and_faults_of_the_service_are_waited_out(kit: Kit, action: str) -> None:
    kit.ec2.faults.throttle(action, times=4)
    kit.ec2.faults.fail(action, times=2, skip=4)
    kit.ec2.faults.reset(action, times=2, skip=6)
    assert len(kit.publish(copy_to=["eu-west-1"])) == 2
    assert len(kit.ec2.server.images()) == 2


def test_network_gone_for_good_after_the_blocks(kit: Kit) -> None:
    def leave() -> None:
        kit.ec2.faults.reset("e*:*", times=None)

    kit.ec2.faults.on("ebs:CompleteSnapshot", leave)
    with pytest.raises((UploadError, SiteUnreachableError)) as caught:
        kit.upload()
    assert "again" in (caught.value.todo or "")
    kit.ec2.faults.clear()
    kit.upload()
    assert kit.ec2.server.count("ebs:StartSnapshot", ok=True) == 1
    assert not kit.ec2.server.costs()


def test_service_that_stays_busy(kit: Kit) -> None:
    kit.ec2.faults.throttle("ec2:RegisterImage", times=None)
    with pytest.raises(SiteUnreachableError) as caught:
        kit.upload()
    assert str(caught.value) == (
        "site virginia: ec2:RegisterImage does not get through in us-east-1: RequestLimitExceeded: "
        f"Rate exceeded\n  do: wait a while, {AGAIN}"
    )


# ---- quotas, sharing, size


@pytest.mark.parametrize(
    ("action", "code"),
    [
        ("ebs:StartSnapshot", None),
        ("ec2:RegisterImage", None),
        ("ec2:CopyImage", "SnapshotCopyLimitExceeded"),
    ],
)
def test_quota(kit: Kit, action: str, code: str | None) -> None:
    kit.ec2.faults.quota(action, code)
    with pytest.raises(QuotaError) as caught:
        kit.publish(copy_to=["eu-west-1"])
    region = "eu-west-1" if action == "ec2:CopyImage" else "us-east-1"
    assert caught.value.what.startswith(f"a quota of the account is reached in {region} ({action}:")
    assert "phantom-image clean --site virginia" in (caught.value.todo or "")
    assert caught.value.exit_code == 34
    assert kit.ec2.server.count(action) == 1
    kit.ec2.faults.clear()
    assert len(kit.publish(copy_to=["eu-west-1"])) == 2
    assert not kit.ec2.server.costs()


def test_public_sharing_that_is_blocked_is_told_before_the_build(kit: Kit) -> None:
    kit.ec2.server.forbid_public("eu-west-1")
    error = fail(kit, SharingBlockedError, **EVERYTHING)
    assert str(error) == (
        "site virginia: images cannot be made public in eu-west-1: the account blocks it "
        "(block-new-sharing)\n"
        "  do: turn off `Block public access for AMIs` (and for snapshots) in the EC2 settings of "
        "the region, or leave `all` out of `share_with`"
    )
    assert error.exit_code == 39


def test_public_sharing_that_is_blocked_meanwhile(kit: Kit) -> None:
    kit.ec2.server.forbid_public()
    with pytest.raises(SharingBlockedError) as caught:
        kit.publish(share_with=["all"])
    assert caught.value.what.startswith("images cannot be made public in us-east-1")
    assert len(kit.ec2.server.images()) == 1


def test_public_snapshots_alone_are_blocked(kit: Kit) -> None:
    kit.ec2.server.forbid_public()
    kit.ec2.server.state.regions["us-east-1"].image_block_public = False
    with pytest.raises(SharingBlockedError):
        kit.publish(share_with=["all"])


def test_blocked_public_snapshots_are_told_before_the_build(kit: Kit) -> None:
    kit.ec2.server.forbid_public()
    kit.ec2.server.state.regions["us-east-1"].image_block_public = False
    error = fail(kit, SharingBlockedError, share_with=["all"])
    assert error.what.endswith("in us-east-1: the account blocks it (block-all-sharing)")


def test_image_larger_than_the_volume(kit: Kit) -> None:
    image = kit.booted.image
    object.__setattr__(image, "disk_bytes", 3 << 30)
    with pytest.raises(VolumeTooSmallError) as caught:
        kit.upload(volume_size="2GiB")
    assert caught.value.exit_code == 41
    assert not kit.ec2.server.snapshots()


# ---- import


@pytest.fixture
def importing(kit: Kit) -> Kit:
    kit.ec2.server.add_bucket("example-images")
    kit.ec2.server.add_role()
    return kit


def test_import(importing: Kit) -> None:
    kit = importing
    with kit.open(**IMPORT) as cloud:
        cloud.check()
    made = kit.upload(**IMPORT)
    snapshot_id = made.location.rsplit("/", 1)[1]
    assert kit.ec2.server.compare(snapshot_id, kit.booted.image.file) == []
    assert kit.ec2.server.snapshot(snapshot_id).tags["phantom:build"] == "4f2a9c01"
    assert kit.ec2.server.count("ebs:StartSnapshot", ok=True) == 0
    assert not kit.ec2.server.costs()
    with kit.open(**IMPORT) as cloud:
        assert cloud.find_leftovers() == []
        assert cloud.find(kit.booted.image, kit.release) == made


def test_import_in_parts(importing: Kit, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipeline.clouds.ec2.vm_import._PART", 5 << 20)
    kit = importing
    kit.booted = kit.make(bytes(range(256)) * (12 << 12))
    kit.ec2.faults.fail("s3:UploadPart", times=1)
    made = kit.upload(**IMPORT)
    assert kit.ec2.server.compare(made.location.rsplit("/", 1)[1], kit.booted.image.file) == []
    # Only the part that failed was sent again.
    assert kit.ec2.server.count("s3:UploadPart", ok=True) == 3
    assert kit.ec2.server.count("s3:CreateMultipartUpload") == 1
    assert not kit.ec2.server.costs()


def test_import_goes_on_with_its_task(importing: Kit) -> None:
    kit = importing
    kit.ec2.faults.deny("ec2:DescribeImportSnapshotTasks")
    with pytest.raises(RightsError):
        kit.upload(**IMPORT)
    kit.ec2.faults.clear()
    kit.upload(**IMPORT)
    assert len(kit.ec2.server.state.regions["us-east-1"].imports) == 1
    assert len(kit.ec2.server.snapshots()) == 1
    assert not kit.ec2.server.costs()


def test_import_that_failed_is_tried_again(importing: Kit) -> None:
    kit = importing
    kit.ec2.faults.import_error(2)
    kit.upload(**IMPORT)
    assert not kit.ec2.server.costs()
    kit.booted = kit.make(bytes(range(1, 256)) * 4096)
    object.__setattr__(kit.release, "name", "hello-again")
    kit.ec2.faults.import_error(3)
    with pytest.raises(UploadError) as caught:
        kit.upload(**IMPORT)
    assert str(caught.value) == (
        "site virginia: EC2 did not import the snapshot: ClientError: Disk validation failed\n"
        "  do: run the same command again; if it happens again, try `method: ebs-direct`"
    )
    assert not kit.ec2.server.costs()


@pytest.mark.parametrize("message", ["Disk validation failed", "The service role is wrong"])
def test_import_that_failed_for_good_works_once_it_is_mended(importing: Kit, message: str) -> None:
    """EC2 answers a repeated token with the failed task, so we need a new token."""
    kit = importing

    def spoil() -> None:
        for task in kit.ec2.server.state.regions["us-east-1"].imports.values():
            task.pending, task.status, task.message = None, "deleted", message

    kit.ec2.faults.on("ec2:DescribeImportSnapshotTasks", spoil, times=None)
    for _ in range(2):
        with pytest.raises((UploadError, ImportRoleError)) as caught:
            kit.upload(**IMPORT)
        assert message in caught.value.what
    kit.ec2.faults.clear()
    kit.upload(**IMPORT)
    assert not kit.ec2.server.costs()
    assert not list(kit.release.folder.glob("*.import"))


class Stopping(Watched):
    """Raises KeyboardInterrupt when the first bytes are sent."""

    def advance(self, done: int, total: int | None) -> None:
        raise KeyboardInterrupt


@pytest.mark.parametrize("size", [4 << 20, 12 << 20], ids=["whole", "in parts"])
def test_interrupted_while_the_object_is_sent(
    importing: Kit, monkeypatch: pytest.MonkeyPatch, size: int
) -> None:
    monkeypatch.setattr("pipeline.clouds.ec2.vm_import._PART", 5 << 20)
    kit = importing
    kit.booted = kit.make(bytes(range(256)) * (size >> 8))
    kit.progress = Stopping()
    with pytest.raises(KeyboardInterrupt):
        kit.upload(**IMPORT)
    assert kit.ec2.server.count("ec2:ImportSnapshot") == 0
    assert not kit.ec2.server.costs()
    kit.progress = Watched()
    assert kit.upload(**IMPORT)


def test_interrupted_while_a_task_reads_the_object(importing: Kit) -> None:
    class Interrupted(Watched):
        def step(self, text: str, *, seconds: float | None = None) -> None:
            if text.startswith("EC2 imports"):
                raise KeyboardInterrupt

    kit = importing
    kit.progress = Interrupted()
    with pytest.raises(KeyboardInterrupt):
        kit.upload(**IMPORT)
    assert len(kit.ec2.server.costs().objects) == 1
    kit.progress = Watched()
    kit.upload(**IMPORT)
    assert kit.ec2.server.count("ec2:ImportSnapshot") == 2
    assert len(kit.ec2.server.state.regions["us-east-1"].imports) == 1
    assert not kit.ec2.server.costs()


def test_a_long_upload_is_no_outage(importing: Kit, monkeypatch: pytest.MonkeyPatch) -> None:
    """An outage counts from the last bytes that were sent, not from the start."""
    now = [0.0]

    class Slow(Watched):
        def advance(self, done: int, total: int | None) -> None:
            now[0] += 3600

    def make_outage() -> Outage:
        return Outage(clock=lambda: now[0])

    monkeypatch.setattr("pipeline.clouds.ec2.vm_import.Outage", make_outage)
    monkeypatch.setattr("pipeline.tools.aws.PART_ATTEMPTS", 1)
    kit = importing
    kit.progress = Slow()
    kit.ec2.faults.fail("s3:PutObject", times=1)
    assert kit.upload(**IMPORT)
    assert kit.ec2.server.count("s3:PutObject") == 2


def test_snapshot_of_an_import_that_nobody_waited_for(importing: Kit) -> None:
    """The import service gives its snapshots no tags; the task's tags prove whose they are."""
    kit = importing
    kit.ec2.faults.deny("ec2:DescribeImportSnapshotTasks")
    with pytest.raises(RightsError):
        kit.upload(**IMPORT)
    kit.ec2.faults.clear()
    kit.ec2.server.client("ec2").describe_import_snapshot_tasks()  # each call brings the import on
    kit.ec2.server.client("ec2").describe_import_snapshot_tasks()
    (snapshot,) = kit.ec2.server.snapshots()
    assert not snapshot.tags
    foreign = kit.ec2.server.client("ebs").start_snapshot(VolumeSize=1)["SnapshotId"]
    with kit.open(bucket="example-images") as cloud:  # the site no longer has `method: import`
        found = cloud.find_leftovers()
        assert [(each.kind, each.id) for each in found] == [
            ("unused snapshot", snapshot.id),
            ("S3 object", found[1].id),
        ]
        with pytest.raises(UsageError):
            cloud.remove_leftover(replace(found[0], id=foreign))
        for each in found:
            cloud.remove_leftover(each)
        assert cloud.find_leftovers() == []
    assert [each.id for each in kit.ec2.server.snapshots()] == [foreign]


@pytest.mark.parametrize("verb", ["check", "upload"])
def test_import_role_is_missing(kit: Kit, verb: str) -> None:
    kit.ec2.server.add_bucket("example-images")
    with pytest.raises(ImportRoleError) as caught:
        if verb == "check":
            check(kit, **IMPORT)
        else:
            kit.upload(**IMPORT)
    assert caught.value.what.startswith("the import service cannot use the role vmimport: ")
    assert caught.value.todo == (
        "make the role, and let it read the bucket example-images: docs/ec2.md has both policies"
    )
    assert caught.value.exit_code == 40
    assert not kit.ec2.server.costs()


@pytest.mark.parametrize("where", ["nowhere", "eu-west-1"])
def test_bucket_that_is_not_in_the_region(kit: Kit, where: str) -> None:
    kit.ec2.server.add_role()
    if where != "nowhere":
        kit.ec2.server.add_bucket("example-images", where)
    error = fail(kit, DefinitionError, **IMPORT)
    assert str(error) == (
        "sites.yaml:3:3: site virginia: there is no bucket example-images in us-east-1\n"
        "  do: make it there, or correct `bucket` of the site"
    )


@pytest.mark.parametrize(
    "action",
    [
        "s3:PutObject",
        "s3:GetObject",
        "s3:DeleteObject",
        "s3:ListBucket",
        "s3:ListBucketMultipartUploads",
        "s3:AbortMultipartUpload",
        "ec2:ImportSnapshot",
    ],
)
def test_missing_right_of_import(importing: Kit, action: str) -> None:
    importing.ec2.faults.deny(action)
    error = fail(importing, RightsError, **IMPORT)
    assert error.what == f"the account may not call {action} in us-east-1"


def test_leftovers_of_a_killed_import(importing: Kit) -> None:
    kit = importing
    s3 = kit.ec2.server.client("s3")
    s3.put_object(Bucket="example-images", Key="phantom-image/virginia/b/x.raw", Body=b"x")
    s3.put_object(Bucket="example-images", Key="phantom-image/other/b/x.raw", Body=b"x")
    s3.put_object(Bucket="example-images", Key="letters/x", Body=b"x")
    s3.create_multipart_upload(Bucket="example-images", Key="phantom-image/virginia/b/y.raw")
    kit.ec2.faults.complete_after(100)
    tags = {"phantom:pipeline": "phantom-image", "phantom:site": "virginia"}
    kit.ec2.server.client("ec2").import_snapshot(
        RoleName="vmimport",
        DiskContainer={
            "Format": "RAW",
            "UserBucket": {
                "S3Bucket": "example-images",
                "S3Key": "phantom-image/virginia/b/x.raw",
            },
        },
        TagSpecifications=[
            {
                "ResourceType": "import-snapshot-task",
                "Tags": [
                    *({"Key": key, "Value": value} for key, value in tags.items()),
                    {"Key": "phantom:started", "Value": "2026-01-02T03:04:05Z"},
                ],
            }
        ],
    )
    with kit.open(**IMPORT) as cloud:
        found = cloud.find_leftovers()
        assert [each.kind for each in found] == ["import task", "S3 object", "S3 upload"]
        assert found[0].since == "2026-01-02T03:04:05Z"
        for each in found:
            cloud.remove_leftover(each)
            cloud.remove_leftover(each)  # no error if it is already gone or has ended
        assert cloud.find_leftovers() == []
    assert sorted(kit.ec2.server.costs().objects) == [
        "example-images/letters/x",
        "example-images/phantom-image/other/b/x.raw",
    ]
    assert not kit.ec2.server.costs().uploads


def test_all_pages_of_uploads_are_read(importing: Kit) -> None:
    kit = importing
    s3 = kit.ec2.server.client("s3")
    for number in range(5):
        key = f"phantom-image/virginia/b/{number // 2}.raw"
        s3.create_multipart_upload(Bucket="example-images", Key=key)
    kit.ec2.server.set_page_limit(2)
    with kit.open(**IMPORT) as cloud:
        assert len({each.id for each in cloud.find_leftovers()}) == 5
