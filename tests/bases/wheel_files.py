"""Wheels and source distributions of a few lines, for an index in a folder."""

from __future__ import annotations

import hashlib
import io
import tarfile
import zipfile
from pathlib import Path

_EARLY = (2020, 1, 1, 0, 0, 0)


def make_wheel(
    folder: Path,
    name: str,
    version: str = "1.0",
    *,
    tag: str = "py3-none-any",
    needs: str = "",
    python: str = "",
    text: str = "",
) -> str:
    """Writes a wheel of one module, which is also a command. Returns its SHA-256."""
    module = name.replace("-", "_")
    info = f"{module}-{version}.dist-info"
    requires = f"Requires-Dist: {needs}\n" if needs else ""
    requires += f"Requires-Python: {python}\n" if python else ""
    files = {
        f"{module}/__init__.py": f'VERSION = "{version}"\n{text}\n\ndef main():\n'
        f'    print("{name}", VERSION, sorted({{"a", "b", "c"}}))\n',
        f"{module}/other.py": "NAMES = frozenset({'x', 'y', 'z', 'w'})\n",
        f"{module}/broken.py": "this is no Python\n",
        f"{info}/METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n{requires}",
        f"{info}/WHEEL": f"Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: {tag}\n",
        f"{info}/entry_points.txt": f"[console_scripts]\n{name} = {module}:main\n",
    }
    files[f"{info}/RECORD"] = "".join(f"{file},,\n" for file in (*files, f"{info}/RECORD"))
    file = folder / f"{module}-{version}-{tag}.whl"
    with zipfile.ZipFile(file, "w") as archive:
        for path, content in files.items():
            archive.writestr(zipfile.ZipInfo(path, _EARLY), content)
    return _sha256(file)


def make_source(folder: Path, name: str, version: str = "1.0") -> str:
    """Writes a source distribution that must never be built. Returns its SHA-256."""
    file = folder / f"{name}-{version}.tar.gz"
    script = b"raise SystemExit('a source distribution was built')\n"
    with tarfile.open(file, "w:gz") as archive:
        member = tarfile.TarInfo(f"{name}-{version}/setup.py")
        member.size = len(script)
        archive.addfile(member, io.BytesIO(script))
    return _sha256(file)


def _sha256(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()
