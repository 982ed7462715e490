"""`phantom-image pin` fetches a base image, shows it, and writes its digest into the definition."""

from __future__ import annotations

import gzip
import hashlib
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from cli_runs import Project, assert_clean
from http_files import HttpFile, serving

HEAD = 'name: {name}\nversion: "1.0"\nsummary: An appliance of the tests\ndisk_size: 2GiB\n'


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> list[bytes]:
    """Two qcow2 images of 64 MiB."""
    found = []
    for number in range(2):
        path = tmp_path_factory.mktemp("images") / "base.qcow2"
        words = ["qemu-img", "create", "-q", "-f", "qcow2", str(path), "64M"]
        subprocess.run(words, check=True)
        words = ["qemu-io", "-c", f"write -P {number + 1} 1M 3M", str(path)]
        subprocess.run(words, check=True, capture_output=True)
        found.append(path.read_bytes())
    return found


@pytest.fixture
def file(images: list[bytes]) -> Iterator[HttpFile]:
    with serving(HttpFile(images[0])) as file:
        yield file


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def test_an_image_is_fetched_shown_and_pinned(
    project: Project, file: HttpFile, images: list[bytes]
) -> None:
    head = HEAD.format(name="web")
    below = "    network: false  # nothing is fetched\nlabels:\n  a: b   # and that\n"
    text = (
        f"{head}# A comment\nsource:\n  base_image:\n"
        f"    location: {file.url}   # the publisher's\n{below}"
    )
    path = project.write("images/web/appliance.yaml", text, mode=0o640)
    first, second = map(sha256, images)

    done = project.succeed("pin", "web")
    assert done.out == (
        f"web: {file.url}\n"
        "  3.31 MiB of qcow2, a disk of 64 MiB\n"
        f"  sha256 {first}\n"
        "  written to images/web/appliance.yaml:9:13\n"
    )
    assert done.steps == f"pin: fetching {file.url}\n"
    line = f"    location: {file.url}   # the publisher's\n"
    assert path.read_text() == text.replace(line, f"{line}    sha256: {first}\n")
    assert path.stat().st_mode & 0o777 == 0o640
    assert_clean(project)
    assert len(project.artifacts("download")) == 1
    assert [each.name for each in (project.store / "downloads").iterdir()] == []

    # The server has nothing new: the command asks once, and does not write the definition.
    before, sent = path.stat(), file.sent
    done = project.succeed("pin", "web")
    assert done.out == (
        f"web: {file.url}\n"
        "  3.31 MiB of qcow2, a disk of 64 MiB\n"
        f"  sha256 {first}, as the definition says\n"
    )
    assert done.err == ""
    assert (path.stat().st_mtime_ns, path.stat().st_ino) == (before.st_mtime_ns, before.st_ino)
    assert file.sent == sent + 1

    # The server has another image.
    file.content, file.etag = images[1], '"two"'
    done = project.succeed("pin", "web", "--json")
    assert done.json == {
        "appliance": "web",
        "location": file.url,
        "bytes": len(images[1]),
        "format": "qcow2",
        "compression": None,
        "disk_bytes": 64 << 20,
        "sha256": second,
        "previous": first,
        "file": "images/web/appliance.yaml:9:13",
        "written": True,
    }
    assert path.read_text() == text.replace(line, f"{line}    sha256: {second}\n")
    assert project.write(
        "images/web/appliance.yaml", text.replace(line, f"{line}    sha256: {first}\n")
    )
    done = project.succeed("pin", "web")
    assert done.out.splitlines()[-1] == (
        f"  written to images/web/appliance.yaml:9:13, in place of {first}"
    )


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("source: {{base_image: {{location: {url}}}}}", "{{location: {url}, sha256: {digest}}}"),
        (
            "source: {{base_image: {{sha256: '{zeros}', location: {url}}}}} # end",
            "{{sha256: {digest}, location: {url}}}}} # end",
        ),
        (
            "source:\r\n  base_image:\r\n    location:\r\n      {url}",
            "\r\n      {url}\r\n    sha256: {digest}\r\n",
        ),
        (
            "source:\n  base_image:\n   location: >-\n      {url}\n\n   network: true\n",
            "   location: >-\n      {url}\n\n   sha256: {digest}\n   network: true\n",
        ),
        (
            "source:\n  base_image:\n    location: '{url}'\nlabels: {{a: 'ä\U0001f600'}}",
            "    location: '{url}'\n    sha256: {digest}\nlabels: {{a: 'ä\U0001f600'}}",
        ),
    ],
)
def test_every_way_to_write_it(
    project: Project, file: HttpFile, images: list[bytes], source: str, expected: str
) -> None:
    words = {"url": file.url, "digest": sha256(images[0]), "zeros": "0" * 64}
    path = project.folder / "images" / "web" / "appliance.yaml"
    path.parent.mkdir()
    text = "\ufeff" + HEAD.format(name="web") + source.format(**words)
    path.write_bytes(text.encode())
    project.succeed("pin", "web")
    written = path.read_bytes().decode()
    assert expected.format(**words) in written
    assert written.startswith("\ufeff" + HEAD.format(name="web"))
    assert project.succeed("pin", "web").out.endswith(", as the definition says\n")
    assert path.read_bytes().decode() == written


def test_the_file_that_names_the_location_gets_the_digest(
    project: Project, file: HttpFile, images: list[bytes]
) -> None:
    head = HEAD.format(name="base")
    base = project.write(
        "images/base/appliance.yaml",
        f"{head}source:\n  base_image:\n    location: {file.url}\n",
    )
    child = project.define("web", "labels: {a: b}\n", extends="base")
    before = child.read_text()
    done = project.succeed("pin", "web")
    assert done.out.endswith("  written to images/base/appliance.yaml:8:13\n")
    assert base.read_text().endswith(f"    location: {file.url}\n    sha256: {sha256(images[0])}\n")
    assert child.read_text() == before


def test_a_file_of_this_host(project: Project, images: list[bytes]) -> None:
    packed = project.folder / "images" / "web" / "base.gz"
    packed.parent.mkdir()
    packed.write_bytes(gzip.compress(images[0]))
    head = HEAD.format(name="web")
    project.write(
        "images/web/appliance.yaml", f"{head}source:\n  base_image:\n    location: base.gz\n"
    )
    digest = sha256(packed.read_bytes())
    done = project.succeed("pin", "web")
    assert done.out.splitlines()[1:] == [
        f"  {packed.stat().st_size / 1024:.3g} KiB of qcow2, packed by gzip, a disk of 64 MiB",
        f"  sha256 {digest}",
        "  written to images/web/appliance.yaml:8:13",
    ]


def test_pin_refuses_definitions_without_a_fetched_base(project: Project, file: HttpFile) -> None:
    def fail(status: int, name: str = "web") -> str:
        done = project.run("pin", name)
        assert done.status == status, done.err
        return done.error

    assert fail(24, "hello-phantom") == (
        "error: hello-phantom starts from no base image, so there is nothing to pin\n"
        "  do: name an appliance whose definition says source: base_image:\n"
    )
    head = HEAD.format(name="web")
    text = f"{head}source:\n  base_image:\n    location: {file.url}?signature=secret\n"
    path = project.write("images/web/appliance.yaml", text)
    file.statuses = [404]
    assert fail(45) == (
        f"error: {file.url}: the file cannot be fetched: the server says 404 Not Found\n"
        "  do: see that the location is right and that this host reaches it, then run the command "
        "again\n"
    )
    file.content = b"<html>not here</html>"
    assert fail(46) == (
        f"error: {file.url}: is a web page and not a disk image\n"
        "  do: name the location of the image itself, not of the page that links to it\n"
    )
    assert path.read_text() == text
    project.write(
        "images/web/appliance.yaml",
        f"{head}source:\n  base_image:\n    location: {{appliance: hello-phantom}}\n",
    )
    assert fail(24) == (
        "error: web starts from a build of hello-phantom, which has a digest of its own\n"
        "  do: there is nothing to pin; `phantom-image plan` tells which build is taken\n"
    )
    project.write(
        "images/web/appliance.yaml", f"{head}source:\n  base_image:\n    location: gone.raw\n"
    )
    assert fail(10) == (
        "error: images/web/appliance.yaml:7:15: the base image images/web/gone.raw cannot be read: "
        "No such file or directory\n"
        "  do: fetch it to there, or correct the location\n"
    )


def test_a_killed_command_goes_on(project: Project, file: HttpFile, images: list[bytes]) -> None:
    head = HEAD.format(name="web")
    project.write(
        "images/web/appliance.yaml", f"{head}source:\n  base_image:\n    location: {file.url}\n"
    )
    file.pause = 0.1

    def parts() -> int:
        return sum(each.stat().st_size for each in (project.store / "downloads").glob("url-*.part"))

    running = project.start("pin", "web")
    running.wait_until(lambda: parts() > 500_000, "some of the file")
    running.kill()
    there = parts()
    running = project.start("pin", "web")
    running.wait_until(lambda: parts() > there, "more of the file")
    started = time.monotonic()
    done = running.interrupt(group=False)
    assert done.status == 130 and time.monotonic() - started < 5
    file.pause = 0.0
    assert project.succeed("pin", "web").out.splitlines()[2] == f"  sha256 {sha256(images[0])}"
    assert len(file.requests) == 3
    asked = [int((each or "bytes=0-")[6:-1]) for each in file.ranges_asked]
    assert asked[0] == 0 and asked[1] == there and asked[2] > there
    assert_clean(project)


def test_a_digest_that_is_missing_names_the_command(project: Project, file: HttpFile) -> None:
    head = HEAD.format(name="web")
    project.write(
        "images/web/appliance.yaml", f"{head}source:\n  base_image:\n    location: {file.url}\n"
    )
    done = project.run("plan", "web")
    assert done.status == 10
    assert "`phantom-image pin web` fetches the image and writes it" in done.error
    project.succeed("pin", "web")
    path: Path = project.folder / "images" / "web" / "appliance.yaml"
    assert "sha256: " in path.read_text()
