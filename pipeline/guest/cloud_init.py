"""cloud-init in the image, and who runs user-data: it or the user-data fetcher, never both.

One root file system serves all clouds, so this is decided at each boot. On Nimbus, where cloud-init
has no source of data, its units are skipped: the file that a node writes into the image says so.
Elsewhere cloud-init looks at the machine's firmware tables (ds-identify) and is off at once where
it does not recognise EC2. The fetcher starts after cloud-init has looked, and leaves user-data to
it where it found a source (PHANTOM_USER_DATA_LEAVE_TO_CLOUD_INIT).
"""

from __future__ import annotations

from pathlib import PurePosixPath

from pipeline.guest import services
from pipeline.guest.files import ImageFiles
from pipeline.guest.system import System

CLOUD_INIT = "cloud-init"
FETCHER = "fetcher"

NODE_FILE = PurePosixPath("/var/nimbus-metadata-server-url")
"""Written by a Nimbus node before the boot (facts on Nimbus, "What the image must be")."""

_FOLDER = PurePosixPath("/etc/cloud")
_DISABLED = _FOLDER / "cloud-init.disabled"
_UNITS = (
    "cloud-init-local.service",
    "cloud-init-main.service",  # from 24.3 on
    "cloud-init-network.service",  # from 24.3 on
    "cloud-init.service",
    "cloud-config.service",
    "cloud-final.service",
    "cloud-init-hotplugd.socket",
)
_SCRIPTS = (
    "cloud-init-ds-identify",
    "cloud-init-local",
    "cloud-init",
    "cloud-config",
    "cloud-final",
    "cloud-init-hotplug",
)

# Two sources and not one: with a single one cloud-init does not ask whether the machine has it. An
# ISO for NoCloud (somebody's own test) harms no machine that has none.
_SETTINGS = """\
# Written by phantom-image. Read last, so that it outweighs what the base image says.
datasource_list: [Ec2, NoCloud, None]
# The image asks for an address by DHCP on any card, with cloud-init and without.
network: {config: disabled}
"""
_IDENTIFY = """\
# Written by phantom-image: cloud-init is off where it does not recognise the machine's cloud.
policy: search,found=first,maybe=none,notfound=disabled
"""


def choose_runner(system: System, runner: str) -> str:
    """Who runs user-data on clouds where cloud-init works: `cloud-init` or `fetcher`.

    `runner` is what the definition wants. Without systemd it is always the fetcher: there nothing
    can keep cloud-init from looking for minutes on a cloud that is not its own.
    """
    works = system.cloud_init is not None and system.init == "systemd"
    return CLOUD_INIT if works and runner == CLOUD_INIT else FETCHER


def configure(files: ImageFiles, system: System, runner: str) -> None:
    """Has cloud-init, where it is, do what `choose_runner` said."""
    if system.cloud_init is None:
        return
    if runner == CLOUD_INIT:
        files.write(_FOLDER / "cloud.cfg.d/zz-phantom.cfg", _SETTINGS)
        files.write(_FOLDER / "ds-identify.cfg", _IDENTIFY)
        files.remove(_DISABLED)
        _add_condition(files, NODE_FILE, "Nimbus has no source of data for cloud-init.")
        return
    files.write(_DISABLED, "The user-data fetcher runs user-data (phantom-image).\n")
    if system.init == "systemd":
        _add_condition(files, _DISABLED, "Versions without a generator do not look there.")
    else:
        for script in _SCRIPTS:
            services.disable_script(files, script)


def _add_condition(files: ImageFiles, path: PurePosixPath, reason: str) -> None:
    """Has systemd skip all of cloud-init's units where a file is."""
    text = f"# Written by phantom-image. {reason}\n[Unit]\nConditionPathExists=!{path}\n"
    for unit in _UNITS:
        if services.find_unit(files, unit) is not None:
            files.write(services.UNITS[0] / f"{unit}.d/phantom.conf", text)
