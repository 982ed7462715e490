"""Plans: which stages, of what, and what is said before anything is built."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from pipeline.clouds import clouds
from pipeline.definition import load_appliance
from pipeline.errors import HostError, KernelError
from pipeline.model import Site
from pipeline.plan import Plan, make_plan
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
            "root",
            "disk mbr",
            "image mbr raw gzip",
            "hash mbr",
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
        assert target.drivers.inputs == (both.root,)
    needs = {need for stage in both.stages for need in stage.requires}
    assert {"boot by UEFI", "disk for UEFI"} <= needs


def test_a_build_has_one_name_whatever_its_sites(both: Plan) -> None:
    for target in both.targets:
        alone = dataclasses.replace(both, targets=(target,))
        assert alone.makers == both.makers


def test_a_tool_that_a_host_has_not_got(both: Plan, monkeypatch: pytest.MonkeyPatch) -> None:
    """A host that publishes to Nimbus alone needs no mtools."""

    def missing() -> str:
        raise HostError("mformat is not installed")

    monkeypatch.setattr("pipeline.plan._TOOL_VERSIONS", {"grub": lambda: "2", "mtools": missing})
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
    root = plan_for(tmp_path, store, sites, f"kernel: {kernel}").root
    assert isinstance(root, ScratchRoot)
    assert root.kernel == chosen
    package = {"generic": "linux-image-amd64", "cloud": "linux-image-cloud-amd64"}[chosen]
    assert [name for name in root.requested if name.startswith("linux-image")] == [package]


def test_a_kernel_that_cannot_serve_a_site(tmp_path: Path) -> None:
    """Nothing is asked of any mirror, and nothing is written."""
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


def test_every_cloud_s_machines_have_names_of_their_own() -> None:
    for site in (NIMBUS, EC2):
        machines = clouds()[site.cloud](site).machines
        names = [machine.name for machine in machines]
        assert len({*names}) == len(names) > 0
        assert all(isinstance(name, str) and name.isidentifier() for name in names)


def test_boot_checks_of_machines_have_keys_of_their_own(both: Plan) -> None:
    keys = {boot.key for target in both.targets for boot in target.boots}
    assert len(keys) == 3
    assert all(isinstance(boot, BootCheck) for target in both.targets for boot in target.boots)
