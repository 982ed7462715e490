"""A whole local Phantom in a folder: state, users, service, controller, machines."""

from __future__ import annotations

import configparser
import fcntl
import os
import secrets
import sqlite3
from collections.abc import Callable, Collection, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from pipeline.errors import InUseError, StoreError, UsageError
from pipeline.files import make_folder
from pipeline.phantom.controller import USUAL, Controller, Policy
from pipeline.phantom.local import ACCESS_KEY, ADDRESS, CREDENTIALS, PROFILE, SECRET_KEY, TOKEN
from pipeline.phantom.machines import Machines
from pipeline.phantom.service import Inside, PhantomServer
from pipeline.phantom.signature import User
from pipeline.phantom.state import State
from pipeline.store import write_atomically


@dataclass(frozen=True, kw_only=True)
class Running:
    """A Phantom that runs."""

    url: str
    credentials: Path
    user: User


@contextmanager
def run_phantom(
    folder: Path,
    sites: Collection[str],
    machines: Machines,
    *,
    port: int = 0,
    inside: Inside | None = None,
    policy: Policy = USUAL,
    tell: Callable[[str], None] = lambda _: None,
) -> Iterator[Running]:
    """A Phantom for as long as the block; its machines end with it. `port` and `inside` are those
    of `PhantomServer`. Raises InUseError where another one uses the folder, StoreError where the
    folder cannot be used, UsageError for a port that is taken."""
    with ExitStack() as stack:
        try:
            make_folder(folder)
            folder.chmod(0o700)  # user-data may hold secrets
            stack.enter_context(_locked(folder))
            state = State(folder)
            stack.callback(state.close)
            user = _load_user(folder / CREDENTIALS)
            controller = Controller(state, machines, policy, tell)
            server = PhantomServer(
                state, [user], sites, port=port, inside=inside, changed=controller.wake
            )
            stack.enter_context(controller)
        except (OSError, sqlite3.Error, ValueError, configparser.Error) as error:
            raise StoreError(
                f"the folder of the local Phantom cannot be used: {error}",
                where=str(folder),
                todo="see who owns it, or name another one by --folder",
            ) from error
        try:
            stack.enter_context(server)
        except OSError as error:
            raise UsageError(
                f"port {port} of 127.0.0.1 cannot be used: {os.strerror(error.errno or 0)}",
                todo="choose another one by --port, or leave it out for one that is free",
            ) from error
        write_atomically(folder / ADDRESS, f"{server.url}\n")
        stack.callback((folder / ADDRESS).unlink, missing_ok=True)
        yield Running(url=server.url, credentials=folder / CREDENTIALS, user=user)


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Holds a folder for this process. Raises InUseError, OSError."""
    with (folder / "lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise InUseError(
                "another local Phantom runs in this folder",
                where=str(folder),
                todo="end it, or name another folder by --folder",
            ) from error
        yield


def _load_user(file: Path) -> User:
    """The user whose credentials are in a file, which is made with new ones where there is none.
    Raises OSError, ValueError, configparser.Error."""
    if not file.exists():
        user = User(
            access_key=f"PH{secrets.token_hex(9).upper()}",
            secret_key=secrets.token_hex(20),
            token=secrets.token_hex(20),
        )
        text = (
            f"[{PROFILE}]\n{ACCESS_KEY} = {user.access_key}\n"
            f"{SECRET_KEY} = {user.secret_key}\n{TOKEN} = {user.token}\n"
        )
        new = file.with_name(f"{file.name}.new")
        with open(new, "w", opener=lambda path, flags: os.open(path, flags, 0o600)) as written:
            written.write(text)
        new.rename(file)
        return user
    said = configparser.ConfigParser(interpolation=None)
    said.read_string(file.read_text())
    names = (ACCESS_KEY, SECRET_KEY, TOKEN)
    found = [said.get(PROFILE, name, fallback="") for name in names]
    for name, value in zip(names, found, strict=True):
        if not value:
            raise ValueError(f"{file.name} has no {name}")
    access_key, secret_key, token = found
    return User(access_key=access_key, secret_key=secret_key, token=token)
