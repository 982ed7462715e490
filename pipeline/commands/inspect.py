"""`phantom-image inspect`: what an image file holds, read offline, and where it would boot."""

from __future__ import annotations

from argparse import ArgumentParser, Namespace
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from pipeline.clouds import clouds, make_cloud
from pipeline.commands import options as shared
from pipeline.commands.compatibility import Inside, judge
from pipeline.commands.image_files import FORMATS, opened_disk, stoppable
from pipeline.commands.output import print_json, print_line, print_lines, print_table
from pipeline.disk import foreign_kernel, fstab, kernel
from pipeline.disk.boot_entries import find_entry
from pipeline.disk.formats import from_user_name, to_user_name
from pipeline.disk.fstab import FSTAB
from pipeline.disk.kernel import Kernel
from pipeline.disk.partitions import read_geometry
from pipeline.disk.system import Place, System
from pipeline.disk.tree import Tree
from pipeline.errors import KernelError
from pipeline.guest.appliance import Drive, launched
from pipeline.guest.inspection import inspect_system, to_facts
from pipeline.guest.mounting import describe_place, mounted
from pipeline.guest.remarks import find_remarks
from pipeline.guest.tree import GuestTree
from pipeline.model import Progress, Site, format_size
from pipeline.sources.base_disk import Looked
from pipeline.store import Store

EXAMPLES = ("phantom-image inspect cluster.qcow2",)


def add_arguments(parser: ArgumentParser) -> None:
    """Adds the command's arguments."""
    shared.add(parser, "verbose", "json")
    parser.add_argument("file", type=Path, metavar="FILE", help="a disk image; it is only read")
    parser.add_argument("--format", choices=FORMATS, help="its format, if no header tells it")


def run(options: Namespace) -> None:
    """Prints what the image is and where it would boot."""
    declared = options.format and from_user_name(options.format)
    with shared.open_shown_workspace(options) as workspace:
        told = examine(options.file, declared, workspace.store, workspace.progress("inspect"))
    if options.json:
        print_json(told)
    else:
        _print(told)


def examine(file: Path, declared: str | None, store: Store, progress: Progress) -> dict[str, Any]:
    """Describes, for programs, an image of any format that base images may have; only reads it.

    Raises UsageError for anything but a readable file, and what `BaseDisk` and `guest/` raise.
    """
    return stoppable("inspect", partial(_examine, file, declared, store, progress))


def _examine(file: Path, declared: str | None, store: Store, progress: Progress) -> dict[str, Any]:
    with opened_disk("inspect", file, declared, store, progress) as opened:
        looked, log = opened.looked, opened.log
        geometry, drive = read_geometry(opened.disk), Drive(file=opened.disk, name="disk")
        with launched([drive], store=store.folder, log=log, progress=progress) as guest:
            progress.step("looking into the image")
            system = inspect_system(guest, geometry, drive)
            progress.step("looking at its kernel")
            with mounted(guest, system, drive):
                inside = _look_inside(GuestTree(guest), opened.work)
    return {
        "file": str(file),
        "bytes": file.stat().st_size,
        "format": to_user_name(looked.format),
        "compression": looked.compression,
        **_describe_system(system, inside.kernel),
        "sites": list(_describe_sites(looked, system, inside)),
        "remarks": inside.remarks,
    }


def _describe_system(system: System, own: Kernel | str) -> dict[str, Any]:
    """The disk, what lies on it, and the operating system, whose boot loader boots `own`."""
    facts = to_facts(system)
    boots = None
    if not isinstance(own, str):
        boots = {"version": own.version, "command_line": " ".join(own.command_line)}
    names = ("disk_bytes", "table", "boot_code", "partitions", "file_systems")
    disk = {name: facts.pop(name) for name in names}
    return {**disk, "system": {**facts, "boots": boots}}


def _describe_sites(looked: Looked, system: System, inside: Inside) -> Iterator[dict[str, Any]]:
    """What the image would do at each kind of site."""
    for name, cloud in clouds().items():
        for kind, options in cloud.site_kinds.items():
            site = make_cloud(Site(name=kind, cloud=name, options=options, where="built in"))
            verdict = judge(looked, system, inside, site.disk, site.hardware, site.machines)
            yield {
                "cloud": name,
                "layout": site.disk.layout,
                "kind": kind,
                "boots": not verdict.reasons,
                "reasons": verdict.reasons,
                "boots_converted": not verdict.obstacles,
                "obstacles": verdict.obstacles,
                "notes": verdict.notes,
            }


# ---- telling of it


def _print(told: Mapping[str, Any]) -> None:
    """Prints what `examine` says."""
    packed = f" in {told['compression']}" if told["compression"] else ""
    print_line(
        f"{told['file']}: {told['format']}{packed}, {format_size(told['bytes'])}; "
        f"a disk of {format_size(told['disk_bytes'])}"
    )
    table = {"mbr": "MBR", "gpt": "GPT", None: "none, a bare file system"}[told["table"]]
    code = "; boot code in the first sector" if told["boot_code"] else ""
    print_line(f"  partition table  {table}{code}")
    print_table(_disk_rows(told), indent=2)
    print_line()
    print_table(_system_rows(told["system"]), indent=2, first=13)
    print_line()
    print_lines(_format_sites(told))


def _format_sites(told: Mapping[str, Any]) -> list[str]:
    lines: list[str] = []
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
    return lines


def _disk_rows(told: Mapping[str, Any]) -> list[list[str]]:
    entries = {entry["number"]: entry for entry in told["partitions"]}
    held = {each["place"]["partition"] for each in told["file_systems"]}
    numbered = [
        (number, [f"partition {number}", format_size(entry["size"]), "", "holds others"])
        for number, entry in entries.items()
        if number not in held
    ]
    for each in told["file_systems"]:
        number = each["place"]["partition"]
        numbered.append((number or len(entries) + 1, _format_row(each, entries.get(number))))
    return [row for _, row in sorted(numbered, key=lambda pair: pair[0])]


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


def _system_rows(system: Mapping[str, Any]) -> list[tuple[str, str]]:
    boots = system["boots"]
    kernels = ", ".join(system["kernels"]) or "none"
    if boots is not None:
        kernels += f"; boots {boots['version']} with {boots['command_line'] or 'no words'}"
    fetcher = "there" if system["fetcher"] else "not there"
    rows = {
        "system": f"{system['product']}, {system['architecture']}",
        "root": format_size(system["root_bytes"]),
        "kernels": kernels,
        "boot loaders": ", ".join(system["boot_loaders"]),
        "init": system["init"],
        "packages": system["package_manager"],
        "network": ", ".join(system["networks"]),
        "cloud-init": system["cloud_init"],
        "SELinux": system["selinux"],
        "fetcher": f"{fetcher}; HTTP clients: {', '.join(system['clients']) or 'none'}",
    }
    return [(name, value or "none") for name, value in rows.items()]


# ---- what is in it


def _look_inside(tree: Tree, work: Path) -> Inside:
    remedies = kernel.remedies_of(tree)
    own: Kernel | str
    try:
        own = kernel.read_kernel(tree, work, remedies)
    except KernelError as error:
        own = error.what
    _, entry = find_entry(tree)
    return Inside(
        kernel=own,
        remedies=remedies,
        foreign=tuple(foreign_kernel.find_faults(tree)),
        mounts=tuple(fstab.parse(tree.read(FSTAB))),
        menu=entry is not None,
        remarks=tuple(find_remarks(tree)),
    )
