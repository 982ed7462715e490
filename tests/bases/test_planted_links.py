"""An image with a symbolic link in the place of everything that is written into an image."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path, PurePosixPath

from base_images import Bases

from pipeline.errors import PhantomError
from pipeline.guest import booting, cleaning, geometry, injection, inspection, selinux
from pipeline.guest.appliance import Drive, Guest, launched
from pipeline.guest.files import Copy, ImageFiles
from pipeline.guest.system import System
from pipeline.model import NoProgress

P = PurePosixPath
ELEMENTS = Path(__file__).resolve().parents[2] / "elements"
_DEVICES = "/dev/disk/guestfs"
_CANARIES = "/srv/canaries"
_CONTENT = b"canary\n"


def writers(folder: Path, base: Drive) -> dict[str, Callable[[Guest, ImageFiles, System], object]]:
    """All that writes into an image, with no program of the image in it."""
    source = folder / "source"
    source.write_text("of the definition\n")
    payloads = [
        dataclasses.replace(payload, needs=())  # nothing of it is run here
        for element in ("phantom-user-data", "phantom-grow-root")
        if (payload := injection.read_payload(ELEMENTS / element)) is not None
    ]
    assert len(payloads) == 2
    targets = ("/etc/app.conf", "/opt/app/run", "/usr/local/bin/app", "/root/note", "/phantom")
    copies = [Copy(target=P(target), mode=0o755, source=source) for target in targets]
    return {
        "inject": lambda guest, files, system: injection.inject(
            guest, files, system, payloads, runner="fetcher", frequency="instance"
        ),
        "proxies": lambda guest, files, system: cleaning.forget_proxies(files),
        "copy": lambda guest, files, system: files.copy(copies),
        "settle": lambda guest, files, system: injection.settle_runner(
            files, system, payloads, runner="fetcher", frequency="instance"
        ),
        "boot": lambda guest, files, system: booting.configure_boot(
            guest, files, system, base=base
        ),
        "clean": cleaning.clean,
        "relabel": selinux.relabel,
    }


def listing(guest: Guest, folder: str = "") -> dict[str, str]:
    """Of everything in a folder of the image: what it is, and when it was last changed."""
    form = r"'%P\t%y %i %C@\n'"
    shown = guest.handle.debug("sh", [f"find /sysroot{folder} -xdev -mindepth 1 -printf {form}"])
    return dict(line.split("\t") for line in shown.splitlines())


def changed(before: Mapping[str, str], after: Mapping[str, str]) -> list[str]:
    """What was made, replaced or removed; of folders, only those that were made or removed."""
    paths = sorted(
        path
        for path in before.keys() | after.keys()
        if before.get(path) != after.get(path)
        and not (before.get(path, "")[:1] == after.get(path, "")[:1] == "d")
    )
    return [f"/{path}" for path in paths]


def plant(guest: Guest, paths: list[str], outside: Path) -> list[str]:
    """Puts a link in the place of each path: to a canary in the image, by an absolute or a relative
    name, or to one on this host. Returns the canaries in the image."""
    handle = guest.handle
    handle.mkdir_p(_CANARIES)
    canaries = []
    for number, path in enumerate(paths):
        if any(path.startswith(f"{above}/") for above in paths):
            continue  # it is behind a link by then
        parent = os.path.dirname(path)
        handle.mkdir_p(parent)
        folder = handle.is_dir(path)
        handle.rm_rf(path)
        if number % 3 == 2:
            target = f"{outside}/{number}"
            Path(target).write_bytes(_CONTENT)
        else:
            canary = f"{_CANARIES}/{number}"
            if folder or number % 2:
                handle.mkdir(canary)
                handle.write(f"{canary}/inside", _CONTENT)
            else:
                handle.write(canary, _CONTENT)
            canaries.append(canary)
            target = canary if number % 3 else os.path.relpath(canary, parent)
        handle.ln_s(target, path)
    return canaries


def on_host(folder: Path) -> dict[str, tuple[int, bytes]]:
    return {
        str(path.relative_to(folder)): (
            path.lstat().st_mtime_ns,
            path.read_bytes() if path.is_file() else b"",
        )
        for path in sorted(folder.rglob("*"))
    }


def test_nothing_is_written_through_planted_links(bases: Bases, tmp_path: Path) -> None:
    base = bases.path("simple.raw")
    roots = [bases.copy_root("plain", f"{name}.ext4") for name in ("clean", "planted")]
    outside = tmp_path / "outside"
    outside.mkdir()
    drive = Drive(file=base, name="base")
    write = writers(tmp_path, drive)
    with launched(
        [
            Drive(file=roots[0], name="clean", writable=True),
            drive,
            Drive(file=roots[1], name="planted", writable=True),
        ],
        store=tmp_path,
        log=tmp_path / "log",
        progress=NoProgress(),
    ) as guest:
        handle = guest.handle
        system = inspection.inspect_system(guest, geometry.read_geometry(base), drive)

        # what is written into a clean image
        handle.mount(f"{_DEVICES}/clean", "/")
        before = listing(guest)
        for each in write.values():
            files = ImageFiles(guest)
            with files.alone():
                each(guest, files, system)
        paths = changed(before, listing(guest))
        handle.umount_all()
        assert {"/etc/fstab", "/etc/machine-id", "/opt/app/run"} <= set(paths)
        assert any(path.startswith("/usr/lib/phantom/") for path in paths)

        # the same, with links in the place of all that
        handle.mount(f"{_DEVICES}/planted", "/")
        canaries = plant(guest, paths, outside)
        inside, files_of_host = listing(guest, _CANARIES), on_host(outside)
        assert len(inside) > len(paths) // 3
        for each in write.values():
            files = ImageFiles(guest)
            with suppress(PhantomError), files.alone():
                each(guest, files, system)
        assert listing(guest, _CANARIES) == inside
        assert on_host(outside) == files_of_host

        # and each path by itself, with whatever it was by then
        files = ImageFiles(guest)
        source = tmp_path / "source"
        for path in paths:
            with suppress(PhantomError):
                files.write(P(path), "ours")
            with suppress(PhantomError):
                files.copy([Copy(target=P(path) / "below", mode=0o644, source=source)])
            with suppress(PhantomError):
                files.remove(P(path))
        for canary in canaries:
            content = handle.read_file(f"{canary}/inside" if handle.is_dir(canary) else canary)
            assert content == _CONTENT, canary
        assert listing(guest, _CANARIES) == inside
        assert on_host(outside) == files_of_host
        assert not handle.debug("sh", [f"ls -d {tmp_path} 2>/dev/null; :"])  # nor in the appliance
