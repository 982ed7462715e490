"""A site's machine for a person: the boot check's hardware, with its console attached."""

from __future__ import annotations

import socket
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from pipeline import host
from pipeline.build import Builder
from pipeline.errors import UsageError
from pipeline.metadata_server import SERVICES, MetadataServer
from pipeline.model import Appliance, Site
from pipeline.plan import Target, make_plan
from pipeline.production import check_host
from pipeline.stages.boot import AUTHORIZED_KEYS, BootCheck, edit_as_node, find_root
from pipeline.stages.image import unpack_image
from pipeline.tools import qemu, run
from pipeline.workspace import Workspace


@contextmanager
def run_machine(
    appliance: Appliance, site: Site, workspace: Workspace, name: str | None = None
) -> Iterator[tuple[Sequence[str], Sequence[str]]]:
    """Builds the image if need be and readies a machine for it.

    `name` is that of one of the site's machines; the first is taken where none is given. Gives the
    command that runs it on this terminal, and notes for the person. The disk is thrown away at the
    end. Raises UsageError for a machine that the site has not got, and what building raises.
    """
    plan = make_plan(appliance, [site], workspace.store, builds=workspace.build)
    (target,) = plan.targets
    check_host(plan, workspace)
    boot = _choose_boot(target, name)
    host.require(boot.requires)
    (built,) = Builder(workspace.store, workspace.progress).build([target.image])
    machine = boot.machine
    with workspace.store.used(), workspace.store.temporary("machine") as folder:
        disk = folder / "disk.raw"
        unpack_image(built.artifact, disk)
        key = folder / "key"
        run.capture(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", "boot", "-f", str(key)])
        public_keys = _public_keys(key.with_suffix(".pub"))
        edit_as_node(machine, disk, public_keys, boot.metadata_url())
        if not boot.writes_key:  # nor does the image fetch one: this is for the person alone
            find_root(disk).write(AUTHORIZED_KEYS, f"{public_keys}\n", 0o600)
        qemu.ready_disk(machine, disk)
        script = appliance.phantom.user_data
        service = SERVICES[machine.metadata](
            user_data=None if script is None else script.read_bytes()
        )
        with MetadataServer(service) as server:
            network = qemu.Network(metadata_port=server.port, ssh_port=_free_port(), outside=True)
            accelerator = host.find_accelerator(workspace.store.folder)
            yield qemu.command(machine, disk, network, accelerator), _notes(network, key)


def _choose_boot(target: Target, name: str | None) -> BootCheck:
    """The boot check of the machine of that name; of the site's first one where none is given."""
    known = {boot.machine.name: boot for boot in target.boots}
    if name is None:
        return target.boots[0]
    if name not in known:
        raise UsageError(
            f"site {target.site.name} has no machine {name!r}",
            todo=f"choose one of: {', '.join(known)}",
        )
    return known[name]


def _notes(network: qemu.Network, key: Path) -> list[str]:
    return [
        "the machine's console follows; control-a x ends it, and its disk is thrown away",
        f"to log in as root: ssh -p {network.ssh_port} -i {key} -o UserKnownHostsFile=/dev/null "
        "-o StrictHostKeyChecking=no root@127.0.0.1",
    ]


def _public_keys(own: Path) -> str:
    """The user's public SSH keys, as a node would write a launching user's, and the machine's."""
    files = [own, *sorted(Path("~/.ssh").expanduser().glob("*.pub"))]
    return "".join(file.read_text() for file in files).rstrip("\n")


def _free_port() -> int:
    with socket.socket() as opened:
        opened.bind(("127.0.0.1", 0))
        port: int = opened.getsockname()[1]
        return port
