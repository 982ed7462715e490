"""What should not be in an image that many machines boot."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import PurePosixPath

from pipeline.disk.tree import Tree
from pipeline.guest import cloud_init, identities


def find_remarks(tree: Tree) -> Iterator[str]:
    """What is left in an image of the machine that it ran on, and who could log in."""
    rules = tree.read(PurePosixPath("/etc/udev/rules.d/70-persistent-net.rules"))
    if re.search(r"^[ \t]*[A-Z]", rules, re.MULTILINE):
        yield "persistent-net rules name the network card of another machine"
    keys = [name for name in tree.names(PurePosixPath("/etc/ssh")) if name.endswith("_key")]
    if any(name.startswith("ssh_host_") for name in keys):
        yield "it has SSH host keys, which all its machines would share"
    if tree.read(PurePosixPath("/etc/machine-id")).strip() not in ("", "uninitialized"):
        yield "it has a machine-id, which all its machines would share"
    for folder in ("/var/lib/systemd", "/var/lib/urandom"):
        if tree.exists(PurePosixPath(folder, "random-seed")):
            yield f"it has a random seed in {folder}, which all its machines would share"
    for path in identities.find(tree):
        yield f"it has {path}, which all its machines would share"
    yield from _password_remarks(tree)
    homes = [f"home/{name}" for name in tree.names(PurePosixPath("/home"))]
    for home in ("root", *homes):
        path = PurePosixPath("/", home, ".ssh/authorized_keys")
        if re.search(r"^[ \t]*[^#\s]", tree.read(path), re.MULTILINE):
            yield f"{path} lets its owner in"
    if tree.names(PurePosixPath("/var/lib/cloud/instances")):
        yield "cloud-init remembers a machine that it ran on"
    if {"user-data", "instance"} & {*tree.names(PurePosixPath("/var/lib/phantom"))}:
        yield "the user-data fetcher remembers a machine that it ran on"
    if tree.read(cloud_init.NODE_FILE):
        yield f"{cloud_init.NODE_FILE} names the metadata service of another machine"


def _password_remarks(tree: Tree) -> Iterator[str]:
    for line in tree.read(PurePosixPath("/etc/shadow")).splitlines():
        user, _, rest = line.partition(":")
        password = rest.split(":")[0]
        if not re.fullmatch(r"[a-z_][a-z0-9_.-]*", user):
            continue
        if not password:
            yield f"{user} has an empty password"
        elif password[0] not in "*!x":
            yield f"{user} has a password"
