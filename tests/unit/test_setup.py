"""setup.sh, as far as it installs nothing."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize("name", ["my checkout", "tab\tin it", "line\nfeed"])
def test_a_folder_with_a_blank_in_its_name_is_told_first(tmp_path: Path, name: str) -> None:
    folder = tmp_path / name
    folder.mkdir()
    for file in ("setup.sh", "debian-packages.txt", "requirements.txt"):
        shutil.copy(REPOSITORY / file, folder)
    before = sorted(folder.iterdir())
    done = subprocess.run(
        [folder / "setup.sh"], capture_output=True, text=True, check=False, timeout=60
    )
    assert done.returncode == 1
    assert done.stderr == (
        f"setup: the folder of this checkout has a blank in its name: {folder}\n"
        "setup: do: move it to a folder without blanks, then run the same command again\n"
    )
    assert sorted(folder.iterdir()) == before


def test_packages_for_tests_come_last() -> None:
    """setup.sh takes what follows this line only with --dev."""
    _, line, tests = (REPOSITORY / "debian-packages.txt").read_text().partition("\n# Tests\n")
    assert line and "\n# " not in tests
    assert "/^# Tests$/,$d" in (REPOSITORY / "setup.sh").read_text()
