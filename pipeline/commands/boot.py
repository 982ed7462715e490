"""`phantom-image boot`: starts a site's machine, as the boot check has it, with its console on this
terminal."""

from __future__ import annotations

import fcntl
import os
import re
import shlex
import socket
import sys
from argparse import ArgumentParser, ArgumentTypeError, Namespace
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from itertools import count
from pathlib import Path, PurePosixPath

from pipeline import sparse
from pipeline.build.builder import Builder
from pipeline.build.partial import find_missing
from pipeline.build.plan import Target, make_plan
from pipeline.build.remains import find_remains
from pipeline.build.run import check_host
from pipeline.clouds import metadata_service
from pipeline.commands import options as shared
from pipeline.commands.output import print_line, print_lines
from pipeline.definitions.messages import choose, suggest
from pipeline.definitions.yaml import shown
from pipeline.disk.ext4 import FileSystem
from pipeline.errors import UsageError
from pipeline.files import make_folder
from pipeline.machine import console, qemu, requirements
from pipeline.machine.accelerator import find_accelerator
from pipeline.machine.metadata import MetadataServer
from pipeline.machine.node import edit_as_node, find_root
from pipeline.model import Appliance, Site
from pipeline.stages.base import read_own
from pipeline.stages.boot import AUTHORIZED_KEYS, BootCheck
from pipeline.stages.image import data_bytes, unpack_image
from pipeline.store import Artifact
from pipeline.tools.run import capture
from pipeline.workspace import Workspace

EXAMPLES = (
    "phantom-image boot web --site hotel",
    "phantom-image boot web --cloud ec2 --machine uefi",
    "phantom-image boot web --forward 8080:80 --user-data mine.sh",
)

_MOST_USER_DATA = 16 * 1024  # bytes, EC2's limit
_AUTOLOGIN = PurePosixPath("/etc/systemd/system/serial-getty@ttyS0.service.d/zz-phantom-boot.conf")
_AUTOLOGIN_TEXT = """\
# Written by `phantom-image boot` into the disk that it throws away.
[Service]
ExecStart=
ExecStart=-/sbin/agetty --autologin root --noclear --keep-baud 115200,57600,38400,9600 %I $TERM
"""
_SSH_SETTINGS = """\
# For the machine that `phantom-image boot` runs; gone when it ends.
Host appliance
    HostName 127.0.0.1
    Port {port}
    User root
    IdentityFile "{key}"
    UserKnownHostsFile /dev/null
    StrictHostKeyChecking no
    LogLevel ERROR
"""


def add_arguments(parser: ArgumentParser) -> None:
    """Adds the command's arguments."""
    shared.add(parser, "appliance", "sites", "verbose")
    parser.add_argument("--machine", metavar="NAME", help="the site's machine to boot (the first)")
    parser.add_argument(
        "--forward",
        type=_forward,
        action="append",
        default=[],
        metavar="HERE:THERE",
        help="lead port HERE of 127.0.0.1 to the machine's port THERE; again for more",
    )
    parser.add_argument(
        "--user-data",
        type=Path,
        metavar="FILE",
        help="what the metadata service hands out (the definition's user-data)",
    )
    parser.add_argument(
        "--snapshot",
        action="store_true",
        help="throw the machine's disk away at its end; that is always done",
    )
    parser.add_argument(
        "--failed",
        action="store_true",
        help="from a copy of the disk that a machine left whose boot check failed, in a build with "
        "`--keep-failed`",
    )


def run(options: Namespace) -> int:
    """Starts the machine on this terminal; the status is QEMU's. Raises UsageError where the
    options name more sites than one, and without a terminal."""
    appliance, sites = shared.load_appliance(options), shared.load_sites(options)
    if len(sites) != 1:
        names = ", ".join(site.name for site in sites)
        raise UsageError(f"one machine boots at a time; name one of {names} with --site")
    if not (sys.stdin.isatty() and sys.stdout.isatty()):
        raise UsageError(
            "`boot` shows a machine's console, and needs a terminal as standard input and output",
            todo="run it in a terminal, as by `ssh -t`; without one, `phantom-image build` boots "
            "the image and checks it",
        )
    user_data = _read_user_data(options.user_data, appliance)
    forwards = _free_forwards(options.forward)
    with ExitStack() as stack:
        with shared.open_shown_workspace(options) as workspace:
            machine = _make_machine(
                appliance,
                sites[0],
                workspace,
                options.machine,
                user_data=user_data,
                forwards=forwards,
                failed=shared.failed_folder(options, appliance.name) if options.failed else None,
            )
            command, hint = stack.enter_context(machine)
        print_lines(hint.split("\n"), file=sys.stderr)
        status = console.attach(command, hint)
    print_line("the machine has ended, and its disk is thrown away", file=sys.stderr)
    return status


@contextmanager
def _make_machine(
    appliance: Appliance,
    site: Site,
    workspace: Workspace,
    name: str | None,
    *,
    user_data: bytes | None,
    forwards: tuple[tuple[int, int], ...],
    failed: Path | None,
) -> Iterator[tuple[Sequence[str], str]]:
    """Builds the image if need be and readies the site's machine of that name, or its first one;
    with `failed`, the disk is one that was kept there.

    Gives the command that runs the machine on this terminal, and a hint for the person. The disk
    lasts as long as the block. Raises UsageError for an unknown machine, and what building raises.
    """
    plan = make_plan(appliance, [site], workspace.store, builds=workspace.build)
    (target,) = plan.targets
    check_host(plan, workspace)
    boot = _choose_boot(target, name)
    requirements.require(boot.requires)
    if missing := find_missing([target.image], workspace.store):
        names = ", ".join(stage.title for stage in missing)
        print_line(
            f"{appliance.name} is not built as it is defined now; building {names}", file=sys.stderr
        )
    (built,) = Builder(workspace.store, workspace.progress).build([target.image])
    machine = boot.machine
    store = workspace.store
    with store.used(), store.temporary("machine") as work, store.errors():
        disk = work / "disk.raw"
        store.check_space(data_bytes(built.artifact))
        _make_disk(built.artifact, disk, boot, failed)
        key = work / "key"
        capture(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", "boot", "-f", str(key)])
        public_keys = _public_keys(key.with_suffix(".pub"))
        edit_as_node(machine, disk, public_keys, boot.metadata_url())
        root = find_root(disk)
        if not boot.writes_key:  # without this the person could not log in
            root.write(AUTHORIZED_KEYS, f"{public_keys}\n", 0o600)
        logged_in = _log_in_on_console(root)
        qemu.ready_disk(machine, disk)
        service = metadata_service(machine.metadata)(user_data=user_data, public_key=public_keys)
        with MetadataServer(service, private=True) as server:
            network = qemu.Network(
                metadata_socket=server.socket_name,
                ssh_port=_free_port(),
                forwards=forwards,
                outside=True,
            )
            accelerator = find_accelerator(workspace.store.folder)
            folder = workspace.folder(appliance.name)
            with workspace.errors():
                make_folder(folder)
            with _ssh_settings(folder, network, key) as settings:
                hint = _hint(appliance.name, machine.name, settings, logged_in=logged_in)
                for here, there in forwards:
                    hint += f"\n127.0.0.1:{here} leads to the machine's port {there}"
                yield qemu.command(machine, disk, network, accelerator), hint


def _make_disk(image: Artifact, disk: Path, boot: BootCheck, failed: Path | None) -> None:
    """Makes a machine's disk: of the image, or of the disk that is kept in the folder `failed`.
    Raises UsageError where it is not kept."""
    if failed is None:
        unpack_image(image, disk)
        return
    for kept in find_remains(failed):
        if boot.label.split() == [kept.site, kept.machine]:
            sparse.copy_data(kept.file, disk, kept.file.stat().st_size)
            return
    raise UsageError(
        f"no disk is kept of a failed boot check at {boot.label}",
        todo="`phantom-image build --keep-failed` keeps it when the check fails",
    )


def _read_user_data(file: Path | None, appliance: Appliance) -> bytes | None:
    """The user-data for the machine. Raises UsageError for a file that cannot be read."""
    if file is None:
        script = appliance.phantom.user_data
        return None if script is None else read_own(script)
    try:
        content = file.read_bytes()
    except OSError as error:
        raise UsageError(
            f"the user-data cannot be read: {error.strerror}",
            where=str(file),
            todo="let --user-data name a file that this user may read",
        ) from error
    if len(content) > _MOST_USER_DATA:
        raise UsageError(
            f"the user-data has {len(content)} bytes; EC2 takes at most {_MOST_USER_DATA}",
            where=str(file),
            todo="shorten it, or let it fetch the rest",
        )
    return content


def _forward(text: str) -> tuple[int, int]:
    """An option's two ports. Raises ArgumentTypeError for what is no pair of ports."""
    words = re.fullmatch(r"([0-9]{1,5}):([0-9]{1,5})", text)
    ports = (int(words[1]), int(words[2])) if words else (0, 0)
    if not all(0 < port < 1 << 16 for port in ports):
        raise ArgumentTypeError(
            f"{text[:40]!r} is no pair of ports from 1 to 65535, such as 8080:80"
        )
    return ports


def _free_forwards(forwards: Sequence[tuple[int, int]]) -> tuple[tuple[int, int], ...]:
    """The forwards, each once. Raises UsageError for a port of this host that is taken."""
    wanted = tuple(dict.fromkeys(forwards))
    with ExitStack() as stack:
        for here, there in wanted:
            try:
                stack.enter_context(socket.create_server(("127.0.0.1", here)))
            except OSError as error:
                reason = os.strerror(error.errno or 0)
                raise UsageError(
                    f"port {here} of 127.0.0.1 cannot be forwarded: {reason}",
                    todo=f"choose another port, as in --forward {_free_port()}:{there}",
                ) from error
    return wanted


def _choose_boot(target: Target, name: str | None) -> BootCheck:
    """The boot check of the machine of that name, or of the site's first machine."""
    for boot in target.boots:
        if name in (None, boot.machine.name):
            return boot
    names = [boot.machine.name for boot in target.boots]
    what = f"site {target.site.name} has no machine {name!r}{suggest(name or '', names)}"
    raise UsageError(what, todo=choose(names, "choose another site"))


def _log_in_on_console(root: FileSystem) -> bool:
    """Has the machine log root in on its serial port. Only the throw-away disk is changed. Returns
    whether that is possible: without systemd, the person has to log in."""
    if not root.names(_AUTOLOGIN.parent.parent):
        return False
    root.write(_AUTOLOGIN, _AUTOLOGIN_TEXT, 0o644)
    return True


@contextmanager
def _ssh_settings(folder: Path, network: qemu.Network, key: Path) -> Iterator[Path]:
    """A file with which `ssh -F FILE appliance` reaches the machine while the block lasts: `ssh`,
    or `ssh-2` beside another machine of the appliance."""
    text = _SSH_SETTINGS.format(port=network.ssh_port, key=key)
    for number in count(1):
        path = folder / ("ssh" if number == 1 else f"ssh-{number}")
        with path.open("a") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                continue
            path.write_text(text)  # of a machine that was killed there may be one left
            try:
                yield path
            finally:
                path.unlink(missing_ok=True)
            return


def _hint(appliance: str, machine: str, settings: Path, *, logged_in: bool) -> str:
    here = ", where root is logged in" if logged_in else ""
    return (
        f"console of {appliance} ({machine}){here}; control-a x ends it\n"
        f"to log in from another terminal: ssh -F {shlex.quote(shown(settings))} appliance"
    )


def _public_keys(own: Path) -> str:
    """The user's public SSH keys, as a node would write a launching user's, and the machine's."""
    keys = [own.read_text().rstrip("\n")]
    for file in sorted(Path("~/.ssh").expanduser().glob("*.pub")):
        with suppress(OSError, ValueError):  # not for us, or no text
            if file.is_file():
                keys.append(file.read_text().rstrip("\n"))
    return "\n".join(keys)


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port: int = server.getsockname()[1]
        return port
