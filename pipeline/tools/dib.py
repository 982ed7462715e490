"""diskimage-builder: its elements, the packages that they ask for, and the build itself."""

from __future__ import annotations

import difflib
import json
import os
import re
import shlex
import sys
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import NoReturn

from pipeline import resources
from pipeline.errors import CustomizationError, HostError, PhantomError, UnknownElementError
from pipeline.resources import setup_hint
from pipeline.tools import dib_environment, run, script_line
from pipeline.tools.tails import tail

PROGRAMS = Path(sys.executable).parent
_BLOCK_DEVICE = Path(__file__).with_name("dib_block_device.py")
OURS = resources.find("elements")


@cache
def _home() -> Path:
    spec = find_spec("diskimage_builder")
    if spec is None or spec.origin is None:
        raise HostError("diskimage-builder is not installed", todo=setup_hint("it"))
    return Path(spec.origin).parent


def elements_path() -> list[Path]:
    """The folders of elements: the user's `ELEMENTS_PATH`, ours, diskimage-builder's own."""
    users = filter(None, os.environ.get("ELEMENTS_PATH", "").split(":"))
    return [*(Path(folder).resolve() for folder in users), OURS, _home() / "elements"]


def version() -> str:
    """diskimage-builder's version."""
    from importlib.metadata import version as version_of

    return version_of("diskimage-builder")


def expand(names: Iterable[str]) -> dict[str, Path]:
    """The folders of these elements and of all their dependencies, by name, sorted.

    Raises UnknownElementError, also for elements that cannot be in one image.
    """
    folders = _all_elements()
    expanded: dict[str, Path] = {}
    provided: dict[str, str] = {}
    queue = [(name, "the definition") for name in names]
    while queue:
        name, asker = queue.pop(0)
        if name in expanded or name in provided:
            continue
        folder = expanded[name] = _choose(name, asker, folders)
        for feature in _words(folder / "element-provides"):
            other = provided.setdefault(feature, name)
            if other != name:
                _raise_together(name, other, f"each is the {feature}")
        needed = _words(folder / "element-deps")
        queue += [(dependency, f"element {name}") for dependency in needed]
    chosen = {name: folder for name, folder in sorted(expanded.items()) if name not in provided}
    _check_hooks(chosen)
    return chosen


def _check_hooks(elements: Mapping[str, Path]) -> None:
    """Raises UnknownElementError for two hooks of one name: diskimage-builder puts the hooks of all
    elements into one folder."""
    owners: dict[str, str] = {}
    for name, folder in elements.items():
        for file in sorted(folder.glob("*/*")):
            place = str(file.relative_to(folder))
            if file.is_file() and file.parent.name not in ("tests", "__pycache__"):
                other = owners.setdefault(place, name)
                if other != name:
                    _raise_together(name, other, f"each has {place}")


def _raise_together(one: str, other: str, reason: str) -> NoReturn:
    ours, theirs = (other, one) if other.startswith("phantom-") else (one, other)
    raise UnknownElementError(
        f"the elements {theirs} and {ours} cannot be in one image: {reason}",
        element=theirs,
        todo=f"take out {theirs}, or what depends on it (docs/elements.md)",
    )


def find(name: str) -> Path:
    """The folder of an element. Raises UnknownElementError."""
    return _choose(name, "the definition", _all_elements())


def is_shipped(element: Path) -> bool:
    """Whether an element's folder is one of diskimage-builder's own."""
    return element.parent == _home() / "elements"


def _all_elements() -> dict[str, Path]:
    """The folder of every element by its name: the first one on the elements path."""
    elements: dict[str, Path] = {}
    for folder in elements_path():
        if not folder.is_dir():
            raise UnknownElementError(
                f"there is no folder {folder}",
                where="ELEMENTS_PATH",
                todo="correct ELEMENTS_PATH; its folders are separated by colons",
            )
        for element in sorted(folder.iterdir()):
            if element.is_dir() and not element.name.startswith((".", "__")):
                elements.setdefault(element.name, element)
    return elements


def _choose(name: str, asker: str, folders: Mapping[str, Path]) -> Path:
    """The folder of an element, for which `asker` asks. Raises UnknownElementError."""
    if name in folders:
        return folders[name]
    near = difflib.get_close_matches(name, folders, n=1)
    hint = f"; did you mean {near[0]!r}?" if near else ""
    raise UnknownElementError(
        f"there is no element {name!r}, for which {asker} asks{hint}",
        element=name,
        todo="correct the name, or set ELEMENTS_PATH to the folder that holds the element",
    )


def _words(file: Path) -> list[str]:
    return file.read_text().split() if file.is_file() else []


def packages(elements: Mapping[str, Path], environment: Mapping[str, str]) -> dict[str, str]:
    """The packages that elements ask for in `package-installs.yaml`, each with its element, and
    those that their hooks need to run. `environment` has what is said besides
    `dib_environment.variables`.

    diskimage-builder's own reader reads them, after the elements' `environment.d`, so conditions
    and name maps work as in a build. Raises UnknownElementError.
    """
    variables = {
        **dib_environment.variables(
            elements,
            lib=_home() / "lib",
            architecture=environment["ARCH"],
            release=environment["DIB_RELEASE"],
        ),
        **environment,
    }
    with tempfile.TemporaryDirectory(prefix="phantom-elements-") as folder:
        answer = Path(folder, "packages.json")
        try:
            run.capture(["bash", "-c", _squash_script(elements, answer)], env=variables)
        except run.ToolError as error:
            raise UnknownElementError(
                "the elements' settings cannot be read: "
                + (error.output.strip().splitlines() or ["no reason given"])[-1],
                todo="set what they ask for below `environment:` (docs/elements.md)",
                detail=tail(error.output.splitlines()),
            ) from error
        phases = json.loads(answer.read_text())
    asked: dict[str, str] = {}
    for phase in phases.values():
        for name, element in phase.get("install", []):
            for mapped in _map_name(name, elements[element], variables):
                asked.setdefault(mapped, element)
    for name, element in _needed_by_hooks(elements):
        asked.setdefault(name, element)
    return asked


_IN_IMAGE = ("pre-install.d", "install.d", "post-install.d", "finalise.d", "bin")
_CALLS = {
    "python3": re.compile(r"\A#!.*\bpython3?\b|^[^#\n]{0,200}\bdib-python\b", re.MULTILINE),
    "sudo": re.compile(r"^[ \t]{0,40}(?:[^#\n]{0,200}[|;&(][ \t]{0,9})?sudo[ \t]", re.MULTILINE),
}


def _needed_by_hooks(elements: Mapping[str, Path]) -> Iterator[tuple[str, str]]:
    """Packages of programs that hooks call inside the image, and the operating-system elements of
    diskimage-builder bring: package and element."""
    for name, folder in elements.items():
        if folder.parent == OURS:
            continue  # they say what they need themselves
        hooks = (file for phase in _IN_IMAGE for file in sorted(folder.glob(f"{phase}/**/*")))
        texts = [file.read_text(errors="replace") for file in hooks if file.is_file()]
        for package, call in _CALLS.items():
            if any(call.search(text) for text in texts):
                yield package, name


def _squash_script(elements: Mapping[str, Path], answer: Path) -> str:
    squash = _home() / "elements/package-installs/bin/package-installs-squash"
    sources = (file for folder in elements.values() for file in folder.glob("environment.d/*"))
    path = ":".join(dict.fromkeys(str(folder.parent) for folder in elements.values()))
    pairs = " ".join(f"[{name}]={shlex.quote(str(folder))}" for name, folder in elements.items())
    lines = [f"get_image_element_array() {{ echo {shlex.quote(pairs)}; }}"]
    lines += ["export -f get_image_element_array"]
    named = sorted(filter(_is_sourced, sources), key=lambda file: (_number(file.name), file.name))
    lines += [f". {shlex.quote(str(file))}" for file in named]
    command = [sys.executable, str(squash), f"--elements={' '.join(elements)}", f"--path={path}"]
    # What the settings print is of no interest, unless they fail.
    return "\n".join(["set -eu -o pipefail", *lines, f"exec {shlex.join([*command, str(answer)])}"])


def _is_sourced(file: Path) -> bool:
    return file.is_file() and re.fullmatch(r"[0-9A-Za-z_.-]+", file.name) is not None


def _number(name: str) -> int:
    """The number that a hook's name begins with, by which hooks are ordered."""
    digits = re.match(r"[0-9]{1,9}", name)
    return int(digits[0]) if digits else 0


def _map_name(name: str, element: Path, environment: Mapping[str, str]) -> list[str]:
    """A package's names on this distribution, by the element's `pkg-map` if it has one."""
    mapping = element / "pkg-map"
    if not mapping.is_file():
        return [name]
    program = _home() / "elements/pkg-map/bin/pkg-map"
    words = [f"--pkg-map={mapping}", "--distro=debian", "--missing-ok"]
    words += [f"--release={environment['DIB_RELEASE']}", name]
    return run.capture([sys.executable, str(program), *words]).split()


_SCRIPT = re.compile(
    r"^phantom-appliance: (the definition's script (.+)) ended with status ([0-9]+)$"
)
_FAILED = "phantom-appliance: failed: "
_SCRIPTS = "/tmp/phantom-appliance/scripts"  # noqa: S108 (of the image)
_KEY = re.compile(r"^phantom-appliance: '([a-z_]+)' could not be applied$")


def _refused_attributes(lines: Iterable[str]) -> str | None:
    """What to do where chattr wanted what the root of a user namespace may not: `+i` and `+a`."""
    if not any("Operation not permitted while setting flags" in line for line in lines):
        return None
    return (
        "let the machine set the attributes at its first boot (`chattr +i`, `+a`): only root of "
        "the build host may set them, and hooks and scripts are not"
    )


def explain_failure(error: run.ToolError, places: Mapping[str, str] | None = None) -> PhantomError:
    """The same error in the name of what failed: a script or a key of the definition, with what it
    printed, or else diskimage-builder, and not the program that isolates it. `places` tells where
    scripts and keys are, by their names."""
    lines = error.output.splitlines()
    key = next(filter(None, map(_KEY.match, lines)), None)
    if key is not None:
        before = lines[: lines.index(key[0])]
        starts = [at + 1 for at, line in enumerate(before) if line == f"Applying {key[1]!r}"]
        return CustomizationError.make(
            key[1],
            where=(places or {}).get(key[1]),
            log=error.log,
            detail=tail(before[max(starts, default=0) :]),
        )
    ended = next((at for at, line in enumerate(lines) if _SCRIPT.match(line)), None)
    if ended is not None:
        return _explain_script(error, lines[: ended + 1], places or {})
    error.what = error.what.replace("isolate.py", "diskimage-builder", 1)
    error.todo = _refused_attributes(lines) or error.todo
    error.detail = tail(lines, own=False)
    return error


def _explain_script(
    error: run.ToolError, lines: Sequence[str], places: Mapping[str, str]
) -> PhantomError:
    """The error in the name of the script of which the last line tells, with its line if that is
    known."""
    *printed, last = lines
    match = _SCRIPT.match(last)
    assert match is not None
    name, status = match[2], int(match[3])
    began = f"Running the definition's script {name}"
    starts = [at + 1 for at, line in enumerate(printed) if line == began]
    printed = printed[max(starts, default=0) :]
    error.what = f"{match[1]} failed with status {status}"
    error.todo = "correct the script; the log has all that it printed"
    error.todo = _refused_attributes(lines) or error.todo
    place, path = places.get(name, name), f"{_SCRIPTS}/[0-9]{{2,}}-{re.escape(name)}"
    number = None
    if printed and printed[-1].startswith(_FAILED):
        line = script_line.read_note(printed.pop().removeprefix(_FAILED), status)
        if line is not None:
            error.what += f": {line.command}"
            number = line.number
    number = number or script_line.find_printed(printed, path, status)
    if number is not None:
        error.where = f"{place}:{number}"
    error.detail = tail(re.sub(path, lambda _: place, line) for line in printed)
    return error


def folders() -> list[Path]:
    """What a build has to see of this host: the elements, diskimage-builder, and its Python."""
    python = map(Path, dict.fromkeys((sys.prefix, sys.base_prefix)))
    return [*elements_path(), *python, _home(), _BLOCK_DEVICE]


def make_library(folder: Path) -> None:
    """Makes a folder of diskimage-builder's shell scripts, with our program for block devices."""
    folder.mkdir()
    for file in (_home() / "lib").iterdir():
        ours = file.name == "dib-block-device.py"
        (folder / file.name).symlink_to(_BLOCK_DEVICE if ours else file)


def check_folders(folders: Iterable[Path]) -> None:
    """Raises HostError for names with blanks, which diskimage-builder does not quote."""
    for folder in (*folders, *elements_path(), PROGRAMS):
        if any(letter.isspace() for letter in str(folder)):
            raise HostError(
                f"diskimage-builder cannot work with a blank in a folder's name: {folder}",
                todo="move the checkout or the elements, or set PHANTOM_STORE, to a folder "
                "without blanks",
            )


def build_command(elements: Sequence[str], architecture: str, output: Path) -> list[str]:
    """The command that builds these elements; `_LIB` names the folder of `make_library`. Hooks
    write the result, not the command itself."""
    options = ("-n", "-a", architecture, "-t", "raw", "-o", str(output))
    return ["bash", "-c", _RUN, "disk-image-create", *options, *elements]


_RUN = """
# diskimage-builder syncs all file systems of the host whenever it unmounts the tree, also at the
# end, when the tree is written and of no use any more. The namespace takes it apart at once.
sync() {
    [ ! -e "$TMP_BUILD_DIR/phantom-finished" ] || { trap - EXIT ERR; exit 0; }
    [ "${PHANTOM_KEEP_FAILED:-}" != yes ] || [ "${exitval:-0}" -eq 0 ] || keep_failed
}
# The tree as it was when a hook failed, without what is mounted in it.
keep_failed() {
    PHANTOM_KEEP_FAILED=
    local tree=$TMP_BUILD_DIR/failed file=$PHANTOM_OUTPUT/root.ext4
    mkdir "$tree" && mount --bind "$TMP_BUILD_DIR/mnt" "$tree" && rm -f "$file" &&
        truncate -s "$(($(du -sm "$tree" | cut -f 1) * 5 / 4 + 256))M" "$file" &&
        mke2fs -q -F -t ext4 -m 0 -E root_owner=0:0 -d "$tree" "$file" &&
        chown "$PHANTOM_OWNER" "$file"
    umount "$tree"
}
. "$_LIB/disk-image-create"
"""
