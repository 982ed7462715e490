"""Small archives of packages that exist by name only, for apt to solve requests in."""

from __future__ import annotations

import hashlib
import subprocess
from collections.abc import Mapping
from pathlib import Path

from pipeline.tools.apt_lists import Lists

# What every request needs.
_ALWAYS = {"apt": "", "base-files": "Essential: yes\nPriority: required"}


def write_archive(folder: Path, components: Mapping[str, Mapping[str, str]]) -> Path:
    """An archive with a suite `toy`. `components` has the packages of each component: `name` or
    `name=version`, with further fields."""
    for component, packages in components.items():
        listed = folder / f"dists/toy/{component}/binary-amd64/Packages"
        listed.parent.mkdir(parents=True)
        every = {**_ALWAYS, **packages} if component == "main" else packages
        stanzas = []
        for number, (package, fields) in enumerate(every.items()):
            name, _, version = package.partition("=")
            stanzas.append(
                f"Package: {name}\nVersion: {version or '1.0'}\nArchitecture: amd64\n"
                f"Filename: pool/{number}.deb\nSize: 1000\nSHA256: {number:064x}\n"
                f"Installed-Size: 1\nDescription: toy\n{fields}".rstrip()
            )
        listed.write_text("\n\n".join(stanzas) + "\n")
    return folder


def sign(archive: Path, home: Path, **fields: str) -> Path:
    """Signs an archive's suite with a key made for it, and returns the keyring. `fields` go into
    the index: `Date`, `Valid_Until`."""
    home.mkdir(mode=0o700, exist_ok=True)
    keyring = home / "archive.gpg"
    gpg = ["gpg", "--homedir", str(home), "--batch", "--quiet", "--yes", "--passphrase", ""]

    def run(*words: str) -> None:
        subprocess.run([*gpg, *words], check=True, stdin=subprocess.DEVNULL)

    if not keyring.exists():
        run("--quick-gen-key", "toy@example.org", "ed25519", "sign", "never")
        run("--output", str(keyring), "--export")
    suite = archive / "dists/toy"
    lines = [f"{name.replace('_', '-')}: {value}" for name, value in fields.items()]
    lines += ["Origin: Debian", "Label: Debian", "Suite: toy", "Codename: toy"]
    components = sorted(path.parents[1].name for path in suite.glob("*/binary-amd64/Packages"))
    lines += [f"Components: {' '.join(components)}", "Architectures: amd64", "SHA256:"]
    for path in sorted(suite.glob("*/binary-amd64/Packages")):
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
        lines.append(f" {digest} {path.stat().st_size} {path.relative_to(suite)}")
    release = suite / "Release"
    release.write_text("".join(f"{line}\n" for line in lines))
    run("--output", str(suite / "InRelease"), "--clearsign", str(release))
    release.unlink()
    subprocess.run(["gpgconf", "--homedir", str(home), "--kill", "all"], check=True)
    return keyring


def make_lists(
    archive: Path, folder: Path, components: str = "main", trust: str = "trusted=yes"
) -> Lists:
    """The lists of an archive, not fetched yet."""
    folder.mkdir(exist_ok=True)
    return Lists(
        folder,
        sources=f"deb [{trust} arch=amd64] copy:{archive} toy {components}\n",
        architecture="amd64",
        where="toy",
    )


def read_lists(archive: Path, folder: Path, components: str = "main") -> Lists:
    """The lists of an archive."""
    lists = make_lists(archive, folder, components)
    lists.update()
    return lists
