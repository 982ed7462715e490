"""The boot check: boots an image on its site's virtual hardware, and asks the guest how it is.

The very image file is unpacked to a throw-away disk, edited as the site's node would edit it, and
booted. The user-data that the guest's fetcher gets from the metadata service makes it report, after
the fetcher was also tried with the other answers that the service can give (`userdata_cases.py`).
"""

from __future__ import annotations

import re
import secrets
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, ClassVar

from pipeline.clouds import metadata_service
from pipeline.disk import ext4
from pipeline.errors import (
    GuestCheckError,
    GuestUserDataError,
    StageFailedError,
)
from pipeline.machine import qemu
from pipeline.machine.accelerator import find_accelerator
from pipeline.machine.metadata import MetadataServer
from pipeline.machine.node import edit_as_node, find_root
from pipeline.machine.running_guest import RunningGuest
from pipeline.model import MIB, Machine
from pipeline.stages import userdata_cases
from pipeline.stages.base import Context, LocalFile, Stage, read_unchanged
from pipeline.stages.guest_report import (
    make_metadata,
    make_report_script,
    number_of,
    output_of,
    parse_report,
    public_key_of,
    status_of,
)
from pipeline.stages.image import data_bytes, unpack_image
from pipeline.store import Artifact
from pipeline.tools import run

# From power-on to report. Without KVM 25 s on a fast host, 311 s on a slow and busy one.
BOOT_SECONDS = {"tcg": 900, "kvm": 60}
AUTHORIZED_KEYS = PurePosixPath("/root/.ssh/authorized_keys")
"""Where the public keys lie that root may log in with."""
_DISK = "disk.raw"  # the machine's, in the folder for what is not kept
_LATE_REQUESTS = 1  # that the metadata service refuses, as one that is not ready yet does
# What may stay free behind root: the second GPT, and the MiB by which partitions are aligned.
_TAIL_ROOM = 2 * MIB
# What resize2fs may leave of a partition: a last group of blocks that would hold nothing but its
# own tables, which are of 8 MiB at most, and of 4 MiB for the group descriptors' copy.
_GROUP_ROOM = 16 * MIB

_TOLD = ("nonce", "release", "kernel", "firmware", "boot_seconds")  # what every guest reports
_STATUS, _SECONDS = re.compile("[0-9]{1,3}"), re.compile(r"[0-9]{1,9}(\.[0-9]{1,9})?")


@dataclass(frozen=True, kw_only=True)
class BootCheck(Stage):
    """Boots an image once; its facts are the guest's report, and it fails if the guest does.

    Raises GuestSilentError, GuestNetworkError, GuestUserDataError, GuestCheckError.
    """

    name: ClassVar[str] = "boot"
    cores: ClassVar[int] = 1  # what a guest with two CPUs keeps busy under TCG, on average
    revision: ClassVar[int] = 7

    machine: Machine
    report: LocalFile
    """What makes the guest report: `boot_report.sh`."""
    login_user: str = "root"
    """Who is to log in with the launch's key."""
    user_data: LocalFile | None
    """The appliance's default user-data, which the guest runs."""
    check: LocalFile | None
    """The appliance's own check script."""
    seconds: int | None
    """Time limit; None: what the host's accelerator needs."""

    @property
    def requires(self) -> tuple[str, ...]:
        return needs_of(self.machine)

    @property
    def memory(self) -> int:
        """The guest's memory, and what QEMU itself takes."""
        return self.machine.memory + qemu.OVERHEAD

    def run(self, inputs: Sequence[Artifact], context: Context) -> Mapping[str, Any]:
        (image,) = inputs
        accelerator = find_accelerator(context.store.folder)
        limit = self.seconds or BOOT_SECONDS[accelerator]
        nonce = secrets.token_hex(16)
        disk = context.work / _DISK
        context.progress.step("making the machine's disk")
        context.store.check_space(data_bytes(image))
        unpack_image(image, disk)
        edit_as_node(self.machine, disk, public_key_of(nonce), self.metadata_url())
        _check_no_host_keys(find_root(disk))
        qemu.ready_disk(self.machine, disk)
        service = metadata_service(self.machine.metadata)
        cases = userdata_cases.make_cases(service, nonce)
        metadata = make_metadata(
            service,
            make_report_script(
                self.report,
                nonce=nonce,
                metadata_url=self.metadata_url(),
                cases=" ".join(case.name for case in cases),
                login_user=self.login_user,
                user_data=None if self.user_data is None else read_unchanged(self.user_data),
                check=None if self.check is None else read_unchanged(self.check),
            ),
            public_key=public_key_of(nonce),
        )
        others = {case.name: service(user_data=case.user_data) for case in cases}
        context.progress.step(f"booting ({accelerator})", seconds=limit)
        with MetadataServer(
            metadata, private=True, late=_LATE_REQUESTS, takes_reports=True, others=others
        ) as server:
            network = qemu.Network(metadata_socket=server.socket_name)
            argv = qemu.command(self.machine, disk, network, accelerator)
            with run.start(argv) as process:
                guest = RunningGuest(process, context.log, context.progress.output)
                try:
                    report = guest.wait(server, limit, context.store.check_space)
                finally:
                    guest.end()
        facts = parse_report(report)
        self._check_whole(facts, context.log)
        self._judge(facts, nonce, cases, context.log)
        return {"accelerator": accelerator, **_told(facts), "user_data": _outcomes(facts, cases)}

    def find_remains(self, context: Context) -> Path:
        return context.work / _DISK

    def metadata_url(self) -> str:
        """The metadata service's URL as the guest reaches it."""
        return f"http://{self.machine.metadata_address}"

    @property
    def writes_key(self) -> bool:
        """Whether the site's node writes a public key into the image."""
        return any("{public_key}" in edit.text for edit in self.machine.edits)

    def _check_whole(self, facts: Mapping[str, list[str]], log: Path) -> None:
        """Checks that a report says all that is kept of it, in numbers where it is a number. Raises
        GuestCheckError."""
        parts = {"user_data_status": self.user_data, "check_status": self.check}
        ran = [name for name, file in parts.items() if file and file.path.stat().st_size]
        odd = [f"no {name}" for name in (*_TOLD, *ran) if name not in facts]
        numbers = dict.fromkeys(parts, _STATUS) | {"boot_seconds": _SECONDS}
        for name, form in numbers.items():
            value = facts.get(name, [""])[0]
            if value and not form.fullmatch(value):
                odd.append(f"{name} {value[:40]!r}")
        if odd:
            raise GuestCheckError(
                f"the guest's report is damaged: it has {', '.join(odd)}",
                todo="see in the log what disturbs the script that reports, the guest's user-data",
                log=log,
            )

    def _judge(
        self,
        facts: Mapping[str, list[str]],
        nonce: str,
        cases: Sequence[userdata_cases.Case],
        log: Path,
    ) -> None:
        """Raises the error that fits what a guest reported, if anything in it is wrong."""
        if facts.get("nonce") != [nonce]:
            raise StageFailedError("the report is of another machine", log=log)
        if status_of(facts, "user_data") != 0:
            raise GuestUserDataError(
                f"the default user-data ended with status {status_of(facts, 'user_data')} in the "
                "guest",
                todo="correct the definition's phantom.user_data",
                log=log,
                detail=output_of(facts, "user_data"),
            )
        faults = [*self._faults(facts, nonce)]
        wrong_cases = [*userdata_cases.find_faults(cases, facts)] if "fetcher" in facts else []
        if faults or wrong_cases:
            details = [output_of(facts, "check")] if status_of(facts, "check") != 0 else []
            details += facts.get("case_said", []) if wrong_cases else []
            raise GuestCheckError(
                f"the guest is not as it should be: {'; '.join(faults + wrong_cases)}",
                todo="`phantom-image boot` starts the same machine to look at",
                log=log,
                detail="\n".join(details) or None,
            )

    def _faults(self, facts: Mapping[str, list[str]], nonce: str) -> Iterator[str]:
        if status_of(facts, "check") != 0:
            yield f"its check script ended with status {status_of(facts, 'check')}"
        if facts.get("failed_unit"):
            yield f"failed units: {', '.join(facts['failed_unit'])}"
        if facts.get("idle_unit"):
            yield f"units that were to be started and were not: {', '.join(facts['idle_unit'])}"
        if not facts.get("address"):
            yield "it has no address"
        if "sshd" in facts and not facts.get("ssh_host_key"):
            yield "it made no SSH host keys"
        if "cloud_init" in facts:
            yield "cloud-init is to run its user-data, and found none; the fetcher ran it"
        for runner in facts.get("run_again", []):
            yield f"its user-data ran twice: by {_runner(facts)}, and by {runner}"
        if self.writes_key and public_key_of(nonce) not in facts.get("authorized_key", []):
            yield f"the key that the node wrote is not in {AUTHORIZED_KEYS}"
        if self._lacks_login(facts, nonce):
            yield f"the launch's key is not in the authorized_keys of {self.login_user}"
        if not _has_grown(facts):
            root, disk = number_of(facts, "root_bytes"), number_of(facts, "disk_bytes")
            yield f"root did not grow: {root} bytes on a disk of {disk}"
        tries = number_of(facts, "fetcher_tries")
        # cloud-init tries again by itself.
        late = "fetcher" in facts and _runner(facts) == "fetcher" and "cloud_init" not in facts
        if late and tries <= _LATE_REQUESTS:
            yield (
                "its user-data fetcher was not tried with a metadata service that is late: it had "
                f"its user-data at try {tries}, though the first request was refused"
            )

    def _lacks_login(self, facts: Mapping[str, list[str]], nonce: str) -> bool:
        """Whether nobody can log in with the key of the launch, though the fetcher is to see to it:
        root's is the node's work or cloud-init's where one of these does it."""
        root = self.login_user == "root"
        if "login_user" not in facts or (root and (self.writes_key or _runner(facts) != "fetcher")):
            return False
        return public_key_of(nonce) not in facts.get("login_key", [])


def needs_of(machine: Machine) -> tuple[str, ...]:
    """What a host needs to boot a machine, in the words of `machine/requirements.py`."""
    if machine.kernel is not None and machine.kernel.kernel is None:
        return (BootCheck.name, "boot with a site's kernel")
    return (BootCheck.name, "boot by UEFI") if machine.firmware == "uefi" else (BootCheck.name,)


def _told(facts: Mapping[str, list[str]]) -> dict[str, Any]:
    """What is kept of a report: what it says of the image, and nothing that is secret or random."""
    return {
        **{name: facts[name][0] for name in ("release", "kernel", "firmware")},
        "addresses": facts.get("address", []),
        "failed_units": facts.get("failed_unit", []),
        "root_bytes": number_of(facts, "root_bytes"),
        **{name: facts.get(name, [""])[0] for name in ("disk_driver", "network_driver")},
        "ssh_host_keys": [line.split()[-1].strip("()") for line in facts.get("ssh_host_key", [])],
        "user_data_by": _runner(facts),
        "fetcher_tries": number_of(facts, "fetcher_tries"),
        "fetcher_protocol": facts.get("fetcher_protocol", [""])[0],
        "boot_seconds": float(facts["boot_seconds"][0]),
        "user_data_status": status_of(facts, "user_data") if "user_data_status" in facts else None,
        "check_status": status_of(facts, "check") if "check_status" in facts else None,
    }


def _outcomes(
    facts: Mapping[str, list[str]], cases: Sequence[userdata_cases.Case]
) -> dict[str, str] | None:
    """What came of each answer of the metadata service; None where the image has a fetcher of its
    own, which is not tried with them."""
    if "fetcher" not in facts:
        return None
    runner = _runner(facts)
    tries = f"after {number_of(facts, 'fetcher_tries')} tries"
    late = f"run {tries if runner == 'fetcher' else f'by {runner}'}"
    return {"present": "run", "late": late, **{case.name: case.outcome for case in cases}}


def _runner(facts: Mapping[str, list[str]]) -> str:
    """Who ran the user-data: `fetcher` or `cloud-init`."""
    return facts.get("user_data_by", ["fetcher"])[0]


def _has_grown(facts: Mapping[str, list[str]]) -> bool:
    """Whether root's partition reaches the disk's end, and its file system the partition's.

    It compares bytes and not shares: a share of a large disk may be more than all that root grows.
    """
    start, end = number_of(facts, "root_start"), number_of(facts, "root_end")
    behind = number_of(facts, "disk_bytes") - end
    unused = end - start - number_of(facts, "file_system_bytes")
    return 0 <= behind <= _TAIL_ROOM and 0 <= unused <= _GROUP_ROOM


def _check_no_host_keys(root: ext4.FileSystem) -> None:
    """Keys in the image would be those of every machine. Raises GuestCheckError."""
    keys = [name for name in root.names(PurePosixPath("/etc/ssh")) if name.startswith("ssh_host_")]
    if keys:
        raise GuestCheckError(
            f"the image holds SSH host keys, which all its machines would share: {', '.join(keys)}",
            todo="remove them in the element or script that makes them",
        )
