"""Projects of tests, the command run in them, and what a command may leave behind.

Tests use the product by its command line alone. Each run is a process of its own, in a folder that
has `images/`, with a store that a test may share with others.
"""

from __future__ import annotations

import json
import os
import pickle
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from manifests import check_written, find_manifests

from pipeline import sparse

REPOSITORY = Path(__file__).resolve().parents[2]
_SIGN_OF_LIFE = re.compile(r"^.+: [0-9]+ s\n", re.MULTILINE)
LIMIT = 1500.0  # seconds that one command may take on the slowest host
_MINE = ("PHANTOM_", "NIMBUS_", "AWS_", "DIB_", "ELEMENTS_PATH", "SOURCE_DATE_EPOCH", "NO_COLOR")
_MIRRORS = (
    "PHANTOM_DEBIAN_MIRROR",
    "PHANTOM_DEBIAN_SECURITY_MIRROR",
    "PHANTOM_DEBIAN_CHECK_VALID_UNTIL",
)


@dataclass(frozen=True, kw_only=True)
class Done:
    """A command that has ended."""

    status: int
    out: str
    err: str
    seconds: float

    @property
    def json(self) -> Any:
        """Standard output, which must be JSON and nothing else."""
        return json.loads(self.out)

    @property
    def steps(self) -> str:
        """Standard error without the signs of life that a busy host lets a command give."""
        return _SIGN_OF_LIFE.sub("", self.err)

    @property
    def error(self) -> str:
        """The error message, from its first word to the end of standard error."""
        assert "Traceback" not in self.err, self.err
        at = self.err.find("error: ")
        assert at == 0 or self.err[at - 1] == "\n", self.err
        return self.err[at:]


@dataclass(frozen=True, kw_only=True)
class Project:
    """A folder in which a user works."""

    folder: Path
    store: Path
    environ: Mapping[str, str] = field(default_factory=dict)

    @property
    def build(self) -> Path:
        return self.folder / "build"

    @property
    def temporary(self) -> Path:
        """Where programs make their temporary files."""
        return self.folder / "tmp"

    def env(self, **more: str) -> dict[str, str]:
        """The environment of a command: the user's, without what would change the result."""
        kept = {
            name: value
            for name, value in os.environ.items()
            if name in _MIRRORS or not name.startswith(_MINE)
        }
        return {
            **kept,
            "HOME": str(self.folder / "home"),
            "PHANTOM_STORE": str(self.store),
            "PYTHONPATH": str(REPOSITORY),
            "TMPDIR": str(self.temporary),
            **self.environ,
            **more,
        }

    def command(self, *words: str) -> list[str]:
        return [sys.executable, "-m", "pipeline.cli", *words]

    def run(self, *words: str, **env: str) -> Done:
        """Runs a command to its end."""
        return self.run_by((), *words, **env)

    def run_by(self, prefix: Iterable[str], *words: str, **env: str) -> Done:
        """Runs a command through another program, which starts it."""
        before = find_manifests(self.build)
        started = time.monotonic()
        ended = subprocess.run(
            [*prefix, *self.command(*words)],
            cwd=self.folder,
            env=self.env(**env),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=LIMIT,
            check=False,
        )
        seconds = time.monotonic() - started
        assert "Traceback" not in ended.stderr, ended.stderr
        check_written(self.build, before)
        return Done(status=ended.returncode, out=ended.stdout, err=ended.stderr, seconds=seconds)

    def succeed(self, *words: str, **env: str) -> Done:
        """Runs a command that must succeed."""
        done = self.run(*words, **env)
        assert done.status == 0, done.err
        return done

    def start(self, *words: str, **env: str) -> Running:
        """Starts a command in a process group of its own."""
        return Running(self, self.command(*words), self.env(**env))

    def define(self, name: str, text: str = "", *, extends: str | None = "hello-phantom") -> Path:
        """Writes the definition of an appliance; by default, one that differs from hello-phantom
        only by `text`."""
        head = f'name: {name}\nversion: "1.0"\nsummary: An appliance of the tests\n'
        if extends is not None:
            head = f"extends: {extends}\n{head}"
        return self.write(f"images/{name}/appliance.yaml", head + text)

    def write(self, name: str, text: str, mode: int = 0o644) -> Path:
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        path.chmod(mode)
        return path

    def masked(self, text: str) -> str:
        """A message with what differs from run to run replaced by words."""
        text = text.replace(str(self.store), "STORE").replace(str(self.folder), "PROJECT")
        return re.sub(r"\b([0-9a-f]{64}|[0-9a-f]{32}|[0-9a-f]{16}|[0-9a-f]{12})\b", "HEX", text)

    def manifest(self, appliance: str) -> dict[str, Any]:
        read = json.loads((self.built(appliance) / "manifest.json").read_text())
        assert isinstance(read, dict)
        return read

    def built(self, appliance: str) -> Path:
        """The folder of the latest build, or of the newest where none was published."""
        builds = self.build / appliance
        if (builds / "latest").exists():
            return builds / "latest"
        newest = max(builds.glob("*/manifest.json"), key=lambda path: path.stat().st_mtime_ns)
        return newest.parent

    def artifacts(self, stage: str = "") -> list[Path]:
        """The stored artifacts of a stage, or of all."""
        return sorted((self.store / "artifacts").glob(f"{stage}-*" if stage else "*"))


EXAMPLES = ("debian-cloud-base", "hello-base", "hello-phantom", "ubuntu-base")
"""The definitions that each project has. The others are for a test of their own."""


def make_project(folder: Path, store: Path | None = None, **environ: str) -> Project:
    """A new project with some of the repository's own definitions."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in ("home", "tmp"):
        (folder / name).mkdir()
    for name in EXAMPLES:
        shutil.copytree(REPOSITORY / "images" / name, folder / "images" / name)
    return Project(folder=folder, store=store or folder / "build" / "store", environ=environ)


class Running:
    """A command that runs; its output is kept."""

    def __init__(self, project: Project, argv: list[str], env: Mapping[str, str]) -> None:
        self.project = project
        self._manifests = find_manifests(project.build)
        self._started = time.monotonic()
        # Tests in the background ignore SIGINT, and what they start would inherit that.
        self.process = subprocess.Popen(
            ["env", "--default-signal=INT", *argv],
            cwd=project.folder,
            env=dict(env),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            errors="replace",
            start_new_session=True,
        )
        self.out, self.err = "", ""
        self._readers = [
            threading.Thread(target=self._read, args=(name,), daemon=True)
            for name in ("out", "err")
        ]
        for reader in self._readers:
            reader.start()

    def _read(self, name: str) -> None:
        stream = self.process.stdout if name == "out" else self.process.stderr
        assert stream is not None
        for line in stream:
            setattr(self, name, getattr(self, name) + line)

    def wait_until(self, ready: Callable[[], bool], what: str, timeout: float = 900.0) -> None:
        """Waits for something to happen while the command runs."""
        deadline = time.monotonic() + timeout
        while not ready():
            assert self.process.poll() is None, f"ended before {what}:\n{self.err}"
            assert time.monotonic() < deadline, f"no {what} within {timeout} s:\n{self.err}"
            time.sleep(0.005)

    def wait_for_line(self, text: str) -> None:
        """Waits until standard error holds a text."""
        self.wait_until(lambda: text in self.err, repr(text))

    def wait_for_log(self, stage: str, text: str) -> None:
        """Waits until a stage's log holds a text."""
        logs = self.project.store / "logs"

        def is_there() -> bool:
            return any(text in log.read_text(errors="replace") for log in logs.glob(f"{stage}-*"))

        self.wait_until(is_there, f"{text!r} in the log of {stage}")

    def kill(self) -> None:
        """Ends the command with `kill -9`, but no process that it started."""
        self.process.kill()
        self.end()

    def interrupt(self, *, group: bool) -> Done:
        """Sends SIGINT: to the whole process group, as a terminal does, or to the command."""
        if group:
            os.killpg(self.process.pid, signal.SIGINT)
        else:
            self.process.send_signal(signal.SIGINT)
        return self.end()

    def end(self, timeout: float = LIMIT) -> Done:
        """Waits for the command to end."""
        status = self.process.wait(timeout)
        for reader in self._readers:
            reader.join(30)
        for stream in (self.process.stdout, self.process.stderr):
            assert stream is not None
            stream.close()
        seconds = time.monotonic() - self._started
        assert "Traceback" not in self.err, self.err
        check_written(self.project.build, self._manifests)
        return Done(status=status, out=self.out, err=self.err, seconds=seconds)


# ---- what a build has made


def stages(done: Done) -> dict[str, bool]:
    """Whether each stage was reused."""
    return {stage["stage"]: stage["reused"] for stage in done.json["stages"]}


def digests(manifest: dict[str, Any]) -> list[str]:
    """The digests by which two builds are the same."""
    return [
        manifest["appliance"]["build"],
        manifest["root_filesystem"]["sha256"],
        *(image["disk_sha256"] for image in manifest["images"]),
        *(image["sha256"] for image in manifest["images"]),
    ]


# ---- what is left behind


def find_running(folder: Path) -> list[str]:
    """Mounts, loop devices and processes that use a folder."""
    found = [f"mount {line}" for line in _lines(Path("/proc/mounts")) if f"{folder}/" in line]
    for backing in Path("/sys/block").glob("loop*/loop/backing_file"):
        found += [f"{backing}: {line}" for line in _lines(backing) if str(folder) in line]
    for process in Path("/proc").iterdir():
        if process.name.isdigit() and int(process.name) not in _ancestors():
            words = " ".join(_lines(process / "cmdline")).replace("\0", " ")
            if str(folder) in words or str(folder) in _link(process / "cwd"):
                found.append(f"process {process.name} {words}")
    return found


def assert_nothing_runs(*folders: Path) -> None:
    """Checks that no part of a killed command runs on; the kernel may take a moment to end it."""
    deadline = time.monotonic() + 20
    while found := [each for folder in folders for each in find_running(folder)]:
        assert time.monotonic() < deadline, found
        time.sleep(0.1)


def assert_clean(project: Project) -> None:
    """Checks that a command that ended by itself left nothing behind but its results."""
    assert_nothing_runs(project.folder, project.store)
    work = project.store / "work"
    folders = [project.build, *(project.store / kind for kind in ("artifacts", "resolutions"))]
    left = list_tree(project.temporary) + (list_tree(work) if work.exists() else [])
    left += [str(path) for folder in folders for path in folder.rglob("*.new")]
    assert not left, left
    for artifact in project.artifacts():
        record = json.loads((artifact / "artifact.json").read_text())
        sizes = {name: (artifact / name).stat().st_size for name in record["files"]}
        assert sizes == {name: file["bytes"] for name, file in record["files"].items()}


def list_tree(folder: Path) -> list[str]:
    """Everything below a folder, with type, size and time of change."""
    lines = []
    for path in sorted(folder.rglob("*")):
        status = path.lstat()
        lines.append(f"{path.relative_to(folder)} {status.st_mode:o} {status.st_size}")
        lines[-1] += f" {status.st_mtime_ns}"
    return lines


def _lines(file: Path) -> list[str]:
    try:
        return file.read_text(errors="replace").splitlines()
    except OSError:
        return []


def _link(path: Path) -> str:
    try:
        return str(path.readlink())
    except OSError:
        return ""


def _ancestors() -> set[int]:
    """This process and those that started it: their command lines may name the folder, too."""
    found, process = set(), os.getpid()
    while process > 0 and process not in found:
        found.add(process)
        status = "\n".join(_lines(Path(f"/proc/{process}/status")))
        parent = re.search(r"^PPid:\s*(\d+)", status, re.MULTILINE)
        process = int(parent[1]) if parent else 0
    return found


# ---- stores


def _copy(paths: Iterable[Path], target: Path) -> None:
    for path in paths:
        subprocess.run(["cp", "-a", "--sparse=always", str(path), str(target)], check=True)


def remove_tree(folder: Path) -> None:
    """Removes a test's folder, with some hundred megabytes of artifacts in it."""
    shutil.rmtree(folder, ignore_errors=True)


# ---- the one build that most tests start from


@dataclass(frozen=True, kw_only=True)
class Hello:
    """hello-phantom, built, booted and published once; tests may add to its store, no more."""

    project: Project
    done: Done
    artifacts: Mapping[str, str]
    """The names of its artifacts in the store, by stage."""
    fetched: Path
    """A copy of what the build fetched, which no later command changes."""

    @property
    def store(self) -> Path:
        return self.project.store

    @property
    def summary(self) -> Any:
        return self.done.json

    @property
    def manifest(self) -> dict[str, Any]:
        return self.project.manifest("hello-phantom")

    def artifact(self, stage: str) -> Path:
        """The folder of a stage's artifact."""
        return self.store / "artifacts" / self.artifacts[stage]

    def copy_store(self, target: Path, *stages: str) -> Path:
        """A copy of the store: what was fetched, and the artifacts of these stages. It keeps
        times, by which the store knows whole artifacts, and holes."""
        (target / "artifacts").mkdir(parents=True)
        _copy(self.fetched.iterdir(), target)
        _copy([self.artifact(stage) for stage in stages], target / "artifacts")
        return target


def edit_root(project: Project, edit: Callable[[Path], None]) -> None:
    """Changes the one root file system in a project's store, as if another definition had made it.
    `edit` gets the file."""
    (folder,) = project.artifacts("root")
    root, record = folder / "root.ext4", folder / "artifact.json"
    root.chmod(0o644)
    edit(root)
    root.chmod(0o444)
    told = json.loads(record.read_text())
    status = root.stat()
    told["files"][root.name] = {
        "bytes": status.st_size,
        "mtime_ns": status.st_mtime_ns,
        "digest": sparse.digest(root),
    }
    record.write_text(json.dumps(told))


def build_hello(folder: Path) -> None:
    """Builds hello-phantom in a folder."""
    project = make_project(folder / "project", folder / "store")
    done = project.succeed("image", "--json")
    assert_clean(project)
    (folder / "done").write_bytes(pickle.dumps(done))


def copy_hello(built: Path, folder: Path) -> Hello:
    """hello-phantom as if it had been built in another folder."""
    _copy([built / "project", built / "store"], folder)
    fetched = folder / "fetched"
    fetched.mkdir()
    _copy([built / "store" / name for name in ("packages", "archives", "resolutions")], fetched)
    told: Done = pickle.loads((built / "done").read_bytes())
    out, err = (text.replace(str(built), str(folder)) for text in (told.out, told.err))
    project = Project(folder=folder / "project", store=folder / "store")
    artifacts = {path.name.split("-")[0]: path.name for path in project.artifacts()}
    done = replace(told, out=out, err=err)
    return Hello(project=project, done=done, artifacts=artifacts, fetched=fetched)
