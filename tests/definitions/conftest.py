"""Each test writes its definitions into a folder of its own, which is the current directory."""

from __future__ import annotations

from pathlib import Path

import pytest
from definition_texts import Load, Write

from pipeline.definitions.appliance import load_appliance
from pipeline.model import Appliance


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current directory, so that messages name `images/web/appliance.yaml`."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "images" / "web").mkdir(parents=True)
    return tmp_path


@pytest.fixture
def write(root: Path) -> Write:
    def write(name: str, content: str | bytes) -> Path:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return path

    return write


@pytest.fixture
def load(write: Write) -> Load:
    """Loads the appliance `web` from a definition's text."""

    def load(text: str) -> Appliance:
        write("images/web/appliance.yaml", text)
        return load_appliance("web", Path("images"), clouds=("ec2", "nimbus"))

    return load
