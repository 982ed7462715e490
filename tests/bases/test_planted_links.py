"""An image with a symbolic link at every path that is written in an image."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path, PurePosixPath

from base_images import Bases

from pipeline.disk import partitions
from pipeline.errors import PhantomError
from pipeline.guest import booting, cleaning, injection, inspection, selinux
from pipeline.guest.appliance import Drive, Guest, launched
from pipeline.guest.files import Copy, ImageFiles
from pipeline.guest.image import Image
from pipeline.guest.payload import read_payload
from pipeline.model import NoProgress

P = PurePosixPath
ELEMENTS = Path(__file__).resolve().parents[2] / "elements"
_DEVICES = "/dev/disk/guestfs"
_CANARIES = "/srv/canaries"
_CONTENT = b"canary\n"


def writers(folder: Path, base: Drive) -> dict[str, Callable[[Image], object]]:
    """The functions that write into an image and run none of its programs."""
    source = folder / "source"
    source.write_text("of the definition\n")
    payloads = [
        dataclasses.replace(payload, needs=())  # none of its programs run here
        for element in ("phantom-user-data", "phantom-grow-root", "phantom-ssh")
        if (payload := read_payload(ELEMENTS / element)) is not None
    ]
    assert len(payloads) == 3
    targets = ("/etc/app.conf", "/opt/app/run", "/usr/local/bin/app", "/root/note", "/phantom")
    copies = [Copy(target=P(target), mode=0o755, source=source) for target in targets]
    return {
        "inject": lambda image: injection.inject(
            image, payloads, runner="fetcher", frequency="instance"
        ),
        "proxies": lambda image: cleaning.forget_proxies(image.files),
        "copy": lambda image: image.files.copy(copies),
        "settle": lambda image: injection.settle_runner(
            image, payloads, runner="fetcher", frequency="instance"
        ),
        "boot": lambda image: booting.configure_boot(image, base=base),
        "clean": cleaning.clean,
        "relabel": selinux.relabel,
    }


def listing(guest: Guest, folder: str = "") -> dict[str, str]:
    """Type, inode and time of change of everything in a folder of the image, by path."""
    form = r"'%P\t%y %i %C@\n'"
    shown = guest.handle.debug("sh", [f"find /sysroot{folder} -xdev -mindepth 1 -printf {form}"])
    return dict(line.split("\t") for line in shown.splitlines())


def changed(before: Mapping[str, str], after: Mapping[str, str]) -> list[str]:
    """The paths that were made, changed or removed; folders only if made or removed."""
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
            continue  # a folder above it becomes a link
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
        system = inspection.inspect_system(guest, partitions.read_geometry(base), drive)

        # the paths that are written in a clean image
        handle.mount(f"{_DEVICES}/clean", "/")
        before = listing(guest)
        for each in write.values():
            image = Image(guest, ImageFiles(guest), system)
            with image.files.alone():
                each(image)
        paths = changed(before, listing(guest))
        handle.umount_all()
        assert {"/etc/fstab", "/etc/machine-id", "/opt/app/run"} <= set(paths)
        assert any(path.startswith("/usr/lib/phantom/") for path in paths)

        # the same, with links at all these paths
        handle.mount(f"{_DEVICES}/planted", "/")
        canaries = plant(guest, paths, outside)
        inside, files_of_host = listing(guest, _CANARIES), on_host(outside)
        assert len(inside) > len(paths) // 3
        for each in write.values():
            image = Image(guest, ImageFiles(guest), system)
            with suppress(PhantomError), image.files.alone():
                each(image)
        assert listing(guest, _CANARIES) == inside
        assert on_host(outside) == files_of_host

        # each path by itself, whatever is there by now
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
