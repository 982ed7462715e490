"""diskimage-builder's own elements in an image from scratch: docs/elements.md says which work.

Each is tried by `make soak`, which builds and boots an image with every one of them.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest
from cli_runs import REPOSITORY, Project, make_project, remove_tree

from pipeline.tools import dib

PAGE = REPOSITORY / "docs/elements.md"
OF_THE_DEFINITION = re.compile(r"`((?:packages|environment|source): [^`]+)`")


class Row(NamedTuple):
    """What the page says of an element."""

    element: str
    works: bool
    text: str

    @property
    def needs(self) -> str:
        """What the definition has to say besides, as YAML."""
        return "".join(f"{line}\n" for line in OF_THE_DEFINITION.findall(self.text))


def rows() -> list[Row]:
    found = re.findall(
        r"^\| `([a-z0-9-]+)` \| (yes|no) \| (.*) \|$", PAGE.read_text(), re.MULTILINE
    )
    return [Row(element, works == "yes", text) for element, works, text in found]


def test_the_page_has_every_element_once() -> None:
    shipped = (folder for folder in (dib._home() / "elements").iterdir() if folder.is_dir())
    names = sorted(folder.name for folder in shipped if not folder.name.startswith("_"))
    assert [row.element for row in rows()] == names
    assert all(row.text for row in rows())
    assert all(row.works for row in rows() if row.needs)


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    folder = tmp_path_factory.mktemp("elements")
    yield folder
    remove_tree(folder)


@pytest.mark.only_soak
@pytest.mark.parametrize("row", rows(), ids=lambda row: row.element)
def test_an_element_does_what_the_page_says(row: Row, store: Path, tmp_path: Path) -> None:
    project = make_project(tmp_path / "project", store)
    project.define("tried", f"elements: [{row.element}]\n{row.needs}")
    done = project.run("build", "tried", "--cloud", "nimbus")
    assert (done.status == 0) == row.works, done.err
    if not row.works:
        assert done.status in (11, 12, 18, 22, 23), done.err
    for artifact in (store / "artifacts").iterdir():
        remove_tree(artifact)


CHECK = """\
#!/bin/sh
set -eux
systemctl is-active chrony.service
systemctl is-enabled systemd-timesyncd.service && exit 1
dpkg --status linux-image-amd64 | grep -x 'Status: hold ok installed'
case $(readlink /etc/resolv.conf) in *resolvconf*) ;; *) exit 1 ;; esac
# The boot check's own network names no servers, so this does.
echo DNS=192.0.2.53 >>/run/systemd/netif/state
tries=0
until grep -x 'nameserver 192.0.2.53' /etc/resolv.conf; do
    tries=$((tries + 1))
    [ "$tries" -lt 60 ]
    sleep 1
done
"""


@pytest.mark.only_soak
@pytest.mark.parametrize("runner", ["cloud-init", "fetcher"])
def test_what_takes_the_place_of_preferred_packages_works(
    project: Project, store: Path, runner: str
) -> None:
    """One machine of each cloud, with another time daemon, another resolver, and cloud-init."""
    project = Project(folder=project.folder, store=store)
    project.write("images/other/check.sh", CHECK)
    project.write("images/other/hold.sh", "#!/bin/sh\napt-mark hold linux-image-amd64\n")
    project.define(
        "other",
        "packages: [chrony, resolvconf, cloud-init]\nscripts: [hold.sh]\n"
        f"user_data: {{runner: {runner}}}\nboot_check: {{script: check.sh}}\n",
    )
    project.succeed("build", "other", "--cloud", "nimbus,ec2")
    checks = {
        each["machine"]: each
        for image in project.manifest("other")["images"]
        for each in image["boot_checks"]
    }
    assert {*checks} == {"bios", "uefi"}
