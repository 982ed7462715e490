"""Every release that phantom-debian supports, built and booted."""

from __future__ import annotations

from pathlib import Path

import pytest
from cli_runs import REPOSITORY, make_project, remove_tree

from pipeline.sources.element_facts import read_facts

pytestmark = [pytest.mark.boot, pytest.mark.only_soak]

RELEASES = read_facts(REPOSITORY / "elements/phantom-debian").releases
CHECK = """\
#!/bin/sh
set -eux
grep -x 'deb .* {release} main' /etc/apt/sources.list
systemctl is-active ssh systemd-networkd systemd-resolved systemd-timesyncd
command -v curl
"""


@pytest.mark.parametrize("release", RELEASES)
def test_a_release_is_built_and_boots_everywhere(release: str, tmp_path: Path) -> None:
    project = make_project(tmp_path / "project")
    project.write("images/tried/look.sh", CHECK.format(release=release), 0o755)
    project.define(
        "tried",
        f"source: {{scratch: {{release: {release}}}}}\npackages: [curl]\n"
        "boot_check: {script: look.sh}\n",
    )
    # The index of a release that still changes is valid for a week, and mirrors may be older.
    done = project.run(
        *("build", "tried", "--cloud", "ec2,nimbus"), PHANTOM_DEBIAN_CHECK_VALID_UNTIL="no"
    )
    assert done.status == 0, done.err
    remove_tree(project.folder)
