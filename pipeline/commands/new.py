"""`phantom-image new`: writes a definition to start from."""

from __future__ import annotations

import json
import re
import shutil
from argparse import ArgumentParser, Namespace
from pathlib import Path

from pipeline import resources
from pipeline.commands import options as shared
from pipeline.commands.output import cell, print_json, print_line, print_table
from pipeline.definitions.appliance import appliance_schema, load_appliance
from pipeline.definitions.yaml import shown
from pipeline.errors import PhantomError, UsageError
from pipeline.store import write_atomically
from pipeline.workspace import RESERVED

EXAMPLES = ("phantom-image new web", "phantom-image new web --from hello-phantom")

_EXAMPLE = "hello-phantom"
_SCHEMA = "appliance.schema.json"
_EDITOR = f"# yaml-language-server: $schema=../{_SCHEMA}\n"
_EXTENDING = """\
# Relative paths start at this folder. `phantom-image schema` describes every key.

extends: {parent} # mappings are merged with its own, lists are added to them

name: {name} # must be the name of the folder
version: "1.0" # in quotes: YAML would read 1.10 as the number 1.1
summary: {name}, which extends {parent}

# What is inherited need not be written again: the boot check and the user-data are {parent}'s.
#
# packages: [nginx-light]
# files:
#   - {{from: motd, to: /etc/motd}}
# scripts: [set-up.sh]
# boot_check:
#   script: check.sh
"""
_README = """\
# {name}

Say here what the image is for, and who looks after it.

    phantom-image plan {name}       # what would be done
    phantom-image build {name}      # builds and boots it
    phantom-image image {name}      # and publishes it

| file | what it is |
|---|---|
| `appliance.yaml` | the definition |
"""
_SCRIPTS = """\
| `user-data.sh` | the default user-data, which each machine runs at boot |
| `check.sh` | runs in the booted image before it is published; its exit status decides |
"""


def add_arguments(parser: ArgumentParser) -> None:
    """Adds the command's arguments."""
    parser.add_argument("name", help="the appliance's name: small letters, digits, dots, hyphens")
    parser.add_argument(
        "--from",
        dest="parent",
        metavar="APPLIANCE",
        help=f"extend this one; without it, the definition is a copy of {_EXAMPLE}",
    )
    shared.add(parser, "json")


def run(options: Namespace) -> None:
    """Writes the definition's folder, and the schema for editors beside it.

    Raises UsageError for a name that cannot be an appliance's or is taken, or an unknown parent.
    """
    ours = resources.find("images")
    images = Path("images") if options.images == ours else options.images
    folder = images / options.name
    _check_name(options.name, folder)
    if options.parent is not None:
        load_appliance(options.parent, images)
    try:
        folder.mkdir(parents=True)
        try:
            _write(folder, options.name, options.parent)
            load_appliance(options.name, images)
        except (PhantomError, OSError):
            shutil.rmtree(folder)
            raise
        schema = json.dumps(appliance_schema(), indent=2)
        write_atomically(images / _SCHEMA, f"{schema}\n")
    except OSError as error:
        raise UsageError(
            f"the definition cannot be written: {error.strerror}",
            where=shown(Path(error.filename or folder)),
            todo="let --images name a folder that this user may write to",
        ) from error
    files = [shown(file) for file in (*sorted(folder.iterdir()), images / _SCHEMA)]
    if options.json:
        print_json({"appliance": options.name, "files": files})
        return
    print_table([("written", cell(files))])
    print_line(f"next: edit {files[1]}, then run `phantom-image plan {options.name}`")


def _check_name(name: str, folder: Path) -> None:
    wanted = appliance_schema()["properties"]["name"]
    most = wanted.get("maxLength", 64)
    if not re.fullmatch(wanted["pattern"], name) or len(name) > most or "\n" in name:
        raise UsageError(
            f"{name[:80]!r} cannot be an appliance's name",
            todo=f"choose at most {most} small letters, digits, dots and hyphens; the first is a "
            "letter or a digit",
        )
    if name in RESERVED:
        raise UsageError(
            f"no appliance can be called {name!r}: the folder of builds has something else there",
            todo="choose another name",
        )
    if folder.exists() or folder.is_symlink():
        raise UsageError(
            f"{shown(folder)} is there already",
            todo="choose another name, or remove it first",
        )


def _write(folder: Path, name: str, parent: str | None) -> None:
    scripts = ""
    if parent is None:
        example = resources.find("images") / _EXAMPLE
        text = (example / "appliance.yaml").read_text()
        body = text.partition("# Relative paths")[1:]
        text = "".join(body).replace(f"name: {_EXAMPLE} ", f"name: {name} ", 1)
        text = re.sub(r"^summary: .*$", f"summary: {name}", text, count=1, flags=re.MULTILINE)
        for script in ("check.sh", "user-data.sh"):
            content = (example / script).read_text().replace(_EXAMPLE, name)
            (folder / script).write_text(content)
            (folder / script).chmod(0o755)
        scripts = _SCRIPTS
    else:
        text = _EXTENDING.format(name=name, parent=parent)
    (folder / "appliance.yaml").write_text(_EDITOR + text)
    (folder / "README.md").write_text(_README.format(name=name) + scripts)
