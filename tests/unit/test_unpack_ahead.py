"""Packages unpacked beside dpkg, and files that a tree is to be without."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from pipeline.tools import leave_out, unpack_ahead

MOST = 100_000_000


def make_package(folder: Path, name: str, *words: str, size: int = 1000) -> Path:
    tree = folder / f"{name}-tree"
    (tree / "DEBIAN").mkdir(parents=True)
    (tree / "DEBIAN/control").write_text(
        f"Package: {name}\nVersion: 1\nArchitecture: all\nMaintainer: me\nDescription: toy\n"
    )
    (tree / "usr").mkdir()
    (tree / "usr/file").write_bytes(name.encode() + bytes(size))
    package = folder / f"{name}.deb"
    build = ["dpkg-deb", "--root-owner-group", *words, "--build", str(tree), str(package)]
    subprocess.run(build, check=True, capture_output=True)
    return package


def planned(package: Path, target: Path) -> unpack_ahead.Package:
    return unpack_ahead.Package(package, target, 5000, essential=False)


def files_of(package: Path) -> bytes:
    words = ["dpkg-deb", "--fsys-tarfile", str(package)]
    return subprocess.run(words, check=True, capture_output=True).stdout


@pytest.mark.parametrize("compression", ["-Zxz", "-Znone"])
def test_the_same_as_dpkg_s(tmp_path: Path, compression: str) -> None:
    package = make_package(tmp_path, "toy", compression)
    ready = tmp_path / "ready"
    ready.mkdir()
    unpack_ahead.unpack(planned(package, ready / "toy"), MOST)
    assert (ready / "toy").read_bytes() == files_of(package)
    assert {path.name for path in ready.iterdir()} == {"toy", "toy.begun"}


def test_what_is_strange_is_left_to_dpkg(tmp_path: Path) -> None:
    package = make_package(tmp_path, "toy", "-Zgzip")
    cut = tmp_path / "cut.deb"
    cut.write_bytes(make_package(tmp_path, "other").read_bytes()[:-100])
    (tmp_path / "none.deb").write_text("no package")
    ready = tmp_path / "ready"
    ready.mkdir()
    for each in (package, cut, tmp_path / "none.deb", tmp_path / "gone.deb"):
        unpack_ahead.unpack(planned(each, ready / "toy"), MOST)
        assert [path.name for path in ready.iterdir()] == ["toy.begun"]
        (ready / "toy.begun").unlink()


def test_what_dpkg_took_is_not_unpacked_again(tmp_path: Path) -> None:
    package = make_package(tmp_path, "toy")
    (tmp_path / "toy.begun").touch()
    unpack_ahead.unpack(planned(package, tmp_path / "toy"), MOST)
    assert not (tmp_path / "toy").exists()


def test_it_holds_no_more_than_it_may(tmp_path: Path) -> None:
    """With two packages ready it waits until dpkg has taken one."""
    names = ["one", "two", "three"]
    lines = []
    for name in names:
        package = make_package(tmp_path, name, "-Znone", size=100_000)
        size = package.stat().st_size
        lines.append(f"{package.name} {name} {size} other\n")
    (tmp_path / "order").write_text("".join(lines))
    ready = tmp_path / "ready"
    ready.mkdir()
    most = 5 * size // 2
    words = [str(tmp_path / "order"), str(tmp_path), str(ready), str(most)]
    program = [sys.executable, "-I", unpack_ahead.__file__, *words]
    with subprocess.Popen(program) as process:
        with pytest.raises(subprocess.TimeoutExpired):
            process.wait(0.6)
        assert {path.name for path in ready.iterdir() if not path.suffix} == {"one", "two"}
        (ready / "one").unlink()
        assert process.wait(20) == 0
    assert (ready / "three").exists()


def test_a_package_that_is_much_larger_than_it_looks_is_left_to_dpkg(tmp_path: Path) -> None:
    package = make_package(tmp_path, "zeros", size=3_000_000)
    assert package.stat().st_size < 10_000
    (tmp_path / "ready").mkdir()
    unpack_ahead.unpack(planned(package, tmp_path / "ready/zeros"), 2_000_000)
    assert [path.name for path in (tmp_path / "ready").iterdir()] == ["zeros.begun"]


@pytest.mark.parametrize(
    ("sizes", "held", "chosen"),
    [
        ({"bash": 90, "a": 10, "b": 20, "kernel": 400}, 0, "bash"),
        ({"a": 10, "b": 20, "kernel": 400}, 40, "a"),  # beside the kernel there is room for it
        ({"b": 50, "kernel": 400}, 60, "kernel"),
        ({"b": 20, "kernel": 400}, 110, None),
        ({"b": 20}, 460, "b"),
        ({"b": 60}, 460, None),
        ({"a": 100, "b": 110}, 300, "a"),  # none is so large that room is kept for it
        ({}, 0, None),
    ],
)
def test_which_package_comes_next(sizes: dict[str, int], held: int, chosen: str | None) -> None:
    left = [
        unpack_ahead.Package(Path(name), Path(name), size, name == "bash")
        for name, size in sizes.items()
    ]
    found = unpack_ahead.choose(left, held, 500)
    assert (found and found.file.name) == chosen


RULES = leave_out.read_rules(
    [
        "force-unsafe-io",
        "path-exclude=/usr/share/doc/*",
        "path-exclude=/usr/share/locale/*/LC_MESSAGES/*.mo",
        "path-include=/usr/share/doc/*/copyright",
    ]
)


@pytest.mark.parametrize(
    ("path", "out"),
    [
        ("/usr/share/doc/bash/README", True),
        ("/usr/share/doc/bash/deep/README", True),
        ("/usr/share/doc/bash/copyright", False),
        ("/usr/share/doc/a/b/copyright", False),
        ("/usr/share/locale/de/LC_MESSAGES/bash.mo", True),
        ("/usr/share/locale/de/LC_MESSAGES/bash.po", False),
        ("/usr/share/docs", False),
        ("/etc/usr/share/doc/x", False),
    ],
)
def test_what_is_left_out(path: str, out: bool) -> None:
    assert leave_out.is_left_out(path, RULES) is out


def test_what_goes_and_what_stays(tmp_path: Path) -> None:
    """As mmdebstrap's own filter has it: packages look for a folder of manual pages, say."""
    share = tmp_path / "usr/share"
    for name in ("doc/bash", "doc/empty", "locale/de/LC_MESSAGES", "man/man1", "man/de/man1"):
        (share / name).mkdir(parents=True)
    for name in ("doc/bash/copyright", "doc/bash/README", "man/man1/sh.1", "man/de/man1/sh.1"):
        (share / name).write_text(name)
    (share / "doc/sh").symlink_to("bash")
    (tmp_path / "etc").symlink_to("usr/share/doc")
    rules = [*RULES, *leave_out.read_rules(["path-exclude=/usr/share/man/*"])]
    leave_out.remove(str(tmp_path), rules)
    left = sorted(str(path.relative_to(share)) for path in share.rglob("*"))
    assert left == [
        *("doc", "doc/bash", "doc/bash/copyright", "doc/empty"),
        *("locale", "locale/de", "locale/de/LC_MESSAGES", "man"),
    ]
    assert (tmp_path / "etc").is_symlink()
