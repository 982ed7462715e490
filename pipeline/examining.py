"""Looks into any image file, offline, and judges where it would boot: `phantom-image inspect`."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path, PurePosixPath
from typing import Any

from pipeline.clouds import clouds
from pipeline.errors import ApplianceError, KernelError, PhantomError, UsageError
from pipeline.guest import cloud_init, fstab
from pipeline.guest.appliance import Drive, launched
from pipeline.guest.geometry import read_geometry
from pipeline.guest.inspection import describe_place, inspect_system, mounted, to_facts
from pipeline.guest.system import Place, System
from pipeline.guest.tree import GuestTree
from pipeline.judging import Inside, Verdict, judge
from pipeline.model import Progress, Sha256, Site, format_size
from pipeline.sources.base_disk import BASE, BaseDisk, look, stamp_of
from pipeline.stages.base import Context, LocalFile, key_of
from pipeline.store import Store
from pipeline.tools import foreign_kernel, kernel, run
from pipeline.tools.disk_formats import called

_MOST_BYTES = 2 << 40  # of the disk in it; what says that it is larger would take hours to unpack


@dataclass(frozen=True, kw_only=True)
class Judged:
    """A kind of site, and what an image would do there."""

    cloud: str
    kind: str
    """In words for people."""
    layout: str
    verdict: Verdict


@dataclass(frozen=True, kw_only=True)
class Examined:
    """What an image file is, and where it would boot."""

    file: Path
    file_bytes: int
    format: str
    """qemu-img's name of it."""
    compression: str | None
    system: System
    inside: Inside
    verdicts: Sequence[Judged]


def examine(file: Path, declared: str | None, store: Store, progress: Progress) -> Examined:
    """Reads an image of any format that base images may have; it is not changed.

    Raises UsageError for what is no file, and the errors of `BaseDisk` and `pipeline.guest`.
    """
    # On a thread of its own: a call of libguestfs would keep this one from hearing control-c.
    with ThreadPoolExecutor(max_workers=1, thread_name_prefix="inspect") as pool:
        future = pool.submit(_examine, file, declared, store, progress)
        try:
            wait([future])
        except KeyboardInterrupt:
            while not future.done():
                run.stop_all()
                wait([future], timeout=0.05)
            raise
        return future.result()


def _examine(file: Path, declared: str | None, store: Store, progress: Progress) -> Examined:
    if not file.is_file():
        raise UsageError(
            f"{file} is {'no file' if file.exists() else 'not there'}",
            todo="name the file of a disk image: raw, qcow2, vmdk, vhd or vdi, packed or not",
        )
    if not os.access(file, os.R_OK):
        raise UsageError(f"{file} cannot be read", todo="see who may read it")
    looked = look(file, str(file), declared)
    disk = file.absolute()
    key = key_of(["inspect", str(disk)])
    waiting = "another command inspects this image; waiting for it"
    with (
        store.lock(f"inspect-{key}", lambda: progress.step(waiting)),
        store.making("inspect", key) as folder,
    ):
        log = store.log("inspect", key)
        log.unlink(missing_ok=True)
        if (looked.format, looked.compression) != ("raw", None):
            disk = _unpack(disk, declared, folder, log, store, progress)
        try:
            geometry, drive = read_geometry(disk), Drive(file=disk, name="disk")
            with launched([drive], store=store.folder, log=log, progress=progress) as guest:
                progress.step("looking into the image")
                system = inspect_system(guest, geometry, drive)
                progress.step("looking at its kernel")
                with mounted(guest, system, drive):
                    inside = _look_inside(GuestTree(guest), folder)
        except ApplianceError:  # whatever the file is
            raise
        except PhantomError as error:
            raise error.located(str(file)) from error
        progress.step("done")
    return Examined(
        file=file,
        file_bytes=file.stat().st_size,
        format=looked.format,
        compression=looked.compression,
        system=system,
        inside=inside,
        verdicts=_judge(system, inside, looked.format, looked.compression),
    )


def _unpack(
    file: Path, declared: str | None, folder: Path, log: Path, store: Store, progress: Progress
) -> Path:
    stage = BaseDisk(
        file=LocalFile(digest=Sha256(""), path=file),  # that is nobody's business here
        format=declared,
        most_bytes=_MOST_BYTES,
        location=str(file),
        stamp=stamp_of(file),
    )
    out, work = folder / "out", folder / "work"
    out.mkdir()
    work.mkdir()
    stage.run((), Context(out=out, work=work, log=log, store=store.folder, progress=progress))
    return out / BASE


def _judge(
    system: System, inside: Inside, file_format: str, compression: str | None
) -> list[Judged]:
    verdicts = []
    for name, cloud in clouds().items():
        for kind, options in cloud.site_kinds.items():
            made = cloud(Site(name=kind, cloud=name, options=options, where="built in"))
            verdict = judge(
                system,
                inside,
                disk=made.disk,
                hardware=made.hardware,
                machines=made.machines,
                file_format=file_format,
                compression=compression,
            )
            layout = made.disk.layout
            verdicts.append(Judged(cloud=name, kind=kind, layout=layout, verdict=verdict))
    return verdicts


# ---- telling of it


def describe(examined: Examined) -> dict[str, Any]:
    """What was found, for programs: keys stay what they are."""
    system, kernel_found = examined.system, examined.inside.kernel
    facts = to_facts(system)
    geometry = {name: facts.pop(name) for name in ("disk_bytes", "table", "boot_code")}
    partitions, file_systems = facts.pop("partitions"), facts.pop("file_systems")
    boots = None
    if kernel_found is not None:
        line = " ".join(kernel_found.command_line)
        boots = {"version": kernel_found.version, "command_line": line}
    return {
        "file": str(examined.file),
        "bytes": examined.file_bytes,
        "format": called(examined.format),
        "compression": examined.compression,
        **geometry,
        "partitions": partitions,
        "file_systems": file_systems,
        "system": {**facts, "boots": boots},
        "sites": [
            {
                "cloud": each.cloud,
                "layout": each.layout,
                "kind": each.kind,
                "boots": not each.verdict.reasons,
                "reasons": each.verdict.reasons,
                "boots_converted": not each.verdict.obstacles,
                "obstacles": each.verdict.obstacles,
                "notes": each.verdict.notes,
            }
            for each in examined.verdicts
        ],
        "remarks": examined.inside.remarks,
    }


def format_description(told: Mapping[str, Any]) -> str:
    """What `describe` says, for people."""
    packed = f" in {told['compression']}" if told["compression"] else ""
    lines = [
        f"{told['file']}: {told['format']}{packed}, {format_size(told['bytes'])}; "
        f"a disk of {format_size(told['disk_bytes'])}",
        *_format_disk(told),
        "",
        *_format_system(told["system"]),
        "",
    ]
    for site in told["sites"]:
        lines.append(f"{site['kind']}: {'boots' if site['boots'] else 'does not boot'} as it is")
        lines += [f"  - {reason}" for reason in site["reasons"]]
        lines += [f"  ({note})" for note in site["notes"]]
        if not site["boots_converted"]:
            lines.append("  nor after it was converted as a base image:")
            lines += [f"  - {reason}" for reason in site["obstacles"]]
        elif not site["boots"]:
            lines.append("  as a base image it is converted, and boots")
    if told["remarks"]:
        lines += ["", "An image that many machines boot should not be so:"]
        lines += [f"  - {remark}" for remark in told["remarks"]]
    return "\n".join(lines)


def _format_disk(told: Mapping[str, Any]) -> Iterator[str]:
    table = {"mbr": "MBR", "gpt": "GPT", None: "none, a bare file system"}[told["table"]]
    code = "; boot code in the first sector" if told["boot_code"] else ""
    yield f"  partition table  {table}{code}"
    entries = {each["number"]: each for each in told["partitions"]}
    held = {each["place"]["partition"] for each in told["file_systems"]}
    numbered = [
        (number, [f"partition {number}", format_size(each["size"]), "", "holds others"])
        for number, each in entries.items()
        if number not in held
    ]
    for each in told["file_systems"]:
        number = each["place"]["partition"]
        numbered.append((number or len(entries) + 1, _format_row(each, entries.get(number))))
    rows = [row for _, row in sorted(numbered, key=lambda each: each[0])]
    columns = zip_longest(*rows, fillvalue="")
    widths = [max(map(len, column)) for column in columns]
    for row in rows:
        cells = (f"{cell:{width}}" for cell, width in zip(row, widths, strict=False) if width)
        yield f"  {'  '.join(cells).rstrip()}"


def _format_row(each: Mapping[str, Any], entry: Mapping[str, Any] | None) -> list[str]:
    place = each["place"]
    return [
        describe_place(Place(**place)).removeprefix("the "),
        format_size(place["size"]),
        f"at {format_size(place['start'])}" if place["start"] else "",
        each["type"] or "nothing known",
        f"on {each['mount']}" if each["mount"] else "",
        f"label {each['label']}" if each["label"] else "",
        "" if entry is None else f"type {entry['type']}",
        "boot flag" if entry is not None and entry["bootable"] else "",
    ]


def _format_system(system: Mapping[str, Any]) -> Iterator[str]:
    boots = system["boots"]
    kernels = ", ".join(system["kernels"]) or "none"
    if boots is not None:
        kernels += f"; boots {boots['version']} with {boots['command_line'] or 'no words'}"
    fetcher = "there" if system["fetcher"] else "not there"
    rows = {
        "system": f"{system['product']}, {system['architecture']}",
        "root": f"{format_size(system['root_bytes'])}",
        "kernels": kernels,
        "boot loaders": ", ".join(system["boot_loaders"]),
        "init": system["init"],
        "packages": system["package_manager"],
        "network": ", ".join(system["networks"]),
        "cloud-init": system["cloud_init"],
        "SELinux": system["selinux"],
        "fetcher": f"{fetcher}; HTTP clients: {', '.join(system['clients']) or 'none'}",
    }
    for name, value in rows.items():
        yield f"  {name:14} {value or 'none'}"


# ---- what is in it


def _look_inside(tree: kernel.Tree, work: Path) -> Inside:
    remedies = kernel.remedies_of(tree)
    found, error = None, None
    try:
        found = kernel.read_kernel(tree, work, remedies)
    except KernelError as refused:
        error = refused.what
    _, entry = kernel.find_entry(tree)
    return Inside(
        kernel=found,
        kernel_error=error,
        remedies=remedies,
        foreign=tuple(foreign_kernel.find_faults(tree)),
        mounts=tuple(fstab.parse(tree.read(PurePosixPath("/etc/fstab")))),
        menu=entry is not None,
        remarks=tuple(_remarks(tree)),
    )


def _remarks(tree: kernel.Tree) -> Iterator[str]:
    """What would make machines of this image twins, or let strangers in."""
    rules = tree.read(PurePosixPath("/etc/udev/rules.d/70-persistent-net.rules"))
    if re.search(r"^\s*[A-Z]", rules, re.MULTILINE):
        yield "persistent-net rules name the network card of another machine"
    keys = [name for name in tree.names(PurePosixPath("/etc/ssh")) if name.endswith("_key")]
    if any(name.startswith("ssh_host_") for name in keys):
        yield "it has SSH host keys, which all its machines would share"
    if tree.read(PurePosixPath("/etc/machine-id")).strip() not in ("", "uninitialized"):
        yield "it has a machine-id, which all its machines would share"
    for folder in ("/var/lib/systemd", "/var/lib/urandom"):
        if "random-seed" in tree.names(PurePosixPath(folder)):
            yield f"it has a random seed in {folder}, which all its machines would share"
    yield from _password_remarks(tree)
    homes = [f"home/{name}" for name in tree.names(PurePosixPath("/home"))]
    for home in ("root", *homes):
        path = PurePosixPath("/", home, ".ssh/authorized_keys")
        if re.search(r"^\s*[^#\s]", tree.read(path), re.MULTILINE):
            yield f"{path} lets its owner in"
    if tree.names(PurePosixPath("/var/lib/cloud/instances")):
        yield "cloud-init remembers a machine that it ran on"
    if {"user-data", "instance"} & {*tree.names(PurePosixPath("/var/lib/phantom"))}:
        yield "the user-data fetcher remembers a machine that it ran on"
    if tree.read(cloud_init.NODE_FILE):
        yield f"{cloud_init.NODE_FILE} names the metadata service of another machine"


def _password_remarks(tree: kernel.Tree) -> Iterator[str]:
    for line in tree.read(PurePosixPath("/etc/shadow")).splitlines():
        user, _, rest = line.partition(":")
        password = rest.split(":")[0]
        if not re.fullmatch(r"[a-z_][a-z0-9_.-]*", user):
            continue
        if not password:
            yield f"{user} has an empty password"
        elif password[0] not in "*!x":
            yield f"{user} has a password"
