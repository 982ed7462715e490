"""The program from a wheel, in a folder that is no checkout."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import sysconfig
from dataclasses import dataclass
from pathlib import Path

import pytest
from cli_runs import REPOSITORY, Project, make_project

_SOURCES = ("pipeline", "elements", "images", "pyproject.toml", "setup.py", "README.md", "LICENSE")

_PAGES = ("docs", "ARCHITECTURE.md", "sites.example.yaml")
_NAMED = re.compile(r"(?<![\w/])(docs/(?!facts/|interop/)[a-z0-9/-]+\.md|[A-Z]+\.md)")


@dataclass(frozen=True, kw_only=True)
class Installed:
    """A wheel that was built and installed."""

    venv: Path

    @property
    def data(self) -> Path:
        (data,) = self.venv.glob("lib/*/site-packages/pipeline/data")
        return data

    def run(self, folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
        """Runs a command in a folder, with the user's mirrors and without a PYTHONPATH."""
        project = Project(folder=folder, store=folder / "build/store")
        environ = {name: value for name, value in project.env().items() if name != "PYTHONPATH"}
        (folder / "tmp").mkdir(exist_ok=True)
        return subprocess.run(
            [self.venv / "bin/phantom-image", *words],
            cwd=folder,
            env=environ,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
        )


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Installed:
    """A wheel of this checkout in a virtual environment of its own. Only the packages that it needs
    are this environment's."""
    folder = tmp_path_factory.mktemp("wheel")
    source = folder / "source"
    source.mkdir()
    for name in (*_SOURCES, *_PAGES):
        of = REPOSITORY / name
        if of.is_dir():
            shutil.copytree(of, source / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy2(of, source / name)
    pip = [sys.executable, "-m", "pip", "-q", "--disable-pip-version-check"]
    wheel = ["wheel", "--no-deps", "--no-build-isolation", "-w", str(folder), str(source)]
    subprocess.run([*pip, *wheel], check=True)
    assert not (source / "build").exists()
    (file,) = folder.glob("*.whl")
    venv = folder / "venv"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", venv], check=True)
    install = ["install", "--no-deps", "--no-index", "--no-compile", str(file)]
    subprocess.run([*pip, "--python", venv / "bin/python", *install], check=True)
    (packages,) = venv.glob("lib/*/site-packages")
    (packages / "needed.pth").write_text(sysconfig.get_path("purelib") + "\n")
    return Installed(venv=venv)


@pytest.mark.slow
def test_a_wheel_has_all_that_the_checkout_has(installed: Installed) -> None:
    for name in ("elements", "images"):
        listed = subprocess.run(
            ["git", "-C", REPOSITORY, "ls-files", name], capture_output=True, text=True, check=False
        ).stdout.split()
        for path in listed:
            ours, theirs = REPOSITORY / path, installed.data / path
            assert theirs.read_bytes() == ours.read_bytes(), path
            assert os.access(theirs, os.X_OK) == bool(ours.stat().st_mode & 0o100), path
    for pattern in ("*.sh", "templates/*"):
        here, there = (
            {path.relative_to(folder) for path in folder.rglob(pattern)}
            for folder in (REPOSITORY / "pipeline", installed.data.parent)
        )
        assert here and here <= there


@pytest.mark.slow
def test_examples_are_found_from_any_folder(installed: Installed, tmp_path: Path) -> None:
    done = installed.run(tmp_path, "plan", "helo-phantom")
    images = installed.data / "images"
    assert (done.returncode, done.stderr) == (
        24,
        f"error: there is no appliance 'helo-phantom' in {images}; did you mean 'hello-phantom'?\n"
        f"  do: choose one of: {', '.join(sorted(each.name for each in images.iterdir()))}\n",
    )
    (tmp_path / "sites.yaml").write_text("sites: {}\nsite: 1\n")
    done = installed.run(tmp_path, "plan", "hello-phantom")
    assert done.stderr.endswith(
        f"  do: correct it; {installed.data}/sites.example.yaml shows what the file can say\n"
    )
    (tmp_path / "images").mkdir()
    done = installed.run(tmp_path, "plan", "hello-phantom")
    assert "there is no appliance 'hello-phantom' in images" in done.stderr
    done = installed.run(tmp_path, "list", "--build", "elsewhere")
    assert (done.returncode, done.stdout, done.stderr) == (0, "nothing to list\n", "")


@pytest.mark.slow
def test_pages_that_messages_name_are_in_the_wheel(installed: Installed) -> None:
    texts = [path.read_text() for path in (REPOSITORY / "pipeline").rglob("*.py")]
    named = {page for text in texts for page in _NAMED.findall(text)} - {"README.md"}
    assert {"docs/ec2.md", "ARCHITECTURE.md"} <= named
    program = (
        "import sys; from pathlib import Path; from pipeline.errors import StoreError\n"
        "for page in sys.argv[1:]: print(StoreError('', todo=f'see {page}.').todo)"
    )
    told = subprocess.run(
        [installed.venv / "bin/python", "-c", program, *named],
        cwd="/",
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    assert told == "".join(f"see {installed.data / page}.\n" for page in named)
    assert all((installed.data / page).is_file() for page in named)


@pytest.mark.slow
def test_missing_parts_of_the_host_name_no_checkout(installed: Installed, tmp_path: Path) -> None:
    program = (
        "from pipeline.machine.requirements import PROGRAMS, Program\n"
        "from pipeline.resources import setup_hint\n"
        "print(Program('no-such', 'that-package', 'is missing').check(None).mend)\n"
        "print(setup_hint())\n"
    )
    printed = subprocess.run(
        [installed.venv / "bin/python", "-c", program],
        cwd=tmp_path,
        env={"PATH": os.environ["PATH"]},
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    assert printed == (
        "sudo apt-get install that-package\n"
        "`phantom-image doctor` says what installs what is missing\n"
    )


@pytest.mark.slow
def test_a_wheel_plans_what_the_checkout_plans(installed: Installed, tmp_path: Path) -> None:
    """The same keys: what one has built the other takes from a store."""
    folder = tmp_path / "wheel"
    folder.mkdir()
    done = installed.run(folder, "plan", "--json", "--cloud", "nimbus")
    assert done.returncode == 0, done.stderr
    project = make_project(tmp_path / "checkout")
    ours = project.succeed("plan", "--json", "--cloud", "nimbus").json
    told = json.loads(done.stdout)
    keys = [{stage["stage"]: stage["key"] for stage in each["stages"]} for each in (told, ours)]
    assert keys[0] == keys[1]
    assert len(keys[0]) >= 6


def test_places_may_follow_the_command(tmp_path: Path) -> None:
    project = make_project(tmp_path / "project")
    os.rename(project.folder / "images", project.folder / "definitions")
    project.write("places.yaml", "sites: {}\nsit: 1\n")
    for words in (
        ["--images", "definitions", "--sites", "places.yaml", "plan", "hello-phantm"],
        ["plan", "hello-phantm", "--images", "definitions", "--sites=places.yaml"],
        ["--images", "elsewhere", "plan", "--images", "definitions", "hello-phantm"],
    ):
        done = project.run(*words)
        assert (done.status, done.error.splitlines()[0]) == (
            24,
            "error: there is no appliance 'hello-phantm' in definitions; did you mean "
            "'hello-phantom'?",
        )
    done = project.run("plan", "hello-phantom", "--images=definitions", "--sites=places.yaml")
    assert "places.yaml:2:1: unknown key 'sit'" in done.error
    assert project.succeed("schema", "--sites").json["title"].startswith("The sites")
