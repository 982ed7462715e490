"""Base images by the command line: the bad cases, what is reused, and one launch for all sites."""

from __future__ import annotations

import dataclasses
import hashlib
import re
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from bad_images import make_bad_image
from base_images import Bases
from cli_runs import Done, Project, assert_clean, stages
from conversions import Conversions, words_for
from http_files import HttpFile, serving

from pipeline import sparse

FETCHER = "elements: [phantom-user-data]\n"
BOTH_ELEMENTS = "elements: [phantom-user-data, phantom-grow-root]\n"
DISK = "disk_size: 2GiB\n"
SCRIPTS = {
    "fails.sh": "echo one\necho two >&2\nexit 7",
    "hangs.sh": "sleep 1000",
    "reboots.sh": "echo bye\nreboot -f\nsleep 100",
}


def define(project: Project, location: object, text: str = "", below: str = "") -> None:
    """Defines the appliance `mine`, from a base image."""
    disk = "" if "disk_size" in text else DISK
    source = f"source:\n  base_image:\n    location: {location}\n{below}"
    project.define("mine", f"{source}{disk}{text}", extends=None)


# ---- bad cases: the message, the exit status, an unchanged base, and nothing left behind


@dataclass(frozen=True, kw_only=True)
class Bad:
    status: int
    error: str
    image: str | None = None
    """One of `BAD_IMAGES`; None: nothing is wrong with the image."""
    text: str = ""
    below: str = ""
    only_soak: bool = False
    """Whether what raises it is tested in tests/bases too, and only the message is of interest."""


_HEAD = "error: stage root: "
_NAME_ONE = "  do: name an image of a machine's whole disk, or of its root file system\n"
_LOG = "  log: STORE/logs/root-HEX.log\n"

BAD = {
    "not-an-image": Bad(
        image="text",
        status=46,
        error="error: BASE: is a text and not a disk image\n"
        "  do: name a disk image: raw, qcow2, vmdk, vhd, vdi, alone or packed\n",
    ),
    "larger-than-the-disk": Bad(
        image="huge",
        status=16,
        error="error: BASE: the disk in the base image has 16 TiB, and disk_size is 2 GiB\n"
        "  do: set disk_size to 16777216 MiB or more\n",
    ),
    "truncated": Bad(
        image="truncated",
        status=46,
        error="error: STORE/artifacts/base-HEX/base.raw: the image is truncated: partition 1 ends "
        "at 9 MiB, and the image has 5 MiB\n"
        "  do: fetch the image again and compare its checksum\n",
    ),
    "no-system": Bad(
        image="no system",
        status=47,
        error=f"{_HEAD}the image holds no operating system: there is ext4 on the whole disk\n"
        + _NAME_ONE,
    ),
    "two-systems": Bad(
        only_soak=True,
        image="two systems",
        status=48,
        error=f"{_HEAD}the image holds several operating systems: Debian GNU/Linux 12 (bookworm) "
        "on partition 1 and Debian GNU/Linux 12 (bookworm) on partition 2\n"
        "  do: choose a base image with one, or copy the partition that you want to a disk of its "
        "own\n",
    ),
    "unknown-distribution": Bad(
        only_soak=True,
        image="unknown distribution",
        status=49,
        error=f"{_HEAD}the image's distribution is not known: Plan 10 from User Space\n"
        "  do: choose an image of a distribution of these families: debian, redhat, suse, alpine, "
        "arch, gentoo\n",
    ),
    "no-package-manager": Bad(
        only_soak=True,
        image="no package manager",
        status=50,
        text="packages: [rsync]\n",
        error=f"{_HEAD}Debian GNU/Linux 12 (bookworm) has no package manager that is known\n"
        "  do: leave `packages` out, or take a base image that has them already\n",
    ),
    "no-init-system": Bad(
        only_soak=True,
        image="no init",
        status=51,
        text=FETCHER,
        error=f"{_HEAD}the base image has no init system that is known, so that nothing in it "
        "would fetch user-data at boot\n"
        "  do: take a base image with systemd, SysV init or OpenRC\n",
    ),
    "no-client": Bad(
        image="no client",
        status=52,
        text=FETCHER,
        error=f"{_HEAD}the base image has neither curl nor wget, and phantom-user-data needs one\n"
        "  do: add `packages: [curl]` and `network: true` to the definition\n",
    ),
    "encrypted": Bad(
        only_soak=True,
        image="encrypted",
        status=53,
        error=f"{_HEAD}the image's root is encrypted: LUKS on partition 2\n"
        "  do: decrypt it, or choose another base image: nobody is there to enter a key\n",
    ),
    "script-fails": Bad(
        status=54,
        text="scripts: [fails.sh]\n",
        error=f"{_HEAD}the definition's script fails.sh failed in the base image with status 7\n"
        f"  | one\n  | two\n{_LOG}",
    ),
    "script-hangs": Bad(
        only_soak=True,
        status=55,
        text="scripts: [hangs.sh]\n",
        below="    script_seconds: 3\n",
        error=f"{_HEAD}the definition's script hangs.sh did not end in the base image within 3 s\n"
        f"  do: look at what it waits for, or set a higher `script_seconds`\n{_LOG}",
    ),
    "script-reboots": Bad(
        only_soak=True,
        status=56,
        text="scripts: [reboots.sh]\n",
        error=f"{_HEAD}the definition's script reboots.sh shut down the machine that it ran in\n"
        "  | bye\n  | Rebooting.\n"
        f"  do: leave reboots out: the image boots only when it is complete\n{_LOG}",
    ),
    "full": Bad(
        image="full",
        status=58,
        text=f"disk_size: 73MiB\n{FETCHER}",  # of which the layouts take 65 MiB
        error=f"{_HEAD}the image's root file system is full\n"
        "  do: give the appliance a larger disk_size, or remove something from the base\n",
    ),
}


@pytest.mark.parametrize(
    "case",
    [
        pytest.param(name, marks=[pytest.mark.only_soak] if bad.only_soak else [])
        for name, bad in BAD.items()
    ],
)
def test_bad_case(case: str, bases: Bases, project: Project, tmp_path: Path) -> None:
    bad = BAD[case]
    if bad.image is None:
        base = bases.path("simple.raw")
    else:
        base = make_bad_image(bad.image, tmp_path / "base")
    before = (sparse.digest(base), base.stat().st_mtime_ns)
    for name, text in SCRIPTS.items():
        project.write(f"images/mine/{name}", f"#!/bin/sh\n{text}\n", 0o755)
    define(project, base, bad.text, bad.below)
    done = project.run("build", "mine")
    assert project.masked(done.error).replace(str(base), "BASE") == bad.error
    assert done.status == bad.status
    assert (sparse.digest(base), base.stat().st_mtime_ns) == before
    assert_clean(project)
    assert project.artifacts("root") == []
    assert not (project.build / "mine").exists()


def test_damaged_file_system(project: Project, tmp_path: Path) -> None:
    """The end of the message comes from the kernel."""
    define(project, make_bad_image("damaged", tmp_path / "base"))
    done = project.run("build", "mine")
    assert done.status == 58
    assert re.fullmatch(
        r"error: stage root: the ext4 file system on partition 1 cannot be mounted: [^\n]+\n"
        r"  do: repair the image's file systems with their own program, or choose another base "
        r"image\n",
        project.masked(done.error),
    )
    assert_clean(project)


def test_programs_for_another_processor(project: Project, tmp_path: Path) -> None:
    """The error comes before anything is run, so the kernel's message is not in it."""
    project.write("images/mine/fails.sh", "#!/bin/sh\n", 0o755)
    base = make_bad_image("other processor", tmp_path / "base")
    define(project, base, "scripts: [fails.sh]\n")
    done = project.run("build", "mine")
    assert done.status == 57
    assert "aarch64" in done.error.splitlines()[0]
    assert_clean(project)


def test_libguestfs_does_not_start(project: Project, tmp_path: Path) -> None:
    define(project, make_bad_image("no system", tmp_path / "base"))
    done = project.run("build", "mine", LIBGUESTFS_PATH=str(project.temporary))
    assert done.status == 43
    first, *_ = project.masked(done.error).splitlines()
    assert first.startswith("error: stage root: libguestfs does not start: ")
    assert "phantom-image doctor" in done.error
    assert_clean(project)


def test_a_base_that_is_not_there(project: Project) -> None:
    define(project, "base.qcow2")
    done = project.run("build", "mine")
    assert (done.status, project.masked(done.error)) == (
        10,
        "error: images/mine/appliance.yaml:6:15: the base image PROJECT/images/mine/base.qcow2 "
        "cannot be read: No such file or directory\n"
        "  do: fetch it to there, or correct the location\n",
    )


def test_an_appliance_that_is_not_built(project: Project) -> None:
    done = project.run("build", "hello-base")
    assert done.status == 61
    assert "hello-phantom" in done.error
    assert project.artifacts() == []


def test_an_example_whose_base_is_not_fetched(project: Project) -> None:
    for name in ("debian-cloud-base", "ubuntu-base"):
        done = project.run("plan", name)
        assert done.status == 10
        assert f"images/{name}/appliance.yaml" in done.error
        assert "fetch it to there, or correct the location" in done.error


def test_plan_names_what_is_started_from(project: Project, tmp_path: Path) -> None:
    base = make_bad_image("no system", tmp_path / "base")
    define(project, base)
    first, *_ = project.succeed("plan", "mine").out.splitlines()
    assert first == f"starts from {base}"
    assert project.succeed("plan", "mine", "--json").json["base_image"] == str(base)


# ---- downloads


@pytest.fixture
def served(tmp_path: Path) -> Iterator[HttpFile]:
    base = make_bad_image("no system", tmp_path / "base")
    with serving(HttpFile(base.read_bytes())) as file:
        yield file


def test_wrong_checksum(project: Project, served: HttpFile) -> None:
    define(project, served.url, below=f"    sha256: {'f' * 64}\n")
    done = project.run("build", "mine")
    found = hashlib.sha256(served.content).hexdigest()
    assert done.status == 44
    assert found in done.error
    assert "`phantom-image pin` looks at it and writes the new digest" in done.error
    assert project.artifacts() == []
    assert_clean(project)


def test_server_gone_in_the_middle(project: Project, served: HttpFile) -> None:
    """The download goes on where it stopped."""
    digest = hashlib.sha256(served.content).hexdigest()
    define(project, served.url, below=f"    sha256: {digest}\n")
    served.cut_after = [len(served.content) // 2]
    done = project.run("build", "mine")
    assert done.status == 47  # complete after two requests, but there is no system in it
    assert served.ranges_asked[0] is None
    assert served.ranges_asked[1] is not None
    assert served.sent < len(served.content) * 3 // 2
    assert_clean(project)


# ---- reuse, and one launch


SHAPE = "debian-grub.qcow2"
BOTH = words_for(SHAPE)


@pytest.fixture
def built(conversions: Conversions) -> tuple[Project, Done]:
    """An image of a disk as Debian's installer makes it, for two sites of different layouts."""
    return conversions.build(SHAPE)


def launches(done: Done) -> int:
    return done.err.count("root: starting libguestfs")


def test_one_launch_serves_all_sites(built: tuple[Project, Done]) -> None:
    """Both images have passed their boot checks."""
    project, done = built
    assert launches(done) == 1
    assert "set up once" in done.err
    assert len(project.artifacts("root")) == 1
    assert len(project.artifacts("disk")) == 2
    assert len(project.artifacts("boot")) == 2
    assert_clean(project)


def test_images_of_two_layouts_have_two_names(built: tuple[Project, Done]) -> None:
    """In the build's folder, and in a repository that both sites may share."""
    project, _ = built
    manifest = project.manifest("mine")
    build = manifest["appliance"]["build"]
    assert {image["site"]: image["file"] for image in manifest["images"]} == {
        "kvm": f"mine-1.0-{build}.gz",
        "xen": f"mine-1.0-{build}-bare.gz",
    }
    for image in manifest["images"]:
        content = (project.built("mine") / image["file"]).read_bytes()
        assert hashlib.sha256(content).hexdigest() == image["sha256"]


def test_a_build_is_not_the_latest_for_others(built: tuple[Project, Done]) -> None:
    project, _ = built
    assert not (project.build / "mine/latest").is_symlink()
    assert project.succeed("list", "--json").json[0]["latest"] is False


def test_nothing_changed(built: tuple[Project, Done]) -> None:
    project, _ = built
    again = project.succeed("build", "mine", *BOTH, "--json", "-v")
    assert launches(again) == 0
    assert set(stages(again).values()) == {True}


def test_one_script_changed(built: tuple[Project, Done], tmp_path: Path) -> None:
    """The stored base is reused, and is not inspected again."""
    project = dataclasses.replace(built[0], folder=tmp_path / "project")
    shutil.copytree(built[0].folder, project.folder, symlinks=True)
    inspections = project.artifacts("inspect")
    project.write("images/mine/set-up.sh", "#!/bin/sh\necho set up twice\nexit 3\n", 0o755)
    done = project.run("build", "mine", "--site", "kvm", "-v")
    assert done.status == 54, done.err
    assert "set up twice" in done.err
    assert launches(done) == 1
    assert "looking into the image" not in done.err
    assert "base: copying" not in done.err
    assert project.artifacts("inspect") == inspections
