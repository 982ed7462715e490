"""A definition's secrets: what is said of them, how they are read, and the digests of stages."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable
from pathlib import Path

import pytest

from pipeline.definitions.appliance import load_appliance
from pipeline.errors import DefinitionError
from pipeline.model import Appliance
from pipeline.sources.build_secrets import Secret, describe_secrets, read_secrets
from pipeline.stages.base import to_json
from pipeline.store import Store

HEAD = 'name: {name}\nversion: "1"\nsummary: s\n'
VALUE = "correct horse battery"
Define = Callable[..., Appliance]


@pytest.fixture
def define(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Define:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TOKEN", VALUE)

    def make(text: str, name: str = "web") -> Appliance:
        folder = tmp_path / "images" / name
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "appliance.yaml").write_text(HEAD.format(name=name) + text)
        return load_appliance(name, Path("images"))

    return make


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "store")


def read(appliance: Appliance, store: Store) -> dict[str, Secret]:
    return {secret.name: secret for secret in read_secrets(appliance, store, keep=True)}


def test_a_secret_of_a_variable_and_one_of_a_file(
    define: Define, store: Store, tmp_path: Path
) -> None:
    (tmp_path / "key").write_bytes(b"\x00\xff binary \n")
    found = read(
        define(f"build_secrets: [{{name: a, env: TOKEN}}, {{name: b, file: {tmp_path}/key}}]\n"),
        store,
    )
    assert {name: secret.value for name, secret in found.items()} == {
        "a": VALUE.encode(),
        "b": b"\x00\xff binary \n",
    }
    assert describe_secrets(list(found.values())) == {"build_secrets": ["a", "b"]}
    assert describe_secrets([]) == {}


def test_a_key_has_a_digest_that_tells_nothing(define: Define, tmp_path: Path) -> None:
    web = define("build_secrets: [{name: a, env: TOKEN}, {name: b, env: TOKEN}]\n")
    one, again, other = (
        read(web, Store(tmp_path / name)) for name in ("store", "store", "another store")
    )
    assert one["a"].digest == again["a"].digest != other["a"].digest
    assert one["a"].digest != one["b"].digest
    assert to_json(one["a"]) == {"name": "a", "digest": one["a"].digest}
    assert VALUE not in repr(one["a"])
    os.environ["TOKEN"] = VALUE + "!"
    assert read(web, Store(tmp_path / "store"))["a"].digest != one["a"].digest


def test_the_stores_key_is_for_its_user_alone(define: Define, store: Store, tmp_path: Path) -> None:
    web = define("build_secrets: [{name: a, env: TOKEN}]\n")
    (first,) = read_secrets(web, store, keep=False)
    assert not store.folder.exists()
    before = read(web, store)["a"].digest
    (key,) = (store.folder / "keys").iterdir()
    assert stat.S_IMODE(key.stat().st_mode) == 0o600
    # One that others could read, or have put there, tells them what it should not.
    key.chmod(0o640)
    after = read(web, store)["a"].digest
    assert len({first.digest, before, after}) == 3
    assert stat.S_IMODE(key.stat().st_mode) == 0o600
    planted = tmp_path / "planted"
    planted.write_bytes(bytes(32))
    planted.chmod(0o600)
    key.unlink()
    key.symlink_to(planted)
    read(web, store)
    assert not key.is_symlink() and planted.read_bytes() == bytes(32)


def test_the_child_says_where_a_secret_is(define: Define) -> None:
    define("build_secrets: [{name: a, env: A}, {name: b, env: B}]\n", "parent")
    child = define("extends: parent\nbuild_secrets: [{name: a, file: /etc/a}]\n")
    assert [(each.name, each.variable, each.file) for each in child.build_secrets] == [
        ("b", "B", None),
        ("a", None, Path("/etc/a")),
    ]


UNREADY = [
    (
        "env: NOT_SET",
        None,
        "images/web/appliance.yaml:4:36: the secret 'token' is missing: the environment variable "
        "NOT_SET is not set\n  do: set NOT_SET, or take the secret out",
    ),
    (
        "env: TOKEN",
        "",
        "images/web/appliance.yaml:4:36: the secret 'token' is missing: the environment variable "
        "TOKEN is not set\n  do: set TOKEN, or take the secret out",
    ),
    (
        "env: TOKEN",
        " 1234567\n",
        "images/web/appliance.yaml:4:36: the secret 'token' is too short: TOKEN holds fewer than 8 "
        "bytes, which would be found in any image\n  do: take a longer one",
    ),
    (
        "file: FOLDER/none",
        None,
        "images/web/appliance.yaml:4:37: the secret 'token' is missing: FOLDER/none cannot be "
        "read: No such file or directory\n"
        "  do: put the secret there, readable by you alone, or take it out",
    ),
    (
        "file: FOLDER",
        None,
        "images/web/appliance.yaml:4:37: the secret 'token' is missing: FOLDER is no file\n"
        "  do: put the secret there, readable by you alone, or take it out",
    ),
    (
        "file: FOLDER/large",
        None,
        "images/web/appliance.yaml:4:37: the secret 'token' is too long: FOLDER/large holds more "
        "than 65,536 bytes\n  do: take a shorter one",
    ),
]


@pytest.mark.parametrize(("said", "value", "message"), UNREADY)
def test_a_secret_that_cannot_be_used(
    said: str,
    value: str | None,
    message: str,
    define: Define,
    store: Store,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    (tmp_path / "large").write_text(VALUE * 5000)
    if value is not None:
        monkeypatch.setenv("TOKEN", value)
    said = said.replace("FOLDER", str(tmp_path))
    web = define(f"build_secrets: [{{name: token, {said}}}]\n")
    with pytest.raises(DefinitionError) as caught:
        read(web, store)
    assert str(caught.value) == message.replace("FOLDER", str(tmp_path))
    assert not store.folder.exists()


def test_mistakes_in_a_definition(define: Define, tmp_path: Path) -> None:
    beside = tmp_path / "images/web/token"
    with pytest.raises(DefinitionError) as caught:
        define(
            "build_secrets:\n  - {name: a/b, env: TOKEN}\n  - {name: a, env: 1X}\n"
            "  - {name: a, env: A, file: /etc/a}\n  - {name: c}\n  - {env: D}\n"
            f"  - {{name: e, file: token}}\n  - {{name: f, file: {beside}}}\n  - g\n"
            "  - {name: h, value: x}\n"
        )
    at = "images/web/appliance.yaml"
    assert caught.value.detail is not None
    assert caught.value.detail.splitlines() == [
        f"{at}:5:12: 'build_secrets[0].name' must be letters, digits, '.', '_' and '-', beginning "
        "with a letter or digit, not 'a/b'",
        f"{at}:6:20: 'build_secrets[1].env' must be the name of an environment variable, not '1X'",
        f"{at}:7:5: 'build_secrets[2]': 'env' and 'file': give one of them",
        f"{at}:7:12: 'build_secrets[2].name': entry 2 has the same name, 'a'",
        f"{at}:8:5: 'build_secrets[3]': 'env' or 'file' is missing",
        f"{at}:9:5: 'name' is missing in 'build_secrets[4]'",
        f"{at}:10:21: 'build_secrets[5].file': must be an absolute path: a secret does not belong "
        "beside the definition",
        f"{at}:11:21: 'build_secrets[6].file': {str(beside)!r} lies among the definitions, where "
        "no secret belongs; move it",
        f"{at}:12:5: 'build_secrets[7]' must be a mapping, not a string",
        f"{at}:13:5: 'build_secrets[8]': 'env' or 'file' is missing",
        f"{at}:13:15: unknown key 'value' in 'build_secrets[8]'; known here: name, env, file",
    ]
