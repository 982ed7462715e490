"""What diskimage-builder sets for its elements: one table.

In a build `disk-image-create` sets all of it. A plan sources the elements' `environment.d` too, to
learn which packages they ask for, and gives them the same names; a test compares the table with
diskimage-builder's code.
"""

from __future__ import annotations

import json
import os
import re
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path

IMAGE_NAME = "image"
"""diskimage-builder's default, whatever the appliance is called: elements name files after it."""
_NOWHERE = "/nonexistent"  # of what only lies somewhere in a build

NOT_SET: Mapping[str, str] = {
    "CLEAR_ENV": "the option -c, which we do not give",
    "COMPRESS_IMAGE": "the option -u, which we do not give",
    "DIB_IMAGE_EXTRA_SIZE": "an option; the file system is as large as its content",
    "DIB_IMAGE_SIZE": "an option; set after all packages were installed",
    "DIB_JOURNAL_SIZE": "an option; phantom-debian decides it",
    "DOCKER_TARGET": "we make no such image",
    "EXTRA_UNMOUNT": "set at the end",
    "HOME": "the user's",
    "IMAGE_BLOCK_DEVICE": "set after all packages were installed",
    "IMAGE_BLOCK_DEVICES": "set after all packages were installed",
    "IMAGE_TYPES": "an array, which no child gets",
    "INSTALL_PACKAGES": "the option -p, which we do not give",
    "LC_ALL": "set before anything is run",
    "LOGFILE": "an option; our own log has the output",
    "MAX_ONLINE_RESIZE": "an option; phantom-debian decides it",
    "OUT_IMAGE_PATH": "empty until the end",
    "PATH": "the host's",
    "PS4": "of shells that trace",
    "TMP_IMAGE_PATH": "set at the end",
    "_ps4": "a function, of shells that trace",
}
"""Names that diskimage-builder may export and a plan does without, with the reason."""

_OURS = frozenset({"ELEMENTS_PATH", "HOME", "LC_ALL", "PATH", "SOURCE_DATE_EPOCH", "TMPDIR"})
_OF_SHELLS = re.compile(r"(LD_|BASH|PHANTOM_).*|ENV|IFS|SHELLOPTS|CDPATH")
_INSTEAD = {
    "ARCH": "write it as `source: {scratch: {architecture: ...}}`",
    "DIB_RELEASE": "write it as `source: {scratch: {release: ...}}`",
    "ELEMENTS_PATH": "set it in the environment of the command",
    "SOURCE_DATE_EPOCH": "set it in the environment of the command",
}
CALLERS = frozenset({"DIB_DEBUG_TRACE"})
"""Variables that the command's own environment may set: they change the log alone."""


def variables(
    elements: Mapping[str, Path], *, lib: Path, architecture: str, release: str
) -> dict[str, str]:
    """What diskimage-builder exports before the first hook runs, for these elements. `lib` is its
    folder of shell scripts."""
    return {
        "ARCH": architecture,
        "DIB_ARGS": " ".join(elements),
        "DIB_BLOCK_DEVICE_PARAMS_YAML": f"{_NOWHERE}/block-device/params.yaml",
        "DIB_BOOT_LABEL": "",
        "DIB_CHECKSUM": "0",
        "DIB_DEBUG_TRACE": os.environ.get("DIB_DEBUG_TRACE", "0"),
        "DIB_DEFAULT_INSTALLTYPE": "source",
        "DIB_ENV": "",
        "DIB_IMAGE_CACHE": f"{_NOWHERE}/image-create",
        "DIB_LOCKFILES": f"{_NOWHERE}/lockfiles",
        "DIB_MIN_TMPFS": "2",
        "DIB_MOUNTPOINTS": "/",
        "DIB_NO_TMPFS": "1",
        "DIB_OFFLINE": "",
        "DIB_PYTHON_EXEC": sys.executable,
        "DIB_PYTHON_VERSION": "3",
        "DIB_RELEASE": release,
        "DIB_ROOT_FSTYPE": "ext4",
        "DIB_ROOT_LABEL": "cloudimg-rootfs",
        "ELEMENTS_PATH": ":".join(
            dict.fromkeys(str(folder.parent) for folder in elements.values())
        ),
        "FS_TYPE": "ext4",
        "IMAGE_ELEMENT": " ".join(elements),
        # JSON is YAML, too.
        "IMAGE_ELEMENT_YAML": json.dumps({name: str(each) for name, each in elements.items()}),
        "IMAGE_NAME": IMAGE_NAME,
        "IMAGE_TYPE": "raw",
        "SKIP_BASE": "1",
        "TMP_BUILD_DIR": _NOWHERE,
        "TMP_HOOKS_PATH": f"{_NOWHERE}/hooks",
        "TMP_IMAGE_DIR": _NOWHERE,
        "TMP_MOUNT_PATH": f"{_NOWHERE}/mnt",
        "_LIB": str(lib),
    }


def refuse(name: str) -> str | None:
    """Why a definition cannot set a variable, or None if it can."""
    if name in _INSTEAD:
        return _INSTEAD[name]
    if name in _OURS or _OF_SHELLS.fullmatch(name) or name in _SET:
        return "the build sets it itself"
    return None


def ignored(environ: Iterable[str], defined: Iterable[str]) -> list[str]:
    """Variables of diskimage-builder in the command's environment, which have no effect."""
    known = {*defined, *CALLERS}
    return sorted(name for name in environ if name.startswith("DIB_") and name not in known)


_USERS = frozenset({"DIB_DEFAULT_INSTALLTYPE", "DIB_OFFLINE", "DIB_PYTHON_VERSION"})
_SET = frozenset(variables({}, lib=Path(), architecture="", release="")) - _USERS
