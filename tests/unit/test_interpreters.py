"""Scripts whose interpreter is not in the image are told of before it is built."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipeline.definitions.appliance import load_appliance
from pipeline.errors import DefinitionError
from pipeline.model import Appliance
from pipeline.sources.interpreters import check_interpreters

MINIMAL = {"bash", "dash", "perl-base", "mawk"}


def define(folder: Path, text: str, **scripts: str) -> Appliance:
    path = folder / "images/web/appliance.yaml"
    path.parent.mkdir(parents=True)
    path.write_text(f'name: web\nversion: "1.0"\nsummary: A web server\n{text}')
    for name, content in scripts.items():
        (path.parent / name).write_text(content)
    return load_appliance(path, folder / "images")


@pytest.mark.parametrize(
    ("line", "program", "package"),
    [
        ("#!/usr/bin/python3", "/usr/bin/python3", "python3-minimal"),
        ("#!/usr/bin/env python3", "/usr/bin/python3", "python3-minimal"),
        ("#! /usr/bin/env -S FOO=1 ruby -w", "/usr/bin/ruby", "ruby"),
        ("#!/usr/bin/python", "/usr/bin/python", "python-is-python3"),
        ("#!/bin/zsh -e", "/bin/zsh", "zsh"),
        ("#!/usr/bin/env node", "/usr/bin/node", "nodejs"),
    ],
)
@pytest.mark.parametrize("key", ["scripts", "check", "user_data"])
def test_an_interpreter_that_is_not_there(
    tmp_path: Path, line: str, program: str, package: str, key: str
) -> None:
    text, column = {
        "scripts": ("scripts: [a]\n", 11),
        "check": ("boot_check: {script: a}\n", 22),
        "user_data": ("phantom: {user_data: a}\n", 22),
    }[key]
    appliance = define(tmp_path, text, a=f"{line}\n")
    with pytest.raises(DefinitionError) as caught:
        check_interpreters(appliance, MINIMAL)
    assert str(caught.value) == (
        f"{tmp_path}/images/web/appliance.yaml:4:{column}: a begins with #! for {program}, "
        f"which is not in the image\n"
        f"  do: add {package} to `packages`, or write the script for /bin/sh"
    )
    check_interpreters(appliance, {*MINIMAL, package})


@pytest.mark.parametrize(
    "line",
    [
        "#!/bin/sh",
        "#!/bin/bash -eu",
        "#!/usr/bin/perl",
        "#!/usr/bin/env -i bash",
        "#!/opt/app/bin/python3",
        "#!/usr/bin/env /opt/python3",
        "#!/usr/bin/env",
        "#!/usr/bin/of-its-own",
        "#!/usr/bin/awk -f",
    ],
)
def test_an_interpreter_that_is_there_or_that_nobody_knows(tmp_path: Path, line: str) -> None:
    check_interpreters(define(tmp_path, "scripts: [a]\n", a=f"{line}\n"), MINIMAL)


def test_an_interpreter_that_files_or_earlier_scripts_bring(tmp_path: Path) -> None:
    check_interpreters(
        define(
            tmp_path / "1",
            "files: [{from: ruby, to: /usr/bin/ruby}]\nscripts: [a]\n",
            a="#!/usr/bin/ruby\n",
            ruby="#!/bin/sh\n",
        ),
        MINIMAL,
    )
    scripts = {"a": "#!/bin/sh\nln -s /opt/ruby /usr/bin/ruby\n", "b": "#!/usr/bin/env ruby\n"}
    check_interpreters(define(tmp_path / "2", "scripts: [a, b]\n", **scripts), MINIMAL)
    with pytest.raises(DefinitionError, match="b begins with"):
        scripts["a"] = "#!/bin/sh\n"
        check_interpreters(define(tmp_path / "3", "scripts: [a, b]\n", **scripts), MINIMAL)
