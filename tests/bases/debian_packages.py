"""Small Debian packages and a repository of them, for package managers in images."""

from __future__ import annotations

import hashlib
import subprocess
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path


def make_package(
    folder: Path,
    name: str,
    *,
    files: Mapping[str, str],
    scripts: Mapping[str, str] | None = None,
    fields: Sequence[str] = (),
    conffiles: Sequence[str] = (),
    version: str = "1",
    architecture: str = "all",
) -> Path:
    """Adds a package to the repository in a folder, and returns its file."""
    tree = folder / f"{name}-{version}.tree"
    control = tree / "DEBIAN"
    control.mkdir(parents=True)
    lines = [
        f"Package: {name}",
        f"Version: {version}",
        f"Architecture: {architecture}",
        "Maintainer: Nobody <n@o>",
    ]
    lines += [*fields, "Description: for tests"]
    (control / "control").write_text("".join(f"{line}\n" for line in lines))
    if conffiles:
        (control / "conffiles").write_text("".join(f"{path}\n" for path in conffiles))
    for script, text in (scripts or {}).items():
        (control / script).write_text(text)
        (control / script).chmod(0o755)
    for path, text in files.items():
        file = tree / path.lstrip("/")
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
    package = folder / f"{name}_{version}_{architecture}.deb"
    subprocess.run(
        ["dpkg-deb", "--root-owner-group", "--build", str(tree), str(package)],
        check=True,
        stdout=subprocess.DEVNULL,
    )
    content = package.read_bytes()
    lines.insert(-1, f"Filename: ./{package.name}")
    lines.insert(-1, f"Size: {len(content)}")
    lines.insert(-1, f"SHA256: {hashlib.sha256(content).hexdigest()}")
    with (folder / "Packages").open("a") as index:
        index.write("".join(f"{line}\n" for line in lines) + "\n")
    return package


def sign(folder: Path, home: Path, **fields: str) -> str:
    """Signs the repository in a folder with the key of a folder for gpg, which is made where there
    is none. `fields` go into the index: `Date`, `Valid_Until`. Returns the armored public key."""
    home.mkdir(mode=0o700, exist_ok=True)
    gpg = ["gpg", "--homedir", str(home), "--batch", "--quiet", "--yes", "--passphrase", ""]

    def run(*words: str) -> str:
        done = subprocess.run(
            [*gpg, *words], check=True, stdin=subprocess.DEVNULL, capture_output=True, text=True
        )
        return done.stdout

    if not (home / "pubring.kbx").exists():
        run("--quick-gen-key", "own@example.org", "ed25519", "sign", "never")
    packages = (folder / "Packages").read_bytes()
    lines = [f"{name.replace('_', '-')}: {value}" for name, value in fields.items()]
    lines += ["Origin: own", "Suite: own", "Architectures: all amd64", "SHA256:"]
    lines.append(f" {hashlib.sha256(packages).hexdigest()} {len(packages)} Packages")
    release = folder / "Release"
    release.write_text("".join(f"{line}\n" for line in lines))
    run("--output", str(folder / "InRelease"), "--clearsign", str(release))
    release.unlink()
    key = run("--armor", "--export")
    subprocess.run(["gpgconf", "--homedir", str(home), "--kill", "all"], check=True)
    return key


@contextmanager
def serving(folder: Path) -> Iterator[str]:
    """Serves the repository; yields its line of a sources.list, with its address on this host."""
    with serving_at(folder) as url:
        yield f"deb [trusted=yes] {url} ./\n"


@contextmanager
def serving_at(folder: Path) -> Iterator[str]:
    """Serves the repository; yields its URL on this host."""

    class Handler(SimpleHTTPRequestHandler):
        def log_message(self, format: str, *args: object) -> None: ...

    handler = partial(Handler, directory=str(folder))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
            thread.join()
