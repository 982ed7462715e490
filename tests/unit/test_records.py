"""Our own files as they may be found: whatever happened to them, reading one raises no error."""

from __future__ import annotations

import contextlib
import json
import os
import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings, strategies
from soak import examples
from test_manifest import BUILD, HOME, HOTEL, make

from pipeline import records
from pipeline.build import manifest, run
from pipeline.clouds.ec2.blocks import BlockIndex, Digests, count_blocks
from pipeline.clouds.ec2.journal import Journal
from pipeline.clouds.ec2.sandbox import Rehearsal, Rehearsals
from pipeline.clouds.ec2.tokens import KeptToken
from pipeline.clouds.nimbus.cumulus_index import open_index
from pipeline.clouds.nimbus.cumulus_store import Store as Objects
from pipeline.clouds.nimbus.cumulus_store import read_index
from pipeline.commands import show
from pipeline.commands.list import _builds
from pipeline.errors import ManifestError
from pipeline.machine import accelerator
from pipeline.model import GIB, ContentKey, NoProgress, Sha256
from pipeline.sources.base_file import _find_file
from pipeline.sources.download import Arrived
from pipeline.store import Store
from pipeline.tools.curl import Answer
from pipeline.workspace import Workspace

DIGEST = Sha256("0" * 64)
KEY = ContentKey("a" * 64)
ODD: list[Any] = [None, True, -1, 1 << 70, 1.5, "", "../../x", "\ud800", [], [1], {}, {"a": None}]
TEXTS = [
    b"",
    b"null",
    b"[]",
    b"{}",
    b'"x"',
    b"1e400",
    b"NaN",
    b"[" * 100_000,
    b"\xff\0",
    b"9" * 5000,
]


@strategies.composite
def damage(draw: strategies.DrawFn, good: bytes) -> bytes:
    """What may become of a file's content."""
    kind = draw(strategies.sampled_from(["text", "cut", "flip", "value", "key"]))
    if kind == "text":
        return draw(strategies.sampled_from(TEXTS))
    if kind == "cut":
        return good[: draw(strategies.integers(0, len(good) - 1))]
    if kind == "flip":
        at = draw(strategies.integers(0, len(good) - 1))
        return (
            good[:at] + bytes([good[at] ^ (1 << draw(strategies.integers(0, 7)))]) + good[at + 1 :]
        )
    first, feed, rest = good.partition(b"\n") if good.startswith(b'{"') else (good, b"", b"")
    value = json.loads(first)
    inner = value
    while True:
        keys = list(inner) if isinstance(inner, dict) else list(range(len(inner)))
        name = draw(strategies.sampled_from(keys))
        below = inner[name]
        if not (isinstance(below, dict | list) and below) or draw(strategies.booleans()):
            break
        inner = below
    if kind == "value":
        inner[name] = draw(strategies.sampled_from(ODD))
    else:
        del inner[name]
    return json.dumps(value).encode() + feed + rest


def check(file: Path, use: Callable[[], object], count: int = 60) -> None:
    """Damages a file in many ways, and uses it each time; then puts other things in its place."""
    good = file.read_bytes()

    @settings(
        max_examples=count, deadline=None, suppress_health_check=list(HealthCheck), database=None
    )
    @given(damage(good))
    def damaged(data: bytes) -> None:
        file.unlink(missing_ok=True)
        file.write_bytes(data)
        use()

    damaged()
    file.unlink(missing_ok=True)
    use()
    others: list[Callable[[], None]] = [
        file.mkdir,
        lambda: os.mkfifo(file),
        lambda: file.symlink_to("nowhere"),
    ]
    for make_other in others:
        file.unlink(missing_ok=True)
        make_other()
        use()
        if file.is_dir() and not file.is_symlink():
            file.rmdir()


@pytest.mark.soak
def test_artifacts(tmp_path: Path) -> None:
    store = Store(tmp_path)
    with store.making("root", KEY) as folder:
        out = folder / "out"
        out.mkdir()
        (out / "file").write_text("content")
        made = store.add("root", KEY, out, {"sha256": DIGEST, "parts": [{"size": 1}]})
    facts, files = dict(made.facts), set(made.digests)

    def use() -> None:
        found = store.find("root", KEY)
        assert found is None or (found.facts == facts and set(found.digests) <= files)

    check(made.folder / "artifact.json", use, examples(100))


@pytest.mark.soak
def test_artifacts_whose_small_files_are_damaged(tmp_path: Path) -> None:
    store = Store(tmp_path)
    with store.making("root", KEY) as folder:
        out = folder / "out"
        out.mkdir()
        (out / "file").write_text("content")
        made = store.add("root", KEY, out, {})
    file = made.file("file")
    status = file.stat()
    file.chmod(0o644)
    file.write_text("contenT")
    os.utime(file, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert store.find("root", KEY) is None


@pytest.mark.soak
def test_manifests(tmp_path: Path) -> None:
    """What is read of a damaged manifest can be listed, shown, merged and retired."""
    folder = tmp_path / "web"
    told = make(HOTEL, HOME)
    file = manifest.write_manifest(folder, told)
    workspace = Workspace(
        build=tmp_path, store=Store(tmp_path / "store"), progress=lambda _: NoProgress()
    )

    def use() -> None:
        with contextlib.suppress(OSError, ManifestError):
            manifest.load_manifest(file)
        list(_builds(workspace))
        read = manifest.read_manifest(folder, BUILD)
        if read is None:
            return
        assert dict(show._rows(read, folder))["manifest"]
        for publication in manifest.publications_of(read):
            manifest.without(read, publication)
        manifest.write_manifest(tmp_path / "other", make(HOTEL, before=read))

    check(file, use, examples(300))


def test_a_manifest_that_cannot_be_used_says_why(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = manifest.write_manifest(tmp_path / "web", make(HOTEL))
    told = json.loads(file.read_text())
    broken: list[tuple[object, str]] = [
        (None, "it is not an object"),
        ({}, "it has no 'schema'"),
        ({"schema": "2"}, "schema is not a whole number"),
        ({"schema": 9}, "it has schema 9, and this program knows 5"),
        ({"schema": 5}, "it has no 'appliance'"),
        ({"schema": 2}, "it has no 'inputs'"),
        (told | {"images": [{}]}, "images[0] has no 'site'"),
        (told | {"images": {}}, "images is not a list"),
        ({"schema": 1, "images": [{}]}, "images[0] has no 'boot_check'"),
    ]
    for content, why in broken:
        file.write_text(json.dumps(content))
        with pytest.raises(ManifestError) as caught:
            manifest.load_manifest(file)
        remedy = "build the appliance again, or take another build (`phantom-image list`)"
        if "schema 9" in why:
            remedy = "read it with the phantom-image that wrote it, or a later one"
        assert str(caught.value) == (f"{file}: the manifest cannot be used: {why}\n  do: {remedy}")
    file.write_text('{"schema": 2, "appliance"')
    with pytest.raises(ManifestError, match="it holds no JSON"):
        manifest.load_manifest(file)
    workspace = Workspace(
        build=tmp_path, store=Store(tmp_path / "store"), progress=lambda _: NoProgress()
    )
    assert list(_builds(workspace)) == []
    assert capsys.readouterr().err == (
        f"left out: {file}: the manifest cannot be used: it holds no JSON\n"
    )


@pytest.mark.soak
def test_stages_of_the_last_build(tmp_path: Path) -> None:
    workspace = Workspace(build=tmp_path, store=Store(tmp_path), progress=lambda _: NoProgress())
    file = tmp_path / "web/stages.json"
    file.parent.mkdir()
    stage = {"key": KEY, "revision": 1, "fields": {"packages": [{"name": "a"}]}, "inputs": {}}
    file.write_text(json.dumps(records.seal({"stages": {"root": stage}})))
    assert run.read_stages(workspace, "web") == {"root": stage}

    def use() -> None:
        assert run.read_stages(workspace, "web") in ({}, {"root": stage})

    check(file, use, examples(60))


@pytest.mark.soak
def test_records_of_uploads(tmp_path: Path) -> None:
    digests = Digests(count_blocks(GIB))
    digests.note(7, b"\1" * 32)
    index = BlockIndex(
        snapshot_id="snap-1",
        region="r",
        parent_id=None,
        chain=0,
        volume_gib=1,
        content=DIGEST,
        encrypted=False,
        kms_key=None,
        digests=digests,
    )
    index.write(tmp_path / "blocks")
    assert BlockIndex.read(tmp_path / "blocks") is not None
    check(tmp_path / "blocks", lambda: BlockIndex.read(tmp_path / "blocks"), examples(60))
    journal = Journal(tmp_path / "journal", content=DIGEST, region="r", start={"VolumeSize": 1})
    journal.begin().note_snapshot("snap-1")
    journal.note_blocks([(7, b"\1" * 32)])
    journal.close()
    assert Journal.read(journal.file) is not None
    check(journal.file, lambda: Journal.read(journal.file), examples(60))


@pytest.mark.soak
def test_tokens(tmp_path: Path) -> None:
    token = KeptToken(tmp_path / "token")
    first = token.get({"a": 1})
    assert token.get({"a": 1}) == first

    def use() -> None:
        if not token.file.is_dir():
            told = token.get({"a": 1})
            assert token.get({"a": 1}) == told and 1 <= len(told) <= 64

    check(token.file, use, examples(60))


@pytest.mark.soak
def test_rehearsals(tmp_path: Path) -> None:
    rehearsals = Rehearsals(tmp_path)
    made = Rehearsal(name="n", content=DIGEST, publications=(HOME,), published=True)
    rehearsals.write(made)
    assert rehearsals.find("n") == made
    (file,) = tmp_path.glob("rehearsed/*.json")

    def use() -> None:
        assert all(len(found.publications) == 1 for found in rehearsals.list())
        rehearsals.find("n")

    check(file, use, examples(60))


@pytest.mark.soak
def test_what_is_kept_of_the_host(tmp_path: Path) -> None:
    file = tmp_path / "accelerator.json"
    accelerator._keep(file, "state", "kvm")
    assert accelerator._read_kept(file, "state") == "kvm"
    check(file, lambda: accelerator._read_kept(file, "state"), examples(40))


@pytest.mark.soak
def test_digests_of_base_images(tmp_path: Path) -> None:
    store, base = Store(tmp_path / "store"), tmp_path / "base.raw"
    base.write_bytes(b"base")
    digest = _find_file(base, store, keep=True).sha256
    (file,) = (store.folder / "digests").iterdir()

    def use() -> None:
        assert _find_file(base, store, keep=False).sha256 == digest

    check(file, use, examples(60))
    file.write_text("null")
    assert _find_file(base, store, keep=True).sha256 == digest
    assert json.loads(file.read_text())["sha256"] == digest


@pytest.mark.soak
def test_downloads_to_go_on_with(tmp_path: Path) -> None:
    part = tmp_path / "x.part"
    arrived = Arrived(part, "http://x")
    arrived.begin(Answer(status=200, headers={"etag": '"v"', "content-length": "9"}))
    record = tmp_path / "x.json"
    good = record.read_bytes()

    def use() -> None:
        part.write_bytes(b"half")
        again = Arrived(part, "http://x")
        assert again.size in (0, 4)
        assert (again.validator is None) <= (again.size == 0)

    check(record, use, examples(60))
    others: list[Callable[[], None]] = [part.mkdir, lambda: part.symlink_to(tmp_path / "else")]
    for replace in others:
        record.write_bytes(good)
        part.unlink(missing_ok=True)
        replace()
        assert Arrived(part, "http://x").size == 0


ROW = "INSERT INTO object VALUES (?, ?, ?, ?, ?, ?, ?)"


@pytest.mark.soak
def test_the_index_of_a_sandbox(tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.write_text("precious")
    site = tmp_path / "site"
    site.mkdir()
    index = open_index(site)
    with index:
        index.execute(ROW, ("key", "owner", "aa", 1, "md5", 1.0, 0))
        index.execute(ROW, ("far", "owner", "../../outside", 9, "md5", 1.0, 0))
        index.execute(ROW, ("odd", None, "bb", b"x", 1, "y", "z"))
    index.close()
    (site / "objects").mkdir()
    (site / "objects/aa").write_text("x")
    (site / "objects/folder").mkdir()
    (site / "objects/link").symlink_to(outside)
    objects = Objects(site)
    assert [stored.key for stored in objects.list("")] == ["key"]
    objects.close()
    assert [path.name for path in (site / "objects").iterdir()] == ["aa"]
    file = site / "index.sqlite"

    def use() -> None:
        read_index(site)
        opened = Objects(site)
        opened.list("")
        opened.put("new", "owner", opened.receive(), 1.0, 0)
        assert opened.get("new") is not None
        opened.close()

    check_index(file, use, examples(12))
    with contextlib.closing(sqlite3.connect(file)) as other:
        other.execute("DROP TABLE object")
        other.execute("CREATE TABLE object (name TEXT)")
    use()
    assert outside.read_text() == "precious"


def check_index(file: Path, use: Callable[[], None], count: int) -> None:
    good = file.read_bytes()
    cuts = [good[: len(good) * number // count] for number in range(count)]
    starts = range(0, len(good), max(1, len(good) // count))
    wrong = [good[:at] + os.urandom(64) + good[at + 64 :] for at in starts]
    for data in [*cuts, *wrong, b"null", b"SQLite format 3\0" + b"\xff" * 5000]:
        file.write_bytes(data)
        use()
    others: list[Callable[[], None]] = [file.mkdir, lambda: file.symlink_to("elsewhere")]
    for replace in others:
        file.unlink()
        replace()
        use()
