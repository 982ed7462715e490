"""Puts what lies beside `pipeline/` into wheels; everything else is in pyproject.toml."""

from __future__ import annotations

import shutil
import subprocess  # noqa: TID251 (no module of ours is there yet)
from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py

# build/ is the folder of builds, and no appliance should meet setuptools's files there.
BUILD_BASE = ".wheel_cache"
DATA = ("elements", "images", "docs", "ARCHITECTURE.md", "sites.example.yaml")


class BuildWithData(build_py):
    """Copies elements, examples and pages to where `pipeline/resources.py` looks for them."""

    def run(self) -> None:
        super().run()
        if self.editable_mode:
            return
        target = Path(self.build_lib, "pipeline/data")
        shutil.rmtree(target, ignore_errors=True)
        target.mkdir(parents=True)
        for name in DATA:
            if Path(name).is_dir():
                ignored = shutil.ignore_patterns("__pycache__")
                shutil.copytree(name, target / name, ignore=ignored)
            else:
                shutil.copy2(name, target / name)
        if commit := _find_commit():
            (target / "commit").write_text(f"{commit}\n")


def _find_commit() -> str | None:
    """What `phantom-image --version` says of the commit; None without git or a work tree."""
    git = ("git", "--no-optional-locks")
    try:
        told = [
            subprocess.run([*git, *words], capture_output=True, text=True, check=True).stdout
            for words in (("rev-parse", "HEAD"), ("status", "--porcelain", "-uno"))
        ]
    except (OSError, subprocess.CalledProcessError):
        return None
    return f"commit {told[0][:12]}{', dirty' if told[1] else ''}"


setup(cmdclass={"build_py": BuildWithData}, options={"build": {"build_base": BUILD_BASE}})
