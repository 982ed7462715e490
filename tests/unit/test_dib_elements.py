"""diskimage-builder's own elements: what it sets for them, and what they ask for."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

from pipeline.errors import UnknownElementError
from pipeline.tools import dib, dib_environment

HOME = dib._home()
OURS = ("phantom-debian", "phantom-ssh", "phantom-appliance")
SETTINGS = {"ARCH": "amd64", "DIB_RELEASE": "bookworm", "PHANTOM_KERNEL": "generic"}
EXPORT = r"^[^#\n]*\bexport\s+(?:-f\s+)?(\w+)"
_SHELL = ("disk-image-create", "img-defaults", "img-functions", "common-defaults")


def exported() -> set[str]:
    """All that diskimage-builder's own code exports to hooks."""
    names = {"DIB_DEFAULT_INSTALLTYPE"}  # by a file that it writes into environment.d
    for file in (*_SHELL, "common-functions"):
        text = (HOME / "lib" / file).read_text()
        names |= {*re.findall(EXPORT, text, re.MULTILINE)}
    for node in ast.walk(ast.parse((HOME / "disk_image_create.py").read_text())):
        if isinstance(node, ast.Subscript) and isinstance(node.ctx, ast.Store):
            assert isinstance(node.slice, ast.Constant)
            names.add(str(node.slice.value))
    info = (HOME / "element_dependencies.py").read_text()
    return names | {*re.findall(EXPORT, info, re.MULTILINE)}


def test_the_table_has_what_diskimage_builder_sets() -> None:
    """After an update of diskimage-builder, this says which variables are new or gone."""
    set_by_us = {*dib_environment.variables({}, lib=HOME, architecture="amd64", release="bookworm")}
    of_systems = {"DIB_PYTHON_VERSION", "DIB_RELEASE"}  # what its operating-system elements set
    assert of_systems <= set_by_us
    assert set_by_us.isdisjoint(dib_environment.NOT_SET)
    known = (set_by_us - of_systems) | {*dib_environment.NOT_SET, "get_image_element_array"}
    assert exported() == known


def packages(*elements: str, **more: str) -> dict[str, str]:
    return dib.packages(dib.expand([*OURS, *elements]), {**SETTINGS, **more})


TWELVE = {
    "cloud-init": {"cloud-init", "python3", "sudo"},
    "devuser": {"sudo", "python3"},
    "dib-python": {"python3"},
    "dkms": {"dkms", "python3"},
    "dynamic-login": {"openssh-server", "openssh-client", "rsync", "python3"},
    "enable-serial-console": set[str](),
    "fail2ban": {"fail2ban", "python3"},
    "growroot": {"cloud-utils", "e2fsprogs", "rsync", "python3"},
    "modprobe": set[str](),
    "pip-and-virtualenv": {"curl", "git", "python3", "python3-dev", "python3-venv"},
    "simple-init": {"git", "ifupdown", "isc-dhcp-client", "net-tools", "python3-venv", "python3"},
    "source-repositories": {"curl", "git", "python3"},
}


@pytest.mark.parametrize("element", TWELVE)
def test_an_element_of_diskimage_builder_can_be_planned(element: str) -> None:
    asked = packages(element)
    assert TWELVE[element] <= {*asked}
    if not TWELVE[element]:
        assert {*asked.values()} <= {*OURS}


def test_elements_without_python_bring_none() -> None:
    assert {"python3", "sudo"}.isdisjoint(packages("phantom-user-data", "phantom-grow-root"))


def test_variables_of_elements_come_from_the_definition(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    element = tmp_path / "elements/own"
    (element / "environment.d").mkdir(parents=True)
    (element / "element-deps").write_text("package-installs\n")
    (element / "environment.d/9-first").write_text("export OWN_FIRST=$OWN_GIVEN\n")
    (element / "environment.d/10-then").write_text(
        '[ "$OWN_FIRST" = yes ]\n'
        "for name in IMAGE_NAME IMAGE_ELEMENT TMP_HOOKS_PATH _LIB DIB_INIT_SYSTEM; do\n"
        '    [ -n "${!name}" ]\n'
        "done\n"
        "eval declare -A all=($(get_image_element_array))\n"
        '[ -d "${all[own]}" ]\n'
    )
    (element / "package-installs.yaml").write_text("own-package:\n  when: OWN_GIVEN = yes\n")
    monkeypatch.setenv("ELEMENTS_PATH", str(element.parent))
    assert packages("own", OWN_GIVEN="yes")["own-package"] == "own"
    with pytest.raises(UnknownElementError) as caught:
        packages("own")
    assert caught.value.what.startswith("the elements' settings cannot be read: ")
    assert caught.value.what.endswith("OWN_GIVEN: unbound variable")
    assert caught.value.todo == "set what they ask for below `environment:` (docs/elements.md)"


@pytest.mark.parametrize(
    ("element", "other", "reason"),
    [
        ("debian-minimal", "debian-minimal", "each is the operating-system"),
        ("ubuntu", "ubuntu", "each is the operating-system"),
        ("dpkg", "dpkg", "each has bin/install-packages"),
        ("yum-minimal", "yum", "each has bin/install-packages"),
    ],
)
def test_elements_that_exclude_each_other(element: str, other: str, reason: str) -> None:
    with pytest.raises(UnknownElementError) as caught:
        dib.expand([*OURS, element])
    assert str(caught.value) == (
        f"the elements {other} and phantom-debian cannot be in one image: {reason}\n"
        f"  do: take out {other}, or what depends on it (docs/elements.md)"
    )
