"""EC2 through the command line: the sandbox, a strict stand-in for Amazon, and what goes wrong."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from cli_amazon import NO_CREDENTIALS, AmazonSite, read_blocks, without_zeros
from cli_runs import Done, Hello, Project, assert_clean, make_project, remove_tree, stages

from pipeline.clouds.ec2.errors import make_error
from pipeline.clouds.ec2.sandbox_site import resolve_sandbox_settings
from pipeline.model import Site
from pipeline.tools.aws import Cut, Refused


@pytest.fixture(scope="session")
def both(hello: Hello, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Project, Done]]:
    """hello-phantom for the sandboxes of both clouds, once in this session."""
    project = make_project(tmp_path_factory.getbasetemp() / "both", hello.store)
    yield project, project.succeed("image", "--cloud", "nimbus,ec2", "--json")
    remove_tree(project.folder)


@pytest.fixture
def ready(both: tuple[Project, Done], hello: Hello, tmp_path: Path) -> Iterator[Project]:
    """A project in whose store hello-phantom is built and booted for EC2."""
    yield make_project(tmp_path / "project", hello.store)
    remove_tree(tmp_path)


@pytest.fixture
def amazon() -> Iterator[AmazonSite]:
    with AmazonSite() as made:
        yield made


def latest(project: Project) -> Path:
    return project.build / "hello-phantom" / "latest"


# ---- good cases


@pytest.mark.boot
def test_one_root_file_system_for_both_clouds(both: tuple[Project, Done], hello: Hello) -> None:
    project, done = both
    made = stages(done)
    assert [name for name in made if name.startswith("root")] == ["root"]
    assert made["root"] and made["boot nimbus-sandbox bios"]
    assert not made["boot ec2-sandbox bios"] and not made["boot ec2-sandbox uefi"]
    manifest = project.manifest("hello-phantom")
    assert manifest["appliance"]["build"] == hello.summary["build"]
    assert manifest["root_filesystem"] == hello.manifest["root_filesystem"]
    amazon, nimbus = manifest["images"]
    assert nimbus == hello.manifest["images"][0]
    told = [amazon[key] for key in ("site", "cloud", "layout", "format", "compression")]
    assert told == ["ec2-sandbox", "ec2", "hybrid", "raw", None]
    assert amazon["bytes"] == amazon["disk_bytes"] == 2 << 30
    assert amazon["sha256"] == amazon["disk_sha256"]
    for check in amazon["boot_checks"]:
        assert check["passed"] is True
        assert check["disk_driver"] == "nvme"
        assert check["fetcher_protocol"] == "imdsv2"
        assert check["failed_units"] == []
        assert check["root_bytes"] > 2.5 * (1 << 30)  # root grew to the larger disk
    assert [check["machine"] for check in amazon["boot_checks"]] == ["bios", "uefi"]
    assert_clean(project)


def test_manifest_of_the_sandbox(both: tuple[Project, Done]) -> None:
    project, _ = both
    manifest = project.manifest("hello-phantom")
    published, nimbus = manifest["publications"]
    assert (published["site"], published["region"], published["sandbox"]) == (
        "ec2-sandbox",
        "us-east-1",
        True,
    )
    assert published["image_id"].startswith("ami-")
    params = manifest["phantom"]["launch_configuration"]["cloud_params"]
    assert params["ec2-sandbox"] == {
        "image_id": published["image_id"],
        "instance_type": "t3.micro",
        "max_vms": -1,
        "common": False,
        "rank": 2,
    }
    assert manifest["phantom"]["sandbox"] is True
    assert params["nimbus-sandbox"]["image_id"] == nimbus["image_id"]
    (template,) = manifest["launch_templates"]
    assert (template["site"], template["region"]) == ("ec2-sandbox", "us-east-1")
    assert template["data"]["ImageId"] == published["image_id"]
    assert template["data"]["MetadataOptions"]["HttpTokens"] == "required"


def test_nothing_changed(both: tuple[Project, Done]) -> None:
    project, done = both
    manifest = Path(done.json["manifest"]).read_bytes()
    again = project.succeed("image", "--cloud", "nimbus,ec2", "--json")
    assert all(stages(again).values())
    assert Path(done.json["manifest"]).read_bytes() == manifest
    assert again.err.count("is there already") == 2


@pytest.mark.slow
def test_an_image_at_amazon(ready: Project, amazon: AmazonSite) -> None:
    """An image is published, found again and retired, all as docs/facts/ec2.md requires."""
    amazon.configure(ready, ", tags: {team: physics}")
    done = ready.succeed("image", "--json", **amazon.environ)
    (published,) = done.json["publications"]
    blocks = read_blocks(next(latest(ready).glob("*.raw")))
    (image,) = amazon.server.images()
    (snapshot,) = amazon.server.snapshots()
    assert image.id == published["image_id"]
    assert without_zeros(amazon.server.content(snapshot.id)) == blocks
    assert amazon.count_puts() == len(blocks)
    assert not amazon.server.costs()

    before = len(amazon.server.requests)
    again = ready.succeed("image", "--json", **amazon.environ)
    assert again.json["publications"] == [published]
    changing = {"ebs:StartSnapshot", "ebs:PutSnapshotBlock", "ec2:RegisterImage", "ec2:CreateTags"}
    done_again = amazon.server.requests[before:]
    assert not [each for each in done_again if each.action in changing and each.status < 300]

    listed = ready.succeed("list", "--site", "amazon", "--json", **amazon.environ).json
    assert [each["image_id"] for each in listed] == [image.id]
    ready.succeed("retire", "--yes", **amazon.environ)
    assert not amazon.server.images() and not amazon.server.snapshots()
    manifest = ready.manifest("hello-phantom")
    assert manifest["publications"] == manifest["launch_templates"] == []
    assert_clean(ready)


@pytest.mark.boot
@pytest.mark.only_soak
def test_the_next_build_sends_what_changed(ready: Project, amazon: AmazonSite) -> None:
    amazon.configure(ready)
    ready.define("web", "clouds: {ec2: {disk_size: 2GiB}}\n")
    ready.succeed("image", "web", **amazon.environ)
    first = amazon.count_puts()
    ready.define("web", "clouds: {ec2: {disk_size: 3GiB}}\n")
    ready.succeed("image", "web", **amazon.environ)
    assert 0 < amazon.count_puts() - first < first / 10
    newest = max(amazon.server.snapshots(), key=lambda each: each.started)
    image = next((ready.build / "web/latest").glob("*.raw"))
    assert without_zeros(amazon.server.content(newest.id)) == read_blocks(image)


@pytest.mark.slow
def test_a_killed_upload_goes_on(ready: Project, amazon: AmazonSite) -> None:
    amazon.configure(ready)
    amazon.server.faults.slow("ebs:PutSnapshotBlock", 0.5)
    running = ready.start("image", **amazon.environ)
    running.wait_until(lambda: amazon.count_puts() > 500, "500 blocks")
    running.kill()
    sent = amazon.count_puts()
    amazon.server.faults.clear()
    found = ready.succeed("clean", "--site", "amazon", "--json", **amazon.environ).json
    assert [(each["kind"], each["removed"]) for each in found] == [("pending snapshot", False)]
    ready.succeed("image", **amazon.environ)
    (snapshot,) = amazon.server.snapshots()
    blocks = read_blocks(next(latest(ready).glob("*.raw")))
    assert without_zeros(amazon.server.content(snapshot.id)) == blocks
    assert amazon.count_puts() - sent < len(blocks) - 250
    assert not amazon.server.costs()
    assert_clean(ready)


@pytest.mark.slow
def test_interrupted_in_an_upload(
    ready: Project, both: tuple[Project, Done], amazon: AmazonSite
) -> None:
    amazon.configure(ready)
    amazon.server.faults.slow("ebs:PutSnapshotBlock", 0.2)
    running = ready.start("image", **amazon.environ)
    running.wait_until(lambda: amazon.count_puts() > 50, "50 blocks")
    done = running.interrupt(group=True)
    assert done.status == 130
    assert done.err.endswith("interrupted; the same command goes on where it can\n")
    assert amazon.count_puts() < len(read_blocks(next(latest(both[0]).glob("*.raw"))))
    assert_clean(ready)


def test_clean(ready: Project, amazon: AmazonSite) -> None:
    """`clean` lists what a crash left, then removes it; it keeps what is young or not ours."""
    amazon.configure(ready)
    ebs = amazon.server.client("ebs")
    tags = {"phantom:pipeline": "phantom-image", "phantom:site": "amazon"}
    ours = ebs.start_snapshot(
        VolumeSize=1, Tags=[{"Key": key, "Value": value} for key, value in tags.items()]
    )["SnapshotId"]
    ebs.start_snapshot(VolumeSize=1)
    told = ready.succeed("clean", "--site", "amazon", **amazon.environ)
    assert ours in told.out and "--remove" in told.out
    assert len(amazon.server.pending_snapshots()) == 2
    young = ready.succeed("clean", "--site", "amazon", "--remove", "--json", **amazon.environ).json
    assert [each["removed"] for each in young] == [False]
    words = ("clean", "--site", "amazon", "--remove", "--older-than", "0")
    assert (
        f"removed  amazon (us-east-1)  pending snapshot  {ours}"
        in ready.succeed(*words, **amazon.environ).out
    )
    assert ours not in [each.id for each in amazon.server.snapshots()]
    assert len(amazon.server.snapshots()) == 1
    assert ready.succeed(*words, **amazon.environ).out == "nothing was left behind\n"


# ---- bad cases


def fail(project: Project, amazon: AmazonSite, *words: str, **env: str) -> tuple[int, str]:
    """Exit status and message of a command that must fail and leave nothing behind."""
    done = project.run(*words, **{**amazon.environ, **env})
    assert amazon.server.account.secret not in done.out + done.err
    assert_clean(project)
    return done.status, amazon.masked(project, done.error)


def test_no_credentials(project: Project, amazon: AmazonSite) -> None:
    amazon.configure(project)
    done = project.run("image", **NO_CREDENTIALS)
    assert (done.status, done.error) == (
        30,
        "error: site amazon: no AWS credentials: none of the usual places has any\n"
        "  do: set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE, or name a profile "
        "of ~/.aws/config with `profile:` of the site; `aws configure` writes one\n",
    )
    assert project.artifacts() == []


EXPIRED = (
    "error: site amazon: the AWS credentials have expired: {}The security token included in the "
    "request is expired\n"
    "  do: get new ones (such as with `aws sso login`), then run the same command again: it goes "
    "on where it was\n"
)


def test_expired_credentials(project: Project, amazon: AmazonSite) -> None:
    amazon.configure(project)
    amazon.server.expire_credentials()
    assert fail(project, amazon, "image") == (35, EXPIRED.format("ExpiredToken: "))
    assert project.artifacts() == []


def test_credentials_that_expire_in_an_upload(ready: Project, amazon: AmazonSite) -> None:
    amazon.configure(ready)
    rule = amazon.server.faults.on(
        "ebs:PutSnapshotBlock", amazon.server.expire_credentials, skip=100
    )
    assert fail(ready, amazon, "image") == (35, EXPIRED.format("ExpiredTokenException: "))
    assert rule.taken == 1
    amazon.server.renew_credentials()
    ready.succeed("image", **amazon.environ)
    assert len(amazon.server.images()) == 1
    assert not amazon.server.costs()


@pytest.mark.parametrize("action", ["ebs:PutSnapshotBlock", "ec2:RegisterImage"])
def test_a_missing_right(project: Project, amazon: AmazonSite, action: str) -> None:
    amazon.configure(project)
    amazon.server.faults.deny(action)
    assert fail(project, amazon, "image") == (
        36,
        f"error: site amazon: the account may not call {action} in us-east-1\n"
        f"  do: let a policy of the user or role allow {action}; docs/ec2.md has the whole policy "
        "that a site needs\n",
    )
    assert project.artifacts() == []
    assert not amazon.server.costs()


def test_a_region_that_does_not_exist(project: Project, amazon: AmazonSite) -> None:
    amazon.configure(project, ", copy_to: [eu-centrall-1]")
    assert fail(project, amazon, "image") == (
        37,
        "error: sites.yaml:2:3: there is no region 'eu-centrall-1'; did you mean 'eu-central-1'?\n"
        "  do: correct `region` or `copy_to` of the site; `aws ec2 describe-regions` lists all\n",
    )
    assert project.artifacts() == []


def test_a_quota_reached(ready: Project, amazon: AmazonSite) -> None:
    amazon.configure(ready)
    amazon.server.faults.quota("ebs:StartSnapshot", skip=1)
    assert fail(ready, amazon, "image") == (
        34,
        "error: site amazon: a quota of the account is reached in us-east-1 (ebs:StartSnapshot: "
        "ServiceQuotaExceededException: Your account has reached its quota)\n"
        "  do: retire images that are not needed any more (`phantom-image list` names them), "
        "remove leftovers with `phantom-image clean --site amazon`, or ask AWS for a higher quota "
        "(Service Quotas in its console)\n",
    )
    assert not amazon.server.costs()


def register_by_hand(amazon: AmazonSite, name: str) -> None:
    """Registers an image in the account that the pipeline did not make."""
    ebs, ec2 = amazon.server.client("ebs"), amazon.server.client("ec2")
    snapshot = ebs.start_snapshot(VolumeSize=1)["SnapshotId"]
    ebs.complete_snapshot(SnapshotId=snapshot, ChangedBlocksCount=0)
    while ec2.describe_snapshots(SnapshotIds=[snapshot])["Snapshots"][0]["State"] == "pending":
        pass
    ec2.register_image(
        Name=name,
        RootDeviceName="/dev/sda1",
        BlockDeviceMappings=[{"DeviceName": "/dev/sda1", "Ebs": {"SnapshotId": snapshot}}],
    )


def test_a_name_that_is_taken(ready: Project, amazon: AmazonSite) -> None:
    amazon.configure(ready)
    ready.define("taken", "clouds: {ec2: {image_name: the name}}\n")
    register_by_hand(amazon, "the name")
    assert fail(ready, amazon, "image", "taken") == (
        38,
        "error: site amazon: ami-ID in us-east-1 has the name 'the name' already, and is not of "
        "this pipeline\n"
        "  do: rename or deregister it, raise the appliance's version, or put {build} into "
        "`clouds: ec2: image_name:`\n",
    )
    assert amazon.count_puts() == 0
    assert len(amazon.server.images()) == len(amazon.server.snapshots()) == 1


def test_public_sharing_is_blocked(ready: Project, amazon: AmazonSite) -> None:
    amazon.configure(ready, ", share_with: [all]")
    amazon.server.forbid_public()
    assert fail(ready, amazon, "image") == (
        39,
        "error: site amazon: images cannot be made public in us-east-1: the account blocks it "
        "(block-new-sharing)\n"
        "  do: turn off `Block public access for AMIs` (and for snapshots) in the EC2 settings of "
        "the region, or leave `all` out of `share_with`\n",
    )


def test_import_role_is_missing(ready: Project, amazon: AmazonSite) -> None:
    amazon.configure(ready, ", method: import, bucket: images")
    amazon.server.add_bucket("images")
    assert fail(ready, amazon, "image") == (
        40,
        "error: site amazon: the import service cannot use the role vmimport: The service role "
        "vmimport provided does not exist or does not have sufficient permissions\n"
        "  do: make the role, and let it read the bucket images: docs/ec2.md has both policies\n",
    )
    assert not amazon.server.costs()


def test_an_image_larger_than_the_volume(project: Project, amazon: AmazonSite) -> None:
    amazon.configure(project, ", volume_size: 1GiB")
    assert fail(project, amazon, "image") == (
        41,
        "error: sites.yaml:2:3: the disk has 2 GiB, and the volumes of site amazon only 1 GiB\n"
        "  do: raise `volume_size` of the site to 2GiB or leave it out, or make `disk_size` of the "
        "appliance smaller\n",
    )
    assert project.artifacts() == []


@pytest.mark.slow
def test_an_image_that_is_in_use(ready: Project, amazon: AmazonSite) -> None:
    amazon.configure(ready)
    done = ready.succeed("image", "--json", **amazon.environ)
    amazon.server.run_instance(done.json["publications"][0]["image_id"])
    assert fail(ready, amazon, "retire", "--yes") == (
        42,
        "error: site amazon: ami-ID in us-east-1 is used by "
        "arn:aws:ec2:us-east-1:HEX:instance/i-ID\n"
        "  do: let them use another image, or end them, then run the same command again\n",
    )
    assert len(amazon.server.images()) == 1


def test_an_emulator_that_does_not_answer_is_called_so(project: Project) -> None:
    """Nobody is sent to look for Amazon where this host's own emulator is slow."""
    site = Site(name="ec2-sandbox", cloud="ec2", where="built in", sandbox=True)
    error = make_error(Cut("Read timed out", connected=True), resolve_sandbox_settings(site))
    assert str(error) == (
        "site ec2-sandbox: the EC2 emulator of site ec2-sandbox, on this host, does not answer: "
        "Read timed out\n"
        "  do: run the same command again; if it happens again, the host may have too little "
        "memory or processor time left: build one site at a time (`--site`), and see "
        "`emulator.log` in the site's folder below build/sites"
    )
    refused = Refused("ec2:RegisterImage", "InternalFailure", "no", status=500)
    told = make_error(refused, resolve_sandbox_settings(site))
    assert "AWS" not in str(told) and "Amazon" not in str(told)


def test_a_kernel_without_the_sites_drivers(project: Project) -> None:
    project.define("small", "kernel: cloud\n")
    done = project.run("image", "small", "--cloud", "nimbus,ec2")
    assert (done.status, project.masked(done.error)) == (
        25,
        "error: images/small/appliance.yaml:5:9: Debian's cloud kernel has no driver 8139cp (site "
        "nimbus-sandbox)\n"
        "  do: write `kernel: auto`, which takes the smallest kernel that serves all sites of a "
        "run, or `kernel: generic`, which has all drivers\n",
    )
    assert project.artifacts() == []


def test_a_kernel_that_the_plan_chooses(project: Project) -> None:
    project.define("any", "kernel: auto\n")
    chosen = {
        clouds: kernel_of(project.succeed("plan", "any", "--cloud", clouds, "--json").json)
        for clouds in ("ec2", "nimbus", "nimbus,ec2")
    }
    assert chosen["ec2"] != chosen["nimbus"] == chosen["nimbus,ec2"]


def kernel_of(plan: Any) -> str:
    return next(str(each["key"]) for each in plan["stages"] if each["stage"] == "root")


@pytest.mark.slow
def test_a_network_that_is_gone_for_a_while(ready: Project, amazon: AmazonSite) -> None:
    """test_ec2_aws.py tests how long it may be gone, with a clock that the test sets."""
    amazon.configure(ready)
    amazon.server.faults.on("ebs:PutSnapshotBlock", lambda: amazon.server.blackout(6), skip=200)
    done = ready.succeed("image", **amazon.environ)
    assert "tries again for up to" in done.err
    assert len(amazon.server.images()) == 1
    assert not amazon.server.costs()


def test_a_site_that_fails_does_not_stop_the_others(ready: Project, amazon: AmazonSite) -> None:
    """The manifest has the site that worked, the exit status is that of the failed site, and the
    next run publishes at both."""
    amazon.configure(ready, others="  local: {cloud: nimbus, sandbox: true}\n")
    amazon.server.faults.quota("ebs:StartSnapshot", skip=1, times=1)
    status, message = fail(ready, amazon, "image", "--all-sites")
    assert status == 34 and message.startswith("error: site amazon: ")
    assert "  | published at local as hello-phantom-1.0-HEX.gz\n" in message
    assert [each["site"] for each in ready.manifest("hello-phantom")["publications"]] == ["local"]
    assert ready.manifest("hello-phantom")["phantom"]["sandbox"] is True
    ready.succeed("image", "--all-sites", **amazon.environ)
    manifest = ready.manifest("hello-phantom")
    assert [each["site"] for each in manifest["publications"]] == ["amazon", "local"]
    assert list(manifest["phantom"]["launch_configuration"]["cloud_params"]) == [
        "amazon"
    ]  # Phantom knows no sandbox
    assert manifest["phantom"]["sandbox"] is False


def test_a_site_whose_rights_are_missing_is_left_out(ready: Project, amazon: AmazonSite) -> None:
    amazon.configure(ready, others="  local: {cloud: nimbus, sandbox: true}\n")
    amazon.server.expire_credentials()
    done = ready.run("image", "--all-sites", **amazon.environ)
    assert done.status == 35
    assert "publish amazon: left out: the AWS credentials have expired" in done.err
    assert [each["site"] for each in ready.manifest("hello-phantom")["publications"]] == ["local"]
    printed = ready.run("image", "--all-sites", "--json", **amazon.environ)
    assert json.loads(printed.out)["exit_code"] == 35
