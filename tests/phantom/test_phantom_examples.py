"""The examples of docs/phantom.md run as they stand."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
from phantom_kit import USER, local_phantom

PAGE = Path(__file__).parents[2] / "docs/phantom.md"


@pytest.mark.parametrize("name", ["boto3", "boto2"])
def test_an_example_runs(name: str, tmp_path: Path) -> None:
    found = re.search(rf"<!-- example: {name} -->\n\n((?:    .*\n|\n)+)", PAGE.read_text())
    assert found is not None
    with local_phantom(tmp_path, ("nimbus-sandbox",)) as local:
        port = str(local.server.port)
        example = textwrap.dedent(found[1]).replace("8445", port)
        keys = {
            "AWS_ACCESS_KEY_ID": USER.access_key,
            "AWS_SECRET_ACCESS_KEY": USER.secret_key,
        }
        done = subprocess.run(
            [sys.executable, "-W", "ignore", "-c", example],
            env={**os.environ, **keys},
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        assert (done.returncode, done.stdout) == (0, "web 3\n"), done.stderr
        (made,) = local.state.list_types(USER.access_key)
        assert made.user_data == "#!/bin/sh\necho hello >/dev/console\n"
        assert local.state.list_domains() == []
