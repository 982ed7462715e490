"""Guests that fail the boot check: each says on its console or in its report what is wrong."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from base_images import write
from cli_runs import Hello, Project, assert_clean, edit_root

pytestmark = [pytest.mark.boot, pytest.mark.slow]


def fail(project: Project, appliance: str, status: int) -> str:
    """Builds an appliance whose boot check must fail; returns the message."""
    done = project.run("image", appliance)
    assert done.status == status, done.err
    assert_clean(project)
    assert not (project.build / appliance).exists(), "a manifest of an image that does not work"
    assert "publish" not in done.err
    return project.masked(done.error)


def check_console(lines: list[str]) -> None:
    """Checks that the lines are the end of a console, without control sequences of terminals."""
    assert 0 < len(lines) <= 25
    assert all(line.startswith("  | ") for line in lines)
    assert not any("\x1b" in line or line != line.rstrip() for line in lines)


# The first entry is right, so only a boot shows what is wrong.
SILENT = """\
linux /vmlinuz root=LABEL=phantom-root ro console=ttyS0
initrd /initrd.img
linux /no-kernel console=ttyS0
"""


def test_guest_that_does_not_boot(copied: Callable[..., Project]) -> None:
    """GRUB says on the console that the kernel is not there."""
    project = copied("root")
    edit_root(project, lambda root: write(root, "/boot/grub/grub.cfg", SILENT))
    first, *console, todo, log = fail(project, "hello-phantom", 20).splitlines()
    assert first == (
        "error: stage boot nimbus-sandbox bios: the guest did not boot: the machine said on its "
        "console that it failed"
    )
    assert any("error: file `/no-kernel' not found." in line for line in console)
    check_console(console)
    assert todo == (
        "  do: look at the end of the console; `phantom-image boot` starts the same machine"
    )
    assert log == "  log: STORE/logs/boot-HEX.log"


@pytest.mark.only_soak
def test_guest_without_network(copied: Callable[..., Project], hello: Hello) -> None:
    """The image has the drivers of Nimbus's network card, but does not load them. The limit is
    1.5 times what hello-phantom took: later the fetcher gives up, and the console says so."""
    project = copied("root")
    (booted,) = (step for step in hello.summary["stages"] if step["stage"].startswith("boot"))
    seconds = max(60, round(1.5 * booted["seconds"]))
    blacklist = "blacklist 8139cp\nblacklist 8139too\n"
    edit_root(project, lambda root: write(root, "/etc/modprobe.d/deaf.conf", blacklist))
    project.define("deaf", f"boot_check: {{seconds: {seconds}}}\n")
    message = fail(project, "deaf", 21)
    first, *console, todo, log = message.splitlines()
    assert first == (
        "error: stage boot nimbus-sandbox bios: the guest booted without reaching the metadata "
        f"service: the machine did not report within {seconds} s"
    )
    assert any("login:" in line for line in console)
    check_console(console)
    assert todo == (
        "  do: see that the image has a driver for the site's network card, asks for an address by "
        "DHCP, and has the user-data fetcher (element phantom-user-data)"
    )
    assert log == "  log: STORE/logs/boot-HEX.log"


@pytest.mark.only_soak
def test_guest_whose_user_data_fails(shared: Project) -> None:
    shared.define("failing", "phantom: {user_data: fail.sh}\nboot_check: {script: check.sh}\n")
    shared.write("images/failing/check.sh", "#!/bin/sh\n", 0o755)
    shared.write("images/failing/fail.sh", "#!/bin/sh\necho there is no database\nexit 3\n")
    assert fail(shared, "failing", 22) == (
        "error: stage boot nimbus-sandbox bios: the default user-data ended with status 3 in the "
        "guest\n"
        "  | there is no database\n"
        "  do: correct the definition's phantom.user_data\n"
        "  log: STORE/logs/boot-HEX.log\n"
    )


def test_guest_whose_check_fails(shared: Project) -> None:
    shared.define("unfit", "boot_check: {script: check.sh}\n")
    shared.write("images/unfit/check.sh", "#!/bin/sh\necho no web server >&2\nexit 1\n", 0o755)
    assert fail(shared, "unfit", 23) == (
        "error: stage boot nimbus-sandbox bios: the guest is not as it should be: its check script "
        "ended with status 1\n"
        "  | no web server\n"
        "  do: `phantom-image boot` starts the same machine to look at\n"
        "  log: STORE/logs/boot-HEX.log\n"
    )
    # The same command would go on from the last finished stage, and boot again.
    plan = shared.succeed("plan", "unfit", "--json").json
    actions = {stage["stage"]: stage["action"] for stage in plan["stages"]}
    assert actions == {
        "packages": "reuse",
        "root": "reuse",
        "disk mbr": "reuse",
        "image mbr raw gzip": "reuse",
        "hash mbr": "reuse",
        "inventory": "reuse",
        "gate": "reuse",
        "drivers nimbus-sandbox": "reuse",
        "boot nimbus-sandbox bios": "build",
    }


def test_image_without_a_disk_driver_is_not_booted(shared: Project) -> None:
    """The build reads the initramfs first, which takes a second; a boot takes half a minute. The
    definition's file is in the image before the initramfs is made."""
    shared.define("driverless", "files: [{from: modules, to: /etc/initramfs-tools/modules}]\n")
    shared.write("images/driverless/modules", "ext4\nvirtio_pci\nvirtio_blk\n")
    what, *rest = fail(shared, "driverless", 25).splitlines()
    assert what.startswith("error: stage drivers nimbus-sandbox: the kernel ")
    assert what.endswith(
        " cannot serve nimbus-sandbox: ata_piix, which drives disks there, is not in the "
        "initramfs, so root would not be found"
    )
    assert rest == [
        "  do: list ata_piix in the image's /etc/initramfs-tools/modules, before the initramfs is "
        "made"
    ]
