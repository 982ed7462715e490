"""Every file that commands keep, damaged: each command treats it as absent, or says what is wrong
with it."""

from __future__ import annotations

import json
import os
import random
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from cli_runs import Project
from soak import examples
from test_cli_escapes import make_manifest

from pipeline import records
from pipeline.clouds.ec2.journal import Journal
from pipeline.clouds.ec2.sandbox import Rehearsal, Rehearsals
from pipeline.clouds.ec2.tokens import KeptToken
from pipeline.clouds.nimbus.cumulus_index import open_index
from pipeline.machine import accelerator
from pipeline.model import ContentKey, Sha256
from pipeline.records import to_publication
from pipeline.sources.base_file import _find_file
from pipeline.store import Store
from pipeline.tools.apt import Archive, find_mirrors

KEY = ContentKey("a" * 64)
BUILD = "0123456789ab"
# One process runs all commands, since starting takes most of their time.
COMMANDS = """
import contextlib, io, json, sys, traceback
from pipeline.cli import main
ended = []
for words in json.load(sys.stdin):
    told = io.StringIO()
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(told):
        try:
            status = main(words)
        except BaseException:
            status = traceback.format_exc()
    ended.append([words, status, told.getvalue()])
print(json.dumps(ended))
"""
WORDS = [
    ["list"],
    ["list", "--json"],
    ["show", "planted"],
    ["show", "planted", "--of", BUILD, "--json"],
    ["manifest", "validate", f"build/planted/{BUILD}/manifest.json"],
    ["manifest", "diff", f"build/planted/{BUILD}", f"build/hello-phantom/{BUILD}/manifest.json"],
    ["retire", "hello-phantom", "--cloud", "nimbus", "--yes"],
    ["list", "--site", "nimbus-sandbox"],
    ["clean", "--site", "nimbus-sandbox", "--remove"],
    ["plan", "based", "--cloud", "nimbus"],
    ["gc", "--size", "100GiB"],
    ["gc", "--size", "0B"],
]


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a file of each kind that commands keep, sound."""
    folder = tmp_path_factory.mktemp("kept")
    build, store = folder / "build", Store(folder / "store")
    for name in ("planted", "hello-phantom"):
        told = make_manifest()
        told["appliance"]["name"] = name
        told["publications"][0]["site"] = "nimbus-sandbox"
        (build / name / BUILD).mkdir(parents=True)
        (build / name / BUILD / "manifest.json").write_text(json.dumps(told))
        (build / name / "latest").symlink_to(BUILD)
        stage = {"key": KEY, "revision": 1, "fields": {}, "inputs": {}}
        (build / name / "stages.json").write_text(
            json.dumps(records.seal({"stages": {"x": stage}}))
        )
    records_of_upload = build / "planted" / BUILD / "planted"
    journal = Journal(
        records_of_upload.with_suffix(".journal"),
        content=Sha256("0" * 64),
        region="r",
        start={"VolumeSize": 1},
    )
    journal.begin().close()
    KeptToken(records_of_upload.with_suffix(".token")).get({"a": 1})
    (publication,) = map(to_publication, make_manifest()["publications"])
    rehearsal = Rehearsal(name="n", content="0" * 64, publications=(publication,), published=True)
    Rehearsals(build / "sites/ec2-sandbox").write(rehearsal)
    (build / "sites/nimbus-sandbox").mkdir(parents=True)
    open_index(build / "sites/nimbus-sandbox").close()
    with store.making("root", KEY) as made:
        (made / "out").mkdir()
        (made / "out/file").write_text("content")
        store.add("root", KEY, made / "out", {"bytes": 1})
    base = folder / "base.raw"
    base.write_bytes(bytes(1 << 20))
    _find_file(base, store, keep=True)
    accelerator._keep(store.folder / "accelerator.json", "state", "tcg")
    Archive(find_mirrors("bookworm"), "amd64", store).resolve(["cron"])
    for kind in ("packages", "downloads", "logs"):
        (store.path(kind) / "a.json").write_text("{}")
    return folder


def damage(file: Path, chance: random.Random) -> None:
    """Damages a file in one of the ways in which disks, programs and people do."""
    data = file.read_bytes()
    file.chmod(0o644)
    kind = chance.choice(["cut", "empty", "null", "list", "flip", "keys", "other", "deep", "gone"])
    if kind == "keys" and data.startswith(b"{"):
        told = json.loads(data.partition(b"\n")[0] if file.suffix == ".journal" else data)
        told.pop(chance.choice([*told, "none"]), None)
        file.write_text(json.dumps(told))
    elif kind == "flip" and data:
        at = chance.randrange(len(data))
        file.write_bytes(data[:at] + bytes([data[at] ^ 1 << chance.randrange(8)]) + data[at + 1 :])
    elif kind == "other":
        file.unlink()
        others: list[Callable[[], None]] = [
            file.mkdir,
            lambda: os.mkfifo(file),
            lambda: file.symlink_to("nowhere"),
        ]
        chance.choice(others)()
    elif kind == "gone":
        file.unlink()
    else:
        texts = {
            "null": b"null",
            "list": b"[1]",
            "deep": b"[" * 100_000,
            "cut": data[: len(data) // 2],
        }
        file.write_bytes(texts.get(kind, b""))


@pytest.mark.soak
def test_commands_on_damaged_files(kept: Path, project: Project) -> None:
    base = kept / "base.raw"
    source = f"source: {{base_image: {{location: {base}}}}}\ndisk_size: 1GiB\n"
    project.define("based", source, extends=None)
    for number in range(examples(2)):
        chance = random.Random(number)
        for folder in (project.build, project.store):
            shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(kept / "build", project.build, symlinks=True)
        shutil.copytree(kept / "store", project.store, symlinks=True)
        places = [*project.build.rglob("*"), *project.store.rglob("*")]
        files = [path for path in places if path.is_file() and not path.is_symlink()]
        assert len(files) >= 15
        for file in files:
            if "archives" not in file.parts or chance.random() < 0.3:
                damage(file, chance)
        ended = subprocess.run(
            [sys.executable, "-c", COMMANDS],
            input=json.dumps(WORDS),
            cwd=project.folder,
            env=project.env(),
            capture_output=True,
            text=True,
            check=True,
            timeout=120,
        ).stdout
        for words, status, told in json.loads(ended):
            assert isinstance(status, int), (number, words, status)
            reading = words[0] in ("show", "manifest", "retire")
            allowed = (0, 24, 70) if reading else (0,)
            assert status in allowed, (number, words, status, told)
