"""Plans: their stages and inputs, and the errors that come before anything is built."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
from files import make_context

from pipeline.build.plan import Plan, make_plan
from pipeline.clouds import make_cloud
from pipeline.definitions.appliance import load_appliance
from pipeline.errors import HostError, KernelError, StageFailedError
from pipeline.model import Site
from pipeline.sources.scratch import ScratchRoot
from pipeline.stages.boot import BootCheck
from pipeline.stages.disk import AssembleDisk
from pipeline.stages.image import CompressImage
from pipeline.store import Store
from pipeline.tools import fat

NIMBUS = Site(name="nimbus-sandbox", cloud="nimbus", sandbox=True, where="built in")
EC2 = Site(name="ec2-sandbox", cloud="ec2", sandbox=True, where="built in")


def write_appliance(folder: Path, *lines: str) -> Path:
    path = folder / "images/web/appliance.yaml"
    path.parent.mkdir(parents=True)
    head = ["name: web", 'version: "1.0"', "summary: A web server"]
    path.write_text("".join(f"{line}\n" for line in (*head, *lines)))
    return path


def plan_for(folder: Path, store: Store, sites: list[Site], *lines: str) -> Plan:
    path = write_appliance(folder, *lines)
    return make_plan(load_appliance(path, folder / "images"), sites, store, builds=folder / "build")


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    return Store(tmp_path_factory.mktemp("store"))


@pytest.fixture(scope="module")
def both(store: Store, tmp_path_factory: pytest.TempPathFactory) -> Plan:
    return plan_for(tmp_path_factory.mktemp("both"), store, [NIMBUS, EC2])


def test_one_root_for_both_clouds(both: Plan) -> None:
    titles = [stage.title for stage in both.stages]
    assert sorted(titles) == sorted(
        [
            "packages",
            "root",
            "disk mbr",
            "image mbr raw gzip",
            "hash mbr",
            "inventory",
            "gate",
            "drivers nimbus-sandbox",
            "boot nimbus-sandbox bios",
            "disk hybrid",
            "hash hybrid",
            "drivers ec2-sandbox",
            "boot ec2-sandbox bios",
            "boot ec2-sandbox uefi",
        ]
    )
    for place, stage in enumerate(both.stages):
        before = {each.key for each in both.stages[:place]}
        assert {each.key for each in stage.inputs} <= before, stage.title


def test_a_raw_image_is_the_disk_itself(both: Plan) -> None:
    nimbus, ec2 = both.targets
    assert isinstance(nimbus.image, CompressImage)
    assert isinstance(ec2.image, AssembleDisk)
    assert ec2.hash.inputs == (ec2.image,)
    assert ec2.hash.after == ()
    assert nimbus.hash.after == (nimbus.image,)


def test_machines_are_booted_after_their_drivers_were_found(both: Plan) -> None:
    for target in both.targets:
        assert [boot.machine for boot in target.boots] == list(target.cloud.machines)
        for boot in target.boots:
            assert (boot.inputs, boot.after) == ((target.image,), (target.drivers,))
            assert boot.memory > boot.machine.memory
        assert target.drivers.inputs == target.gate.inputs == (both.source.root,)
    needs = {need for stage in both.stages for need in stage.requires}
    assert {"boot by UEFI", "disk for UEFI"} <= needs


def test_a_build_has_one_name_whatever_its_sites(both: Plan) -> None:
    for target in both.targets:
        alone = dataclasses.replace(both, targets=(target,))
        assert alone.makers == both.makers


def test_plan_without_a_tool_that_the_site_does_not_need(
    both: Plan, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A host that publishes to Nimbus alone needs no mtools."""

    def missing() -> str:
        raise HostError("mformat is not installed")

    monkeypatch.setattr(
        "pipeline.build.plan.TOOL_VERSIONS", {"grub": lambda: "2", "mtools": missing}
    )
    assert both.makers["disk"] == [AssembleDisk.revision, {"grub": "2", "mtools": ""}]
    assert fat.version().count(".") >= 1


@pytest.mark.parametrize(
    ("kernel", "sites", "chosen"),
    [
        ("auto", [NIMBUS, EC2], "generic"),
        ("auto", [EC2], "cloud"),
        ("cloud", [EC2], "cloud"),
        ("generic", [EC2], "generic"),
    ],
)
def test_the_kernel_that_serves_the_sites(
    tmp_path: Path, store: Store, kernel: str, sites: list[Site], chosen: str
) -> None:
    root = plan_for(tmp_path, store, sites, f"kernel: {kernel}").source.root
    assert isinstance(root, ScratchRoot)
    assert root.kernel == chosen
    package = {"generic": "linux-image-amd64", "cloud": "linux-image-cloud-amd64"}[chosen]
    assert [name for name in root.requested if name.startswith("linux-image")] == [package]


def test_a_kernel_that_cannot_serve_a_site(tmp_path: Path) -> None:
    """The error comes before any request to a mirror, and before anything is written."""
    with pytest.raises(KernelError) as caught:
        plan_for(tmp_path, Store(tmp_path / "none"), [EC2, NIMBUS], "labels: {}", "kernel: cloud")
    assert str(caught.value) == (
        f"{tmp_path}/images/web/appliance.yaml:5:9: Debian's cloud kernel has no driver 8139cp "
        "(site nimbus-sandbox)\n"
        "  do: write `kernel: auto`, which takes the smallest kernel that serves all sites of a "
        "run, or `kernel: generic`, which has all drivers"
    )
    assert caught.value.exit_code == 25
    assert not (tmp_path / "none").exists()


@pytest.mark.parametrize(
    ("package", "instead_of"),
    [
        ("chrony", "systemd-timesyncd"),
        ("resolvconf", "systemd-resolved"),
    ],
)
def test_a_package_takes_the_place_of_one_that_an_element_prefers(
    tmp_path: Path, store: Store, package: str, instead_of: str
) -> None:
    plan = plan_for(tmp_path, store, [NIMBUS], f"packages: [{package}]")
    root = plan.source.root
    assert isinstance(root, ScratchRoot)
    names = {each.name for each in root.packages}
    assert (package in names, instead_of in names) == (True, False)
    assert root.resolution.left_out == (instead_of,)
    assert plan.source.describe_inputs(None)["left_out_packages"] == [instead_of]
    others = {"systemd-timesyncd", "systemd-resolved"} - {instead_of}
    assert others <= names


def test_a_package_whose_version_is_pinned(tmp_path: Path, store: Store, both: Plan) -> None:
    root = both.source.root
    assert isinstance(root, ScratchRoot)
    (chosen,) = (each for each in root.packages if each.name == "libsystemd0")
    pin = f"{chosen.name}={chosen.version}"
    plan = plan_for(tmp_path, store, [NIMBUS, EC2], f'packages: ["{pin}"]')
    told = plan.source.describe_inputs(None)
    assert told["pinned_packages"] == [pin]
    assert told["archive"] == {"validity_checked": True}


def test_who_runs_user_data_in_an_image_with_cloud_init(
    tmp_path: Path, store: Store, both: Plan
) -> None:
    lines = ["packages: [cloud-init]", "user_data: {runner: fetcher}"]
    root = plan_for(tmp_path, store, [EC2], *lines).source.root
    assert isinstance(root, ScratchRoot)
    assert root.user_data_runner == "fetcher"
    assert isinstance(both.source.root, ScratchRoot)
    assert both.source.root.user_data_runner is None  # without cloud-init


def test_what_the_image_has_is_what_was_resolved(both: Plan, tmp_path: Path) -> None:
    """dpkg's status decides, not what is wished for a package."""
    root, context = both.source.root, make_context(tmp_path)
    assert isinstance(root, ScratchRoot)
    rows = [f"{each.name}\t{each.version}\t{each.architecture}" for each in root.packages]
    lines = [f"{row}\tinstalled" for row in rows] + ["gone\t1.0\tall\tconfig-files"]
    listed = context.out / "packages.tsv"
    listed.write_text("".join(f"{line}\n" for line in lines))
    root._check_packages(context)
    lines[0] = lines[0].replace("installed", "half-configured")
    listed.write_text("".join(f"{line}\n" for line in [*lines, "mytool\t1.0\tall\tinstalled"]))
    with pytest.raises(StageFailedError) as caught:
        root._check_packages(context)
    first = root.packages[0]
    assert str(caught.value).splitlines()[:2] == [
        "a script or a hook installed mytool 1.0 and removed "
        f"{first.name} {first.version} in the image",
        "  do: name packages in the definition, or in an element's package-installs.yaml, instead "
        "of installing or removing them; what the archive does not have needs a base image, where "
        "scripts may install packages (docs/base-images.md)",
    ]


def test_every_cloud_s_machines_have_names_of_their_own() -> None:
    for site in (NIMBUS, EC2):
        machines = make_cloud(site).machines
        names = [machine.name for machine in machines]
        assert len({*names}) == len(names) > 0
        assert all(isinstance(name, str) and name.isidentifier() for name in names)


def test_boot_checks_of_machines_have_keys_of_their_own(both: Plan) -> None:
    keys = {boot.key for target in both.targets for boot in target.boots}
    assert len(keys) == 3
    assert all(isinstance(boot, BootCheck) for target in both.targets for boot in target.boots)
