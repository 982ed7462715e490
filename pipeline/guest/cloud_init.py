"""cloud-init in the image, and who runs user-data: it or the user-data fetcher, never both.

One root file system serves all clouds, so this is decided at each boot. On Nimbus, where cloud-init
has no source of data, its units are skipped: the file that a node writes into the image says so.
Elsewhere cloud-init looks at the machine's firmware tables (ds-identify) and is off at once where
it does not recognise EC2. The fetcher starts after cloud-init has looked, and leaves user-data to
it where it found a source (PHANTOM_USER_DATA_LEAVE_TO_CLOUD_INIT).
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import PurePosixPath

from pipeline.disk.system import System
from pipeline.guest import services
from pipeline.guest.image import Image

CLOUD_INIT = "cloud-init"
FETCHER = "fetcher"

NODE_FILE = PurePosixPath("/var/nimbus-metadata-server-url")
"""Written by a Nimbus node before the boot (docs/facts/nimbus.md, "What the image must be")."""

_FOLDER = PurePosixPath("/etc/cloud")
DISABLED = _FOLDER / "cloud-init.disabled"
"""While this file is there, cloud-init does nothing."""
_UNITS = (  # of all versions
    *("cloud-init-local.service", "cloud-init-main.service", "cloud-init-network.service"),
    *("cloud-init.service", "cloud-config.service", "cloud-final.service"),
    "cloud-init-hotplugd.socket",
)
_SCRIPTS = (
    *("cloud-init-ds-identify", "cloud-init-local", "cloud-init", "cloud-config", "cloud-final"),
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

    `runner` is what the definition asks for. Without systemd it is always the fetcher, since
    nothing can then stop cloud-init from searching for minutes on a cloud that it does not support.
    """
    works = system.cloud_init is not None and system.init == "systemd"
    return CLOUD_INIT if works and runner == CLOUD_INIT else FETCHER


def settings(runner: str) -> Mapping[PurePosixPath, str]:
    """The files that make cloud-init run user-data or leave it to the fetcher (`runner`), where
    systemd starts it. Those of a unit belong only where the unit is."""
    if runner == CLOUD_INIT:
        files = {_FOLDER / "cloud.cfg.d/zz-phantom.cfg": _SETTINGS}
        files[_FOLDER / "ds-identify.cfg"] = _IDENTIFY
        path, reason = NODE_FILE, "Nimbus has no source of data for cloud-init."
    else:
        files = {DISABLED: "The user-data fetcher runs user-data (phantom-image).\n"}
        path, reason = DISABLED, "Versions without a generator do not look there."
    condition = f"# Written by phantom-image. {reason}\n[Unit]\nConditionPathExists=!{path}\n"
    return files | {services.UNITS[0] / f"{unit}.d/phantom.conf": condition for unit in _UNITS}


def configure(image: Image, runner: str) -> None:
    """Configures cloud-init, if it is installed, for the runner that `choose_runner` returned."""
    files, system = image.files, image.system
    if system.cloud_init is None:
        return
    if runner == CLOUD_INIT:
        files.remove(DISABLED)
    elif system.init != "systemd":
        for script in _SCRIPTS:
            services.disable_script(files, script)
    for path, text in settings(runner).items():
        unit = path.parent.name.removesuffix(".d") if path.name == "phantom.conf" else None
        if unit is None or (system.init == "systemd" and services.find_unit(files, unit)):
            files.write(path, text)
