"""`phantom-image manifest`: a manifest's file checked, shown, or compared with another."""

from __future__ import annotations

import os
import re
from argparse import ArgumentParser, Namespace
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pipeline.build import differences
from pipeline.build.manifest import FILE, SCHEMA, SHAPE, load_manifest, read_schema
from pipeline.commands import options as shared
from pipeline.commands.output import print_json, print_line, print_table
from pipeline.commands.show import print_manifest
from pipeline.definitions.messages import quote
from pipeline.errors import ManifestError, UsageError

EXAMPLES = (
    "phantom-image manifest validate build/web/latest/manifest.json",
    "phantom-image manifest show build/web/latest",
    "phantom-image manifest diff build/web/0123456789ab build/web/latest --json",
)
_FILES = {"validate": None, "show": 1, "diff": 2}  # how many; None: any number
_TODO = "build or publish the appliance again, which writes its manifest anew"
_MOST_SHOWN = 100  # faults in one message
_DIGEST = re.compile("[0-9a-f]{64}")


def add_arguments(parser: ArgumentParser) -> None:
    """Adds the command's arguments."""
    parser.add_argument(
        "what",
        choices=tuple(_FILES),
        metavar="WHAT",
        help="validate (against the schema), show, or diff (of two)",
    )
    parser.add_argument(
        "files", nargs="+", type=Path, metavar="FILE", help="a manifest, or a build's folder"
    )
    shared.add(parser, "json")


def run(options: Namespace) -> int | None:
    """Does with the files what the options say."""
    wanted, given = _FILES[options.what], len(options.files)
    if wanted not in (None, given):
        raise UsageError(
            f"`manifest {options.what}` takes {wanted} {'file' if wanted == 1 else 'files'}, not "
            f"{given}",
            todo="name one manifest"
            if wanted == 1
            else "name the earlier manifest, then the later",
        )
    files = [file / FILE if os.path.isdir(file) else file for file in options.files]
    if options.what == "validate":
        return _validate(files, as_json=options.json)
    if options.what == "show":
        _show(files[0], as_json=options.json)
    else:
        _diff(files[0], files[1], as_json=options.json)
    return None


# ---- validate


def _validate(files: Sequence[Path], *, as_json: bool) -> int | None:
    """Tells of each file what is wrong with it. Raises ManifestError if anything is, and with
    `as_json` returns its exit status."""
    found = [check(path) for path in files]
    wrong = [each for each in found if not each["valid"]]
    if as_json:
        print_json(found)
        return ManifestError.exit_code if wrong else None
    for each in found:
        if each["valid"]:
            earlier = "" if each["schema"] == SCHEMA else ", an earlier one: read in today's terms"
            print_line(f"{each['file']}: valid, schema {each['schema']}{earlier}")
    if wrong:
        raise make_error(wrong, len(found))
    return None


def check(path: Path) -> dict[str, Any]:
    """The row of a file. Of earlier schemas, what commands read is checked."""
    from pipeline.build.manifest_check import find_faults

    schema: int | None = None
    faults: list[str] = []
    todo = _TODO
    try:
        with shared.reading(path) as real:
            schema = read_schema(real)
            content = load_manifest(real, {} if schema == SCHEMA else SHAPE)
            faults = find_faults(content) if schema == SCHEMA else []
    except ManifestError as error:
        faults, todo = [error.what], error.todo or _TODO
    row = {"file": str(path), "schema": schema, "valid": not faults, "faults": faults}
    return row | ({"todo": todo} if faults else {})


def make_error(wrong: Sequence[Mapping[str, Any]], count: int) -> ManifestError:
    """The error of those rows, of `count` in all, that are not valid."""
    first = wrong[0]
    if len(wrong) > 1:
        lines = [f"{each['file']}: {fault}" for each in wrong for fault in each["faults"]]
        what = f"{len(wrong)} of {count} manifests are not valid"
        return ManifestError(what, todo=_TODO, detail=_join(lines))
    faults = first["faults"]
    if len(faults) == 1:
        return ManifestError(faults[0], where=first["file"], todo=first["todo"])
    what = f"the manifest has {len(faults)} faults"
    return ManifestError(what, where=first["file"], todo=_TODO, detail=_join(faults))


def _join(lines: Sequence[str]) -> str:
    more = [f"and {len(lines) - _MOST_SHOWN:,} more"] if len(lines) > _MOST_SHOWN else []
    return "\n".join([*lines[:_MOST_SHOWN], *more])


# ---- show


def _show(path: Path, *, as_json: bool) -> None:
    with shared.reading(path) as real:
        content = load_manifest(real)
    if as_json:
        print_json(content, ascii_only=False)
    else:
        print_manifest(content, path)


# ---- diff


def _diff(before: Path, after: Path, *, as_json: bool) -> None:
    contents = []
    for path in (before, after):
        with shared.reading(path) as real:
            contents.append(load_manifest(real, differences.SHAPE))
    changes = differences.compare(*contents)
    old, new = ({key: each["appliance"][key] for key in _TITLE} for each in contents)
    if as_json:
        same = not any(changes.values())
        print_json({"before": old, "after": new, "same": same, "changes": changes})
        return
    print_line(f"{_title(old)} -> {_title(new)}")
    if not any(changes.values()):
        print_line("nothing differs")
    for part, rows in changes.items():
        if rows:
            print_line(part.replace("_", " "))
            print_table([_row(row) for row in rows], indent=2)


_TITLE = ("name", "version", "build")


def _title(appliance: Mapping[str, str]) -> str:
    return f"{appliance['name']} {appliance['version']}, build {appliance['build']}"


def _row(change: Mapping[str, Any]) -> tuple[str, str, str]:
    """A change as people read it: whether something came (+), went (-) or changed (~)."""
    name, before, after = change["name"], change["before"], change["after"]
    if before is None:
        return "+", name, _first(after)
    if after is None:
        return "-", name, _first(before)
    if not isinstance(before, dict):
        return "~", name, f"{_text(before)} -> {_text(after)}"
    differing = [key for key in before if before[key] != after[key]]
    if "version" in differing:  # whose digest differs then, too
        return "~", name, f"{before['version']} -> {after['version']}"
    texts = (f"{key} {_text(before[key])} -> {_text(after[key])}" for key in differing)
    return "~", name, ", ".join(texts)


def _first(value: Any) -> str:
    """What matters most of a value: of a package its version, of a publication its id."""
    return _text(next(iter(value.values())) if isinstance(value, dict) else value)


def _text(value: Any) -> str:
    if isinstance(value, str):
        if _DIGEST.fullmatch(value):
            return value[:12]
        return value if value.isprintable() and len(value) <= 60 else quote(value)
    if value is None:
        return "none"
    return ("no", "yes")[value] if isinstance(value, bool) else quote(value)
