"""How two files differ, in lines."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipeline.tools import diffoscope


def test_without_diffoscope(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    old, new = tmp_path / "old", tmp_path / "new"
    old.write_text("one\ntwo\nthree\n")
    new.write_text("one\n2\nthree\n")
    told = diffoscope.compare(old, new, tmp_path)
    assert told == ["--- before", "+++ now", "@@ -1,3 +1,3 @@", " one", "-two", "+2", " three"]
    old.write_bytes(b"\xff\x00")
    assert diffoscope.compare(old, new, tmp_path) == []
