"""Secrets of the build, which scripts in the image read from memory."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import PurePosixPath
from shlex import quote

from pipeline.errors import FileSystemError
from pipeline.guest.files import temporary_name
from pipeline.guest.image import Image
from pipeline.secret_forms import hiding

_RUN = PurePosixPath("/run")


@contextmanager
def showing_secrets(image: Image, secrets: Mapping[str, bytes]) -> Iterator[PurePosixPath | None]:
    """A folder with a file for each secret, readable by root alone, that `run_program` moves to
    /run/secrets; None without secrets.

    The folder is a mount in the appliance's memory, which has no swap, so that no block of the
    image ever holds a secret. What programs print of secrets is hidden from then on.
    Raises FileSystemError.
    """
    if not secrets:
        yield None
        return
    guest, files = image.guest, image.files
    place = PurePosixPath("/", temporary_name())
    made = not files.exists(_RUN)
    mount = quote(f"/sysroot{place}")
    try:
        files.make_folder(_RUN)
        files.make_folder(place, 0o700)
        guest.shell(f"mount -t tmpfs -o mode=0700 secrets {mount}")
        try:
            for name, value in secrets.items():
                guest.handle.write(f"{place}/{name}", value)
                guest.handle.chmod(0o400, f"{place}/{name}")
            guest.shell(f"mount -o remount,bind,ro {mount}")
            guest.console.hidden = hiding(secrets.values())
            yield place
        finally:
            if not guest.ended:
                guest.shell(f"umount {mount}")
    finally:
        if not guest.ended:
            with suppress(FileSystemError):
                files.remove(place)
            if made:
                with suppress(RuntimeError):  # a script has put something there
                    guest.handle.rmdir(str(_RUN))
