"""diskimage-builder: which elements there are, what packages they ask for, and the build itself."""

from __future__ import annotations

import difflib
import json
import os
import re
import shlex
import sys
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from importlib.util import find_spec
from pathlib import Path

from pipeline.errors import HostError, UnknownElementError
from pipeline.tools import run

PROGRAMS = Path(sys.executable).parent
OURS = Path(__file__).resolve().parents[2] / "elements"


@cache
def _home() -> Path:
    spec = find_spec("diskimage_builder")
    if spec is None or spec.origin is None:
        raise HostError("diskimage-builder is not installed", todo="`make setup` installs it")
    return Path(spec.origin).parent


def elements_path() -> list[Path]:
    """Where elements are looked for: the user's `ELEMENTS_PATH`, ours, diskimage-builder's own."""
    users = [
        Path(each).resolve() for each in os.environ.get("ELEMENTS_PATH", "").split(":") if each
    ]
    return [*users, OURS, _home() / "elements"]


def version() -> str:
    """diskimage-builder's version."""
    from importlib.metadata import version as version_of

    return version_of("diskimage-builder")


def expand(names: Iterable[str]) -> dict[str, Path]:
    """The folders of these elements and of all that they depend on, by name, sorted.

    Raises UnknownElementError.
    """
    folders = _all_elements()
    expanded: dict[str, Path] = {}
    provided: set[str] = set()
    queue = [(name, "the definition") for name in names]
    while queue:
        name, asker = queue.pop(0)
        if name in expanded or name in provided:
            continue
        if name not in folders:
            raise _unknown(name, asker, folders)
        expanded[name] = folders[name]
        provided.update(_words(folders[name] / "element-provides"))
        queue += [(each, f"element {name}") for each in _words(folders[name] / "element-deps")]
    return {name: expanded[name] for name in sorted(expanded) if name not in provided}


def find(name: str) -> Path:
    """The folder of an element. Raises UnknownElementError."""
    folders = _all_elements()
    if name not in folders:
        raise _unknown(name, "the definition", folders)
    return folders[name]


def _all_elements() -> dict[str, Path]:
    found: dict[str, Path] = {}
    for folder in elements_path():
        if not folder.is_dir():
            raise UnknownElementError(
                f"there is no folder {folder}",
                where="ELEMENTS_PATH",
                todo="correct ELEMENTS_PATH; its folders are separated by colons",
            )
        for element in sorted(folder.iterdir()):
            if element.is_dir() and not element.name.startswith((".", "__")):
                found.setdefault(element.name, element)
    return found


def _unknown(name: str, asker: str, folders: Iterable[str]) -> UnknownElementError:
    near = difflib.get_close_matches(name, folders, n=1)
    hint = f"; did you mean {near[0]!r}?" if near else ""
    return UnknownElementError(
        f"there is no element {name!r}, for which {asker} asks{hint}",
        todo="correct the name, or set ELEMENTS_PATH to the folder that holds the element",
    )


def _words(file: Path) -> list[str]:
    return file.read_text().split() if file.is_file() else []


def packages(elements: Mapping[str, Path], environment: Mapping[str, str]) -> dict[str, str]:
    """The packages that elements ask for in `package-installs.yaml`, each with who asks for it.

    diskimage-builder's own reader reads them, after the elements' `environment.d`, so conditions
    and name maps hold as they do in a build.
    """
    with tempfile.TemporaryDirectory(prefix="phantom-elements-") as folder:
        answer = Path(folder, "packages.json")
        run.capture(["bash", "-c", _squash_script(elements, answer)], env=dict(environment))
        phases = json.loads(answer.read_text())
    asked: dict[str, str] = {}
    for phase in phases.values():
        for name, element in phase.get("install", []):
            for mapped in _map_name(name, elements[element], environment):
                asked.setdefault(mapped, element)
    if "dib-python" in elements:
        asked.setdefault("python3", "dib-python")
    return asked


def _squash_script(elements: Mapping[str, Path], answer: Path) -> str:
    squash = _home() / "elements/package-installs/bin/package-installs-squash"
    sources = sorted(
        (file for folder in elements.values() for file in folder.glob("environment.d/*")),
        key=lambda file: file.name,
    )
    path = ":".join(str(folder) for folder in dict.fromkeys(f.parent for f in elements.values()))
    lines = [f". {shlex.quote(str(file))}" for file in sources]
    command = [sys.executable, str(squash), f"--elements={' '.join(elements)}", f"--path={path}"]
    return "\n".join(["set -eu", *lines, f"exec {shlex.join([*command, str(answer)])}"])


def _map_name(name: str, element: Path, environment: Mapping[str, str]) -> list[str]:
    """What the element's `pkg-map`, if it has one, calls a package on this distribution."""
    mapping = element / "pkg-map"
    if not mapping.is_file():
        return [name]
    program = _home() / "elements/pkg-map/bin/pkg-map"
    words = [f"--pkg-map={mapping}", "--distro=debian", "--missing-ok"]
    words += [f"--release={environment['DIB_RELEASE']}", name]
    return run.capture([sys.executable, str(program), *words]).split()


_AFTERMATH = re.compile(r"^Unmount |State already cleaned|^\s*$|diskimage_builder\.block_device")


def explain_failure(error: run.ToolError) -> run.ToolError:
    """The same error, of diskimage-builder and not of what isolates it, and ending with what failed
    instead of with how that was cleaned up."""
    error.what = error.what.replace("isolate.sh", "diskimage-builder", 1)
    lines = [line for line in error.output.splitlines() if not _AFTERMATH.search(line)]
    error.detail = "\n".join(lines[-run.LAST_LINES :])
    return error


def check_folders(folders: Iterable[Path]) -> None:
    """Raises HostError for folders that diskimage-builder, which quotes little, cannot work in."""
    for folder in (*folders, *elements_path(), PROGRAMS):
        if any(letter.isspace() for letter in str(folder)):
            raise HostError(
                f"diskimage-builder cannot work with a blank in a folder's name: {folder}",
                todo="move the checkout or the elements, or set PHANTOM_STORE, to a folder "
                "without blanks",
            )


def build_command(elements: Sequence[str], architecture: str, output: Path) -> list[str]:
    """The command that builds these elements; hooks, and not the command, write the result."""
    return [
        str(PROGRAMS / "disk-image-create"),
        "-n",
        "-a",
        architecture,
        "-t",
        "raw",
        "-o",
        str(output),
        *elements,
    ]
