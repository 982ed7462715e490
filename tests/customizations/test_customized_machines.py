"""Every key that customizes the image, in booted machines: one from scratch, and one whose base
image is the first one's build. Their boot checks look for each key's effect."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from cli_runs import Hello, Project, make_project, remove_tree
from customization_cases import CASES
from debian_packages import make_package, serving_at, sign
from wheel_files import make_wheel

from pipeline.customizations import CUSTOMIZATIONS

pytestmark = [pytest.mark.boot, pytest.mark.slow]

HASH = "$y$j9T$F5Jx5fExrKuPp53xLKQ..1$X3DX6M94c7o.9agCG9G317fhZg9SqC.5i5rd.RhAtQ7"
CHECK = """\
#!/bin/sh
failed=
try() {
    if ! (eval "$2"); then
        echo "$1 is not as the definition says" >&2
        failed=yes
    fi
}
"""
KEPT = (
    "grep -qx said /usr/share/greeting && "
    "grep -q '^Suites: ./$' /etc/apt/sources.list.d/own.sources "
    "&& grep -q BEGIN /etc/apt/keyrings/own.asc"
)
NOT_KEPT = "grep -qx said /usr/share/farewell && [ ! -e /etc/apt/sources.list.d/own.sources ]"
FILE = "grep -qx said /usr/share/mytool"
FILE_AGAIN = "grep -qx said-again /usr/share/mytool"
OF_PYTHON = (
    "/opt/app/bin/foo | grep -q '^foo 1.0 ' && /opt/app/bin/python3 -m pip check && "
    "ls /opt/app/lib/python3.*/site-packages/foo/__pycache__/other.*.pyc"
)
OF_PYTHON_LATER = "/opt/app/bin/foo | grep -q '^foo 2.0 '"
FORGET = """\
#!/bin/sh
# Of the image that this one starts from.
rm /etc/apt/sources.list.d/own.sources
"""


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory, hello: Hello) -> Iterator[Project]:
    """A project that has built the image from scratch."""
    folder = tmp_path_factory.mktemp("customized")
    store = hello.copy_store(folder / "store", "packages")
    index = folder / "index"
    index.mkdir()
    pins = {version: make_wheel(index, "foo", version) for version in ("1.0", "2.0")}
    links = {"PIP_CONFIG_FILE": "/dev/null", "PIP_NO_INDEX": "1", "PIP_FIND_LINKS": str(index)}
    made = make_project(folder / "project", store, OPS_HASH=HASH, **links)
    for version, digest in pins.items():
        made.write(f"images/pins-{version}.txt", f"foo=={version} --hash=sha256:{digest}\n")
    archive = folder / "archive"
    archive.mkdir()
    for name in ("greeting", "farewell"):
        make_package(archive, name, files={f"/usr/share/{name}": "said\n"})
    made.write("images/own.asc", sign(archive, folder / "key"))
    with serving_at(archive) as url:
        entry = f"name: own, url: {url!r}, suite: ./, key: ../own.asc"
        cases = {key: (case.value, case.check) for key, case in CASES.items()}
        cases["repositories"] = f"[{{{entry}}}]", KEPT
        cases["packages"] = "[./mytool.deb]", FILE  # its repository has what it depends on
        environment = "{path: /opt/app, requirements: ../pins-"
        cases["python"] = f"{environment}1.0.txt}}", OF_PYTHON
        define(made, "everything", cases)
        put_tool(folder / "first", made.folder / "images/everything", "said\n")
        others = {key: (case.other, case.other_check) for key, case in CASES.items()}
        others["repositories"] = f"[{{{entry}, keep: false}}]", NOT_KEPT
        others["python"] = f"{environment}2.0.txt, version: '3.11'}}", OF_PYTHON_LATER
        source = "source: {base_image: {location: {appliance: everything}, network: true}}\n"
        others["packages"] = "[farewell, ./mytool.deb]", FILE_AGAIN
        put_tool(folder / "second", made.folder / "images/everything-else", "said-again\n")
        extra = f"{source}disk_size: 2GiB\nscripts: [forget.sh]\n"
        made.write("images/everything-else/forget.sh", FORGET, 0o755)
        define(made, "everything-else", others, extra)
        yield made
    remove_tree(folder)


def put_tool(work: Path, folder: Path, text: str) -> None:
    """Puts a package that depends on another archive's beside a definition."""
    work.mkdir()
    fields = ["Depends: greeting"]
    file = make_package(work, "mytool", files={"/usr/share/mytool": text}, fields=fields)
    folder.mkdir(parents=True, exist_ok=True)
    file.rename(folder / "mytool.deb")


def define(
    project: Project, name: str, values: dict[str, tuple[str, str]], source: str = ""
) -> None:
    """Writes a definition with these values, and the check of their effects."""
    keys = "".join(f"{key}: {value}\n" for key, (value, _) in values.items())
    elements = "elements: [phantom-user-data, phantom-grow-root]\n"
    text = f"{elements}{source}{keys}boot_check: {{script: check.sh}}\n"
    project.define(name, text, extends=None)
    tries = "".join(f"try {key} '{_quote(check)}'\n" for key, (_, check) in values.items())
    project.write(f"images/{name}/check.sh", f'{CHECK}{tries}[ -z "$failed" ]\n', 0o755)
    for case in CASES.values():
        for file, content in case.files.items():
            project.write(f"images/{name}/{file}", content)


def _quote(text: str) -> str:
    return text.replace("'", "'\\''")


def test_each_key_has_a_case() -> None:
    assert {*CASES, "repositories", "python"} == {*CUSTOMIZATIONS, "files"}


def test_from_scratch_then_as_a_base_image(project: Project) -> None:
    project.succeed("build", "everything", "--site", "nimbus-sandbox")
    project.succeed("build", "everything-else", "--site", "nimbus-sandbox")
    for name in ("everything", "everything-else"):
        inputs = project.manifest(name)["inputs"]
        (told,) = inputs["package_files"]
        assert (told["file"], told["name"], told["version"]) == ("mytool.deb", "mytool", "1")
        (package,) = (each for each in inputs["packages"] if each["name"] == "mytool")
        assert package["sha256"] == told["sha256"]
