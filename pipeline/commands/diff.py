"""`phantom-image diff`: what differs between two builds or image files."""

from __future__ import annotations

import stat
from argparse import ArgumentParser, Namespace
from collections.abc import Iterator, Mapping
from typing import Any

from pipeline.build.compare import compare, find_side
from pipeline.commands import options as shared
from pipeline.commands.output import print_json, print_line, print_lines, print_table
from pipeline.model import format_size

EXAMPLES = (
    "phantom-image diff web/0123456789ab web",
    "phantom-image diff old.raw new.raw --json",
)


def add_arguments(parser: ArgumentParser) -> None:
    """Adds the command's arguments."""
    shared.add(parser, "json")
    text = "APPLIANCE/BUILD, a build's twelve digits, an appliance (its latest), or an image file"
    parser.add_argument("old", metavar="OLD", help=text)
    parser.add_argument("new", metavar="NEW", help="the other one")


def run(options: Namespace) -> None:
    """Compares, and prints what differs."""
    with shared.open_shown_workspace(options) as workspace:
        old, new = find_side(options.old, workspace), find_side(options.new, workspace)
        progress = workspace.progress("diff")
        told = compare(old, new, workspace.store, progress)
        progress.finish("compared")
    if options.json:
        print_json(told)
    else:
        _print(told)


def _print(told: Mapping[str, Any]) -> None:
    old, new = told["old"], told["new"]
    print_line(f"{old['name']} -> {new['name']}")
    rows = [*_figure_rows(old, new), *_boot_rows(told["boots"])]
    if rows:
        print_table(rows, indent=2)
    packages = told["packages"]
    count = sum(map(len, packages.values()))
    print_line()
    print_line(f"packages: {count or 'none'} changed" if count else "packages: the same")
    for word, sign in (("added", "+"), ("removed", "-")):
        print_lines(f"  {sign} {each['name']} {each['version']}" for each in packages[word])
    for each in packages["changed"]:
        print_line(f"  * {each['name']} {each['old']} -> {each['new']}")
        print_lines(f"      {line}" for line in each["changelog"])
    units = told["units"]
    if any(units.values()):
        print_line()
        print_line(f"started at boot: {sum(map(len, units.values()))} changed")
        for word, sign in (("added", "+"), ("removed", "-")):
            print_lines(f"  {sign} {unit}" for unit in units[word])
    print_line()
    files = told["files"]
    print_line(f"files: {len(files)} changed" if files else "files: the same")
    print_lines(_file_line(each) for each in files)


def _figure_rows(old: Mapping[str, Any], new: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """What the two are, where that differs; the size of root in any case."""
    for key, name in (("version", "version"), ("definition", "definition"), ("commit", "commit")):
        if old[key] != new[key]:
            digits = 12 if key != "version" else None
            one, other = ((str(side[key] or "unknown"))[:digits] for side in (old, new))
            yield name, f"{one} -> {other}"
    if old["kernels"] != new["kernels"]:
        one, other = (", ".join(side["kernels"]) or "none" for side in (old, new))
        yield "kernel", f"{one} -> {other}"
    for key, name in (("root_bytes", "size of root"), ("used_bytes", "used of it")):
        one, other = format_size(old[key]), format_size(new[key])
        more = new[key] - old[key]
        sign = "+" if more > 0 else "-"
        changed = f"{one} -> {other} ({sign}{format_size(abs(more))})"
        yield name, changed if more else f"{one}, the same"


def _boot_rows(boots: list[Mapping[str, Any]]) -> Iterator[tuple[str, str]]:
    for each in boots:
        seconds = [each["boot_seconds"][side] for side in ("old", "new")]
        one, other = ("not booted" if time is None else f"{time:.1f} s" for time in seconds)
        how = {each["accelerator"][side] for side in ("old", "new")} - {None}
        note = " (of different accelerators)" if len(how) > 1 else ""
        yield f"boot {each['site']} {each['machine']}", f"{one} -> {other}{note}"


def _file_line(change: Mapping[str, Any]) -> str:
    old, new = change["old"], change["new"]
    if old is None:
        return f"  + {change['path']}  {_describe(new)}"
    if new is None:
        return f"  - {change['path']}  {_describe(old)}"
    told = [*_changes(old, new)]
    if change["content"] and old["size"] == new["size"]:
        told.append("content")
    return f"  * {change['path']}  {', '.join(told)}"


def _describe(entry: Mapping[str, Any]) -> str:
    kind = {"file": stat.S_IFREG, "folder": stat.S_IFDIR, "link": stat.S_IFLNK}.get(entry["kind"])
    mode = stat.filemode((kind or 0) | entry["mode"])
    size = format_size(entry["size"]) if entry["kind"] == "file" else entry["kind"]
    target = "" if entry["target"] is None else f" to {entry['target']}"
    return f"{mode} {entry['uid']}:{entry['gid']} {size}{target}"


def _changes(old: Mapping[str, Any], new: Mapping[str, Any]) -> Iterator[str]:
    """What a path has in another way."""
    if old["kind"] != new["kind"]:
        yield f"{old['kind']} -> {new['kind']}"
    if old["mode"] != new["mode"]:
        yield f"mode {old['mode']:04o} -> {new['mode']:04o}"
    if (old["uid"], old["gid"]) != (new["uid"], new["gid"]):
        yield f"owner {old['uid']}:{old['gid']} -> {new['uid']}:{new['gid']}"
    if old["target"] != new["target"]:
        yield f"to {old['target']} -> to {new['target']}"
    elif old["size"] != new["size"]:
        yield f"{format_size(old['size'])} -> {format_size(new['size'])}"
