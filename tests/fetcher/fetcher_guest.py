"""A guest: a file tree in a temporary folder, where the real fetcher runs."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

STATIC = Path(__file__).parents[2] / "elements" / "phantom-user-data" / "static"
PROGRAM = "usr/lib/phantom/fetch-user-data"
INIT_SCRIPT = "etc/init.d/phantom-user-data"
OPTIONS = "etc/default/phantom-user-data"
RUN_SECONDS = 30  # the slowest run takes five

# What the fetcher may use besides curl or wget. All of these are in Debian's essential packages.
TOOLS = [
    "base64",
    "cat",
    "chmod",
    "cut",
    "gzip",
    "head",
    "ln",
    "mkdir",
    "mkfifo",
    "mv",
    "od",
    "rm",
    "sed",
    "sleep",
    "tail",
    "tee",
    "timeout",
    "tr",
    "true",
    "wc",
]


@dataclass(frozen=True, kw_only=True)
class Platform:
    """A shell and the only client on the PATH. With `busybox`, all programs are BusyBox's."""

    shell: tuple[str, ...]
    client: str | None

    def __str__(self) -> str:
        return "-".join([*self.shell, self.client or "none"]).replace("/", "")


DASH = ("dash",)
BASH = ("bash", "--posix")
BUSYBOX = ("busybox", "sh")
SHELLS = (DASH, BASH, BUSYBOX)
CLIENTS = ("curl", "wget", "busybox")
CURL = Platform(shell=DASH, client="curl")
# Each shell and each client once. Only the tests of the conversation use all combinations.
PLATFORMS = (CURL, Platform(shell=BASH, client="wget"), Platform(shell=BUSYBOX, client="busybox"))
# For long lists of cases: each set of tools once.
TOOL_SETS = (PLATFORMS[0], PLATFORMS[2])
ALL_PLATFORMS = tuple(Platform(shell=s, client=c) for s in SHELLS for c in CLIENTS)


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What one run of the fetcher did."""

    status: int
    output: str


@dataclass(frozen=True, kw_only=True)
class Guest:
    """One guest: the element's payload under `root`, and a PATH for `platform`."""

    root: Path
    platform: Platform = CURL
    environment: dict[str, str] = field(default_factory=dict)

    @property
    def data(self) -> Path:
        return self.root / "var/lib/phantom/user-data"

    @property
    def log(self) -> Path:
        return self.root / "var/log/phantom-user-data.log"

    @property
    def facts(self) -> Path:
        return self.root / "run/phantom/user-data.env"

    @property
    def mark(self) -> Path:
        return self.root / "var/lib/phantom/instance"

    @property
    def url_file(self) -> Path:
        return self.root / "var/nimbus-metadata-server-url"

    @property
    def path(self) -> Path:
        return self.root.parent / "bin"

    def use_nimbus(self, url: str) -> None:
        self.url_file.write_text(url)

    def use_ec2(self, url: str) -> None:
        self.environment["PHANTOM_EC2_METADATA_URL"] = url

    def set_options(self, **options: str | float) -> None:
        """Change the options of that name, without the prefix, in the shipped default file."""
        text = (self.root / OPTIONS).read_text()
        for name, value in options.items():
            text, count = re.subn(rf"(?m)^(PHANTOM_USER_DATA_{name})=.*$", rf"\1={value}", text)
            assert count == 1, name
        (self.root / OPTIONS).write_text(text)

    def make_command(self, program: str = PROGRAM) -> list[str]:
        shell = shutil.which(self.platform.shell[0])
        assert shell is not None
        return [shell, *self.platform.shell[1:], str(self.root / program)]

    def make_environment(self) -> Mapping[str, str]:
        base = {"PATH": str(self.path), "PHANTOM_ROOT": str(self.root), "LANG": "C.UTF-8"}
        return base | self.environment

    def run(self, program: str = PROGRAM, *arguments: str) -> Outcome:
        """Run the fetcher, or another program of the payload, to its end.

        Its output goes to a file, because a daemon that holds a pipe open would keep this process
        waiting, even though the fetcher has ended.
        """
        capture = self.root.parent / "console"
        with capture.open("wb") as stream:
            ended = subprocess.run(
                [*self.make_command(program), *arguments],
                env=self.make_environment(),
                stdin=subprocess.DEVNULL,
                stdout=stream,
                stderr=subprocess.STDOUT,
                timeout=RUN_SECONDS,
                check=False,
                umask=0o022,
            )
        return Outcome(status=ended.returncode, output=capture.read_text(errors="replace"))


def make_guest(folder: Path, platform: Platform = CURL) -> Guest:
    """Return a guest with quick options: few tries and short pauses between them."""
    root = folder / "root"
    shutil.copytree(STATIC, root)
    for name in ("var/log", "var/lib", "run"):
        (root / name).mkdir(parents=True)
    guest = Guest(root=root, platform=platform)
    guest.path.mkdir()
    link_tools(guest.path, platform)
    guest.set_options(MAX_TRIES=4, INTERVAL=0.02, TRY_SECONDS=1)
    return guest


def link_tools(path: Path, platform: Platform) -> None:
    """Fill `path` with the tools of `platform` and nothing else."""
    if platform.client == "busybox":
        link(path, find("busybox"), [*TOOLS, "wget"])
        return
    for name in [*TOOLS, *filter(None, [platform.client])]:
        link(path, find(name), [name])


def link(path: Path, target: Path, names: Sequence[str]) -> None:
    for name in names:
        os.symlink(target, path / name)


def find(name: str) -> Path:
    found = shutil.which(name)
    assert found is not None, f"these tests need {name}"
    return Path(found)
