"""Rules of what building, installing and running left behind."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator

from pipeline.checks.root import Root
from pipeline.checks.rule import Found, Rule
from pipeline.disk.contents import File
from pipeline.model import format_size

_MAIL = ("/var/mail", "/var/spool/mail", "/var/spool/mqueue", "/var/spool/postfix/deferred")
_DUMPS = ("/var/crash", "/var/lib/systemd/coredump", "/var/lib/apport/coredump")
_CACHES = (
    *("/var/lib/apt/lists", "/var/cache/apt/archives", "/var/cache/dnf", "/var/cache/libdnf5"),
    *("/var/cache/yum", "/var/cache/zypp", "/var/cache/apk", "/var/cache/pacman/pkg"),
    *("/root/.cache", "/root/.npm", "/root/.cargo/registry"),
)
_CACHE_BYTES = 64 * 1024  # smaller ones are lock files and indexes of nothing
_OLD = re.compile(r".*\.(dpkg-(old|dist|new|tmp|bak)|ucf-(old|dist|new)|rpm(new|save|orig)|pacnew)")
_BUILD_TOOLS = {
    "/usr/sbin/policy-rc.d": "it keeps packages from starting their services",
    "/usr/sbin/start-stop-daemon.REAL": "the real start-stop-daemon is not in its place",
    "/usr/sbin/start-stop-daemon.orig": "the real start-stop-daemon is not in its place",
    "/usr/local/bin/dib-init-system": "a program of diskimage-builder",
    "/usr/local/bin/package-installs-v2": "a program of diskimage-builder",
    "/usr/local/bin/pkg-map": "a program of diskimage-builder",
    "/usr/local/bin/install-packages": "a program of diskimage-builder",
    "/etc/dib-manifests": "a folder of diskimage-builder",
    "/.extra_settings": "a file of diskimage-builder",
    "/tmp/in_target.d": "hooks of diskimage-builder",  # noqa: S108
    "/usr/bin/qemu-x86_64-static": "an emulator that a build needed",
    "/usr/bin/qemu-aarch64-static": "an emulator that a build needed",
}


def _files(root: Root, folders: Iterable[str]) -> Iterator[File]:
    """The files with content below folders, each once."""
    seen = set()
    for folder in folders:
        for file in root.contents.below(folder):
            if file.is_file and file.size and file.path not in seen:
                seen.add(file.path)
                yield file


def _find_logs(root: Root) -> Iterator[Found]:
    for file in _files(root, ["/var/log"]):
        yield Found(path=file.path, detail=f"a log of {format_size(file.size)}")


def _find_mail(root: Root) -> Iterator[Found]:
    for file in _files(root, _MAIL):
        yield Found(path=file.path, detail=f"mail of {format_size(file.size)}")


def _find_dumps(root: Root) -> Iterator[Found]:
    for file in _files(root, _DUMPS):
        yield Found(
            path=file.path, detail=f"what a program had in memory, {format_size(file.size)}"
        )
    for file in root.inside("/"):
        if file.is_file and re.fullmatch(r"/core(\.[0-9]+)?", file.path):
            yield Found(path=file.path, detail="what a program had in memory")


def _find_temporary(root: Root) -> Iterator[Found]:
    for folder in ("/tmp", "/var/tmp"):  # noqa: S108 (those of the image)
        for file in root.inside(folder):
            yield Found(path=file.path, detail="somebody left it there")


def _find_caches(root: Root) -> Iterator[Found]:
    for folder in _CACHES:
        size = sum(file.size for file in root.contents.below(folder) if file.is_file)
        if size > _CACHE_BYTES:
            yield Found(path=folder, detail=f"files of {format_size(size)}")


def _find_old(root: Root) -> Iterator[Found]:
    for file in root.contents.below("/etc"):
        if file.is_file and _OLD.fullmatch(file.path):
            yield Found(path=file.path, detail="a package manager left it beside the file in use")


def _find_tools(root: Root) -> Iterator[Found]:
    for path, detail in _BUILD_TOOLS.items():
        if root.contents.locate(path) in root.contents.files:
            yield Found(path=path, detail=detail)


RULES = (
    Rule(
        id="log",
        severity="warning",
        what="a log with entries",
        reason="it tells of the machine that the image was made on, and not of the one it is on",
        todo="empty it in the definition's last script",
        find=_find_logs,
    ),
    Rule(
        id="mail",
        severity="error",
        what="somebody's mail",
        reason="everybody who has the image can read it",
        todo="remove it",
        find=_find_mail,
    ),
    Rule(
        id="core-dump",
        severity="error",
        what="what a program had in memory when it failed",
        reason="it may hold keys and passwords, and takes space",
        todo="remove it",
        find=_find_dumps,
    ),
    Rule(
        id="temporary-file",
        severity="warning",
        what="temporary files",
        reason="no machine needs them, and nobody has looked at them",
        todo="remove them in the script that made them",
        find=_find_temporary,
    ),
    Rule(
        id="package-cache",
        severity="warning",
        what="a package manager's cache",
        reason="it takes space in every copy of the image, and is out of date when a machine boots",
        todo="remove it (`apt-get clean`, `rm -r /var/lib/apt/lists/*`, `dnf clean all`)",
        find=_find_caches,
    ),
    Rule(
        id="old-configuration",
        severity="warning",
        what="configuration that a package manager put aside",
        reason="somebody may have to decide between the two files, and nobody has",
        todo="take over what is new in it, and remove it",
        find=_find_old,
    ),
    Rule(
        id="build-tool",
        severity="error",
        what="a tool of the build",
        reason="it belongs to the build, and may keep services from starting",
        todo="remove it in the definition's last script",
        find=_find_tools,
    ),
)
