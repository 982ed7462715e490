"""Secrets are found wherever they were left, also in the forms that programs give them."""

from __future__ import annotations

import base64
import os
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from soak import examples

from pipeline.disk.secret_search import find_secrets
from pipeline.model import MIB
from pipeline.secret_forms import forms, hiding
from pipeline.sparse import CHUNK
from pipeline.tools import run

SECRET = b"correct horse battery"
LONG = bytes(range(33, 127)) * 3


def sparse_file(path: Path, size: int, *pieces: tuple[int, bytes]) -> Path:
    with path.open("wb") as file:
        file.truncate(size)
        for at, piece in pieces:
            os.pwrite(file.fileno(), piece, at)
    return path


def offsets(file: Path, secret: bytes = SECRET) -> list[int]:
    return [each.offset for each in find_secrets(file, {"token": secret}).get("token", [])]


@pytest.mark.parametrize(
    "at",
    [
        0,
        1,
        CHUNK - len(SECRET),
        CHUNK - len(SECRET) + 1,
        CHUNK - 1,
        CHUNK,
        3 * CHUNK - 5,
        5 * CHUNK + 100 - len(SECRET),
    ],
)
def test_a_secret_is_found_once_wherever_it_lies(at: int, tmp_path: Path) -> None:
    """Also across the chunks that the file is read in, beside holes, and at its very end."""
    file = sparse_file(tmp_path / "file", 5 * CHUNK + 100, (at, SECRET))
    assert offsets(file) == [at]


def test_a_secret_across_two_chunks_of_data(tmp_path: Path) -> None:
    text = b"x" * (2 * CHUNK)
    at = CHUNK - 4
    file = sparse_file(
        tmp_path / "file", 2 * CHUNK, (0, text[:at] + SECRET + text[at + len(SECRET) :])
    )
    assert offsets(file) == [at]


def test_a_secret_that_holds_zeros_beside_a_hole(tmp_path: Path) -> None:
    secret = b"before" + bytes(20) + b"behind"
    file = sparse_file(
        tmp_path / "file", 4 * CHUNK, (2 * CHUNK - 16, secret[:6]), (2 * CHUNK + 10, secret[26:])
    )
    assert offsets(file, secret) == [2 * CHUNK - 16]
    ends_in_zeros = b"before" + bytes(20)
    assert offsets(file, ends_in_zeros) == [2 * CHUNK - 16]
    begins_with_zeros = bytes(20) + b"behind"
    assert offsets(file, begins_with_zeros) == [2 * CHUNK - 10]


def test_what_is_not_there_is_not_found(tmp_path: Path) -> None:
    file = sparse_file(tmp_path / "file", 3 * CHUNK, (CHUNK, b"correct horse"), (CHUNK * 2, b"ba"))
    assert find_secrets(file, {"token": SECRET, "other": LONG}) == {}
    assert find_secrets(sparse_file(tmp_path / "empty", 0), {"token": SECRET}) == {}


@pytest.mark.parametrize("before", [b"", b"a", b"me:", b"user:"])
@pytest.mark.parametrize("behind", [b"", b"\n", b":b", b"ccc"])
def test_base64_is_found_whatever_else_was_encoded(
    before: bytes, behind: bytes, tmp_path: Path
) -> None:
    text = b"auth: " + base64.b64encode(before + SECRET + behind)
    file = sparse_file(tmp_path / "file", MIB, (1000, text))
    (found,) = find_secrets(file, {"token": SECRET})["token"]
    assert found.encoded and "(in base64)" in str(found)


@settings(max_examples=examples(40), deadline=None)
@given(
    secret=st.binary(min_size=8, max_size=300).filter(lambda text: len(text.strip()) >= 8),
    before=st.binary(max_size=5),
    behind=st.binary(max_size=5),
)
def test_every_secret_is_found_in_base64(secret: bytes, before: bytes, behind: bytes) -> None:
    for encode in (base64.standard_b64encode, base64.urlsafe_b64encode):
        text = encode(before + secret + behind)
        assert any(form in text for form in forms(secret))


@pytest.mark.parametrize("command", [["base64"], ["openssl", "base64"]])
def test_base64_of_programs_that_break_lines(command: list[str]) -> None:
    text = run.capture(command, input=LONG.decode()).encode()
    assert any(form in text for form in forms(LONG))


def test_white_space_around_a_secret_does_not_hide_it(tmp_path: Path) -> None:
    file = sparse_file(tmp_path / "file", MIB, (9, SECRET))
    assert offsets(file, SECRET + b"\r\n") == offsets(file, b" " + SECRET + b"\n") == [9]


def test_the_file_in_a_file_system_is_named(tmp_path: Path) -> None:
    tree = tmp_path / "tree"
    (tree / "opt/app").mkdir(parents=True)
    (tree / "opt/app/conf").write_bytes(b"x" * 5000 + SECRET)
    (tree / "opt/login").write_bytes(base64.b64encode(b"me:" + SECRET))
    (tree / "srv").mkdir()
    (tree / "srv" / SECRET.decode()).touch()
    image = tmp_path / "root.ext4"
    run.capture(["mke2fs", "-q", "-t", "ext4", "-d", str(tree), str(image), "40M"])
    last = 40 * MIB - 100
    with image.open("r+b") as file:
        os.pwrite(file.fileno(), SECRET, last)
    found = find_secrets(image, {"token": SECRET, "none": LONG})
    assert set(found) == {"token"}
    assert {str(each) for each in found["token"]} == {
        "/opt/app/conf",
        "/opt/login (in base64)",
        "/srv",
        f"byte {last:,} of root.ext4, in no file of the image",
    }


def test_a_damaged_file_system_is_searched_as_well(tmp_path: Path) -> None:
    image = tmp_path / "root.ext4"
    run.capture(["mke2fs", "-q", "-t", "ext4", str(image), "10M"])
    with image.open("r+b") as file:
        os.pwrite(file.fileno(), b"\xff" * 60_000, 2048)
        os.pwrite(file.fileno(), SECRET, 5 * MIB)
    assert offsets(image) == [5 * MIB]


def test_what_programs_print_of_secrets_is_hidden() -> None:
    hidden = hiding([SECRET + b"\n", b"-----BEGIN KEY-----\nMIIBVgIBADAN\nBg==\n"], ["pw"])
    for text, shown in (
        (f"token={SECRET.decode()};", "token=***;"),
        ("MIIBVgIBADAN", "***"),
        ("Bg==", "Bg=="),  # a short line would hide half the log
        (base64.b64encode(SECRET).decode(), "***"),
        ("the pw is", "the *** is"),
        ("correct horse", "correct horse"),
    ):
        assert hidden.sub("***", text).rstrip("=") == shown.rstrip("="), text
    assert hiding([]).sub("***", "nothing") == "nothing"
