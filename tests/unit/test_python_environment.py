"""The key `python`: requirements are read, real pip fetches wheels from an index in a folder, and a
real environment is made of them."""

from __future__ import annotations

import hashlib
import subprocess
from collections.abc import Callable
from pathlib import Path
from types import MappingProxyType

import pytest
from wheel_files import make_source, make_wheel

from pipeline.customizations import make_steps
from pipeline.customizations.python import Mistake, read_requirements
from pipeline.errors import (
    ChecksumError,
    DefinitionError,
    MirrorError,
    PhantomError,
    UnknownPackageError,
)
from pipeline.file_copies import TextFile
from pipeline.model import Appliance, NoProgress, Package, Positions, ScratchSource, Sha256
from pipeline.sources.wheels import lay_out, plan_for_base_image, plan_for_packages
from pipeline.stages.base import Context
from pipeline.store import Artifact, Store
from pipeline.tools import pip

A, B = "a" * 64, "b" * 64
PACKAGES = [
    Package(name="python3", version="3.11.2-1+b1", architecture="amd64", sha256=Sha256(A)),
    Package(name="libc6", version="2.36-9+deb12u10", architecture="amd64", sha256=Sha256(A)),
]
FILE = "images/web/requirements.txt"


class Index:
    """A folder that pip takes for an index, and a store."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder / "index"
        self.folder.mkdir()
        self.store = Store(folder / "store")
        self._work = folder / "work"
        self._runs = 0

    def fetch(self, content: str) -> Artifact:
        (stage,) = plan_for_packages(appliance(content), PACKAGES)
        self._runs += 1
        out, work = (self._work / str(self._runs) / name for name in ("out", "work"))
        out.mkdir(parents=True)
        work.mkdir()
        log = self._work / f"{self._runs}.log"
        context = Context(out=out, work=work, log=log, store=self.store, progress=NoProgress())
        facts = stage.run([], context)
        return self.store.add(stage.name, stage.key, out, facts)


@pytest.fixture
def index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Index:
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
    for name in ("PIP_EXTRA_INDEX_URL", "PIP_INDEX_URL"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    made = Index(tmp_path)
    monkeypatch.setenv("PIP_FIND_LINKS", str(made.folder))
    return made


def appliance(content: str, **more: object) -> Appliance:
    value = {
        "path": "/opt/app",
        "requirements": TextFile(path=Path.cwd() / FILE, text=content, sha256=""),
        **more,
    }
    places: dict[tuple[str | int, ...], str] = {
        ("python",): "appliance.yaml:5:9",
        ("python", "version"): "appliance.yaml:6:12",
    }
    return Appliance(
        name="web",
        version="1",
        summary="s",
        source=ScratchSource(element="phantom-debian", release="bookworm", architecture="amd64"),
        customizations=MappingProxyType({"python": value}),
        definition=Path("appliance.yaml"),
        positions=Positions(file="appliance.yaml", places=MappingProxyType(places)),
    )


def line(name: str, version: str, *hashes: str) -> str:
    return " ".join([f"{name}=={version}", *(f"--hash=sha256:{each}" for each in hashes)]) + "\n"


def test_requirements_as_their_makers_write_them() -> None:
    found, wrong = read_requirements(
        "# made by pip-compile\n"
        f"Foo_Bar[extra]==1.0 ; python_version >= '3.8' \\\n    --hash=sha256:{A} \\\n"
        f"    --hash=sha256:{B}\n    # via\n    #   something\n"
        f"baz==2.0+local --hash=sha256:{A} # why\n\n"
    )
    assert wrong == []
    assert [(each.name, each.version, each.hashes, each.line) for each in found] == [
        ("foo-bar", "1.0", (A, B), 2),
        ("baz", "2.0+local", (A,), 7),
    ]


def test_lines_that_pin_nothing() -> None:
    _, wrong = read_requirements(
        f"foo\nbar==1\n-r other\nbaz==1.* --hash=sha256:{A}\nfoo==1 --hash=md5:1\n"
        "foo @ https://h/x.whl\n???\nfoo==1 --no-binary :all:\n"
    )
    option = (
        "only pinned packages belong there, and the build host's pip configuration names the index"
    )
    assert wrong == [
        Mistake(line=1, what="does not pin foo to one version; write foo==VERSION"),
        Mistake(
            line=2,
            what="has no --hash for bar; `pip-compile --generate-hashes` or `uv pip compile "
            "--generate-hashes` writes them",
        ),
        Mistake(line=3, what=f"has the option -r; {option}"),
        Mistake(line=4, what="does not pin baz to one version; write baz==VERSION"),
        Mistake(
            line=5,
            what="has a --hash for foo that is no sha256: and 64 hexadecimal digits",
        ),
        Mistake(line=6, what="does not pin foo to one version; write foo==VERSION"),
        Mistake(line=7, what="is no requirement, such as name==1.0"),
        Mistake(line=8, what=f"has the option --no-binary; {option}"),
    ]


def test_the_plan_takes_what_is_for_the_images_python() -> None:
    content = (
        line("old", "1", A).replace(" --", " ; python_version < '3.11' --", 1)
        + line("new", "1", A).replace(" --", " ; python_full_version >= '3.11.2' --", 1)
        + line("windows", "1", A).replace(" --", " ; sys_platform == 'win32' --", 1)
    )
    (stage,) = plan_for_packages(appliance(content), PACKAGES)
    assert [each.name for each in stage.requirements] == ["new"]
    assert (stage.target.python, stage.target.glibc) == ("3.11", "2.36")
    (moved,) = plan_for_packages(appliance("# a comment\n" + content), PACKAGES)
    assert moved.key == stage.key, "lines and comments do not count"
    (other,) = plan_for_packages(appliance(content.replace(A, B)), PACKAGES)
    assert other.key != stage.key
    (base,) = plan_for_base_image(appliance(content, version="3.9"))
    assert [each.name for each in base.requirements] == ["old"]


def test_what_the_plan_refuses() -> None:
    twice = line("foo", "1", A) + line("foo", "2", A)
    refused: tuple[tuple[Callable[[], object], str], ...] = (
        (
            lambda: plan_for_packages(appliance(twice), PACKAGES),
            f"{FILE}:2: foo is pinned on line 1 too; leave one of them out",
        ),
        (
            lambda: plan_for_packages(appliance(twice, version="3.9"), PACKAGES),
            "appliance.yaml:6:12: the image's packages have Python 3.11, and not 3.9; leave "
            "'version' out: the packages say it",
        ),
        (
            lambda: plan_for_base_image(appliance(twice)),
            "appliance.yaml:5:9: 'version' is missing in 'python': the wheels are fetched before "
            "the base image is opened; write which Python the image has, such as version: '3.11' "
            "for Debian 12; `python3 --version` says it",
        ),
    )
    for plan, message in refused:
        with pytest.raises(DefinitionError) as caught:
            plan()
        assert _told(caught.value) == message


def test_wheels_are_fetched_once_for_all_builds(index: Index) -> None:
    best = make_wheel(index.folder, "foo", tag="cp311-cp311-manylinux_2_17_x86_64")
    plain = make_wheel(index.folder, "foo")
    future = make_wheel(index.folder, "foo", tag="cp311-cp311-manylinux_2_99_x86_64")
    bar = make_wheel(index.folder, "bar", "2.0")
    made = index.fetch(line("foo", "1.0", plain, best, future) + line("bar", "2.0", bar))
    assert made.facts["wheels"] == [
        {"name": "bar", "version": "2.0", "file": "bar-2.0-py3-none-any.whl", "sha256": bar},
        {
            "name": "foo",
            "version": "1.0",
            "file": "foo-1.0-cp311-cp311-manylinux_2_17_x86_64.whl",
            "sha256": best,
        },
    ]
    assert made.file("requirements.txt").read_text() == line("bar", "2.0", bar) + line(
        "foo", "1.0", best
    )
    assert made.file("python").read_text() == "3.11\n"
    for file in index.folder.iterdir():
        file.unlink()
    again = index.fetch(line("bar", "2.0", bar, A))
    assert again.digests["bar-2.0-py3-none-any.whl"] == made.digests["bar-2.0-py3-none-any.whl"]


def test_a_damaged_wheel_of_the_store_is_fetched_anew(index: Index) -> None:
    bar = make_wheel(index.folder, "bar")
    index.fetch(line("bar", "1.0", bar))
    (kept,) = index.store.path("wheels").iterdir()
    kept.write_bytes(b"damaged")
    made = index.fetch(line("bar", "1.0", bar, A))
    assert hashlib.sha256(made.file("bar-1.0-py3-none-any.whl").read_bytes()).hexdigest() == bar
    assert hashlib.sha256(kept.read_bytes()).hexdigest() == bar


def test_what_the_index_does_not_have(index: Index) -> None:
    make_wheel(index.folder, "bar", "1.0")
    make_wheel(index.folder, "bar", "1.1")
    source = make_source(index.folder, "raw")
    late = make_wheel(index.folder, "late", python=">=3.11.5")
    other = make_wheel(index.folder, "new-one", tag="cp313-cp313-manylinux_2_17_x86_64")
    for content, message in (
        (
            line("bar", "3.0", A),
            f"{FILE}:1: the index has no bar 3.0 for the image's Python 3.11; it has 1.1, 1.0; "
            "correct the name and the version, or see that pip's configuration names the right "
            "index",
        ),
        (
            line("nothing", "3.0", A),
            f"{FILE}:1: the index has no nothing 3.0 for the image's Python 3.11, nor another "
            "version of it; correct the name and the version, or see that pip's configuration "
            "names the right index",
        ),
        (
            "\n" + line("raw", "1.0", source),
            f"{FILE}:2: the index has raw 1.0 as source only (raw-1.0.tar.gz), and nothing is "
            "compiled for an image; pin a version that has a wheel, or make one with `pip wheel` "
            "and name its folder as `find-links` in pip's configuration",
        ),
        (
            line("late", "1.0", late),
            f"{FILE}:1: late 1.0 needs Python >=3.11.5, and the image has 3.11.2; pin an older "
            "version: make the requirements with Python 3.11.2, or limit it there",
        ),
        (
            line("new-one", "1.0", other),
            f"{FILE}:1: the index has no wheel of new-one 1.0 for the image's Python 3.11 on "
            "x86_64 with glibc 2.36; it has new_one-1.0-cp313-cp313-manylinux_2_17_x86_64.whl; "
            "pin a version that has one: make the requirements with Python 3.11",
        ),
    ):
        with pytest.raises(UnknownPackageError) as caught:
            index.fetch(content)
        assert _told(caught.value) == message


def test_a_file_with_another_digest(index: Index) -> None:
    bar = make_wheel(index.folder, "bar")
    with pytest.raises(ChecksumError) as caught:
        index.fetch(line("bar", "1.0", A, B))
    assert _told(caught.value) == (
        f"{FILE}:1: the index's file of bar 1.0 has the SHA-256 {bar}, which is none of its 2 in "
        "the requirements; see where the file came from before you trust it; `pip-compile "
        "--generate-hashes` writes the digests that the index has now"
    )


def test_an_index_that_is_away(index: Index, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PIP_NO_INDEX")
    monkeypatch.setenv("PIP_INDEX_URL", "http://me:secret-word@127.0.0.1:9/simple")
    monkeypatch.setenv("PIP_RETRIES", "0")
    with pytest.raises(MirrorError) as caught:
        index.fetch(line("bar", "1.0", A))
    assert _told(caught.value) == (
        "the index of Python packages cannot be reached; see that the index of the build host's "
        "pip configuration answers (`pip config list`), then run the same command again"
    )
    assert caught.value.log is not None
    assert "secret-word" not in caught.value.log.read_text() + str(caught.value)


def test_only_what_reaches_the_network_is_taken_of_pips_configuration(
    index: Index, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Constraints of the host would decide what an image gets."""
    bar = make_wheel(index.folder, "bar")
    constraints = tmp_path / "constraints.txt"
    constraints.write_text("bar==7\n")
    monkeypatch.setenv("PIP_CONSTRAINT", str(constraints))
    index.fetch(line("bar", "1.0", bar))


def _told(error: PhantomError) -> str:
    """All of an error but the lines that pip printed."""
    return "; ".join(
        filter(None, [f"{error.where}: {error.what}" if error.where else error.what, error.todo])
    )


class Environment:
    """An environment that the script which images run makes with this host's Python."""

    def __init__(self, index: Index, folder: Path) -> None:
        self.path = folder / "opt/app"
        self.foo = make_wheel(index.folder, "foo", needs="bar")
        bar = make_wheel(index.folder, "bar")
        content = line("foo", "1.0", self.foo) + line("bar", "1.0", bar)
        self.wheels = lay_out(index.fetch(content), folder / "wheels")
        self.version = subprocess.check_output(
            ["python3", "-c", "import sys; print('%d.%d' % sys.version_info[:2])"], text=True
        ).strip()
        (self.wheels / "python").write_text(f"{self.version}\n")
        asked = {**appliance(content).customizations["python"], "path": str(self.path)}
        (step,) = make_steps({"python": asked}, Positions(file="x"))
        self._script = folder / "script"
        self._script.write_text(f"wheels={self.wheels}\n{step.script}")

    def apply(self) -> tuple[int, str]:
        ended = subprocess.run(
            ["sh", str(self._script)], text=True, capture_output=True, check=False
        )
        return ended.returncode, ended.stderr


@pytest.fixture
def environment(index: Index, tmp_path: Path) -> Environment:
    return Environment(index, tmp_path)


@pytest.mark.slow
def test_an_environment_is_the_same_each_time(environment: Environment) -> None:
    assert environment.apply() == (0, "No broken requirements found.\n")
    printed = subprocess.check_output([str(environment.path / "bin/foo")], text=True)
    assert printed == "foo 1.0 ['a', 'b', 'c']\n"
    before = _content(environment.path)
    assert [file for file in before if file.endswith(".pyc") and "/foo/" in file]
    assert environment.apply()[0] == 0, "it replaces that of a base image"
    assert _content(environment.path) == before


def test_requirements_that_are_not_complete(environment: Environment) -> None:
    pins = environment.wheels / "requirements.txt"
    pins.write_text(line("foo", "1.0", environment.foo))
    status, printed = environment.apply()
    assert (status, printed.splitlines()[-2:]) == (
        1,
        [
            "foo 1.0 requires bar, which is not installed.",
            "the requirements lack packages that others of them need: pin these too",
        ],
    )


def test_an_image_with_another_python(environment: Environment) -> None:
    (environment.wheels / "python").write_text("3.4\n")
    version = environment.version
    assert environment.apply() == (
        1,
        f"the image has Python {version}, and the wheels are for 3.4; write version: '{version}'\n",
    )


def _content(folder: Path) -> dict[str, str]:
    return {
        str(file.relative_to(folder)): str(file.readlink())
        if file.is_symlink()
        else hashlib.sha256(file.read_bytes()).hexdigest()
        for file in sorted(folder.rglob("*"))
        if file.is_symlink() or file.is_file()
    }


def test_tags_of_a_system() -> None:
    target = pip.Target(python="3.11", glibc="2.17", machine="x86_64")
    tags = list(target.platforms())
    assert tags[:3] == ["manylinux_2_17_x86_64", "manylinux2014_x86_64", "manylinux_2_16_x86_64"]
    assert tags[-2:] == ["manylinux1_x86_64", "linux_x86_64"]
