"""What the gate finds in a build, and who is told of it."""

from __future__ import annotations

from dataclasses import replace
from datetime import date
from pathlib import Path
from typing import Any

import jsonschema
from rule_cases import CASES, make_image
from test_manifest import APPLIANCE

from pipeline import checks
from pipeline.build.gate import find_error, judge
from pipeline.build.manifest_schema import checks as checks_schema
from pipeline.build.schema_terms import closed
from pipeline.checks.report import make_error
from pipeline.model import ContentKey, NoProgress
from pipeline.stages.base import Context
from pipeline.stages.gate import CheckContents
from pipeline.store import Store
from pipeline.waiver import Waiver

TODAY = date(2026, 1, 1)
LEAKY = {**CASES["private-key"].bad, **CASES["authorized-keys"].bad, **CASES["log"].bad}


def look(folder: Path, changes: Any) -> dict[str, Any]:
    """The facts of the stage on a small root file system."""
    store = Store(folder / "store")
    with store.making("root", ContentKey("a")) as made:
        out = Path(made) / "out"
        out.mkdir()
        make_image(folder, changes).rename(out / "root.ext4")
        root = store.add("root", ContentKey("a"), out, {})
    stage = CheckContents(rules=tuple(checks.RULES), host_name="grindstone")
    context = Context(
        out=folder, work=folder, log=folder / "log", store=store, progress=NoProgress()
    )
    return dict(stage.run([root], context))


def test_the_stage_tells_all_that_rules_find(tmp_path: Path) -> None:
    told = look(tmp_path, LEAKY)["findings"]
    assert {each["rule"] for each in told} == {
        *("private-key", "authorized-keys", "log", "release-ended")
    }
    assert {
        "rule": "authorized-keys",
        "path": "/root/.ssh/authorized_keys",
        "detail": "the owner of a key can log in as root",
        "subject": "root",
    } in told


def test_the_host_is_no_part_of_the_key(tmp_path: Path) -> None:
    rules = tuple(checks.RULES)
    keys = {CheckContents(rules=rules, host_name=name).key for name in ("one", "two")}
    assert len(keys) == 1
    assert CheckContents(rules=rules[1:]).key not in keys


def test_a_verdict(tmp_path: Path) -> None:
    """What the definition waives, and what it itself asks for, is told with the reason."""
    facts = look(tmp_path, LEAKY)
    users = [{"name": "root", "ssh_authorized_keys": "keys"}, {"name": "ops", "password": {}}]
    waiver = Waiver(rule="private-key", path="/opt/*", reason="a test's")
    appliance = replace(APPLIANCE, waive=(waiver,), customizations={"users": users})
    verdict = judge(appliance, facts, TODAY)
    told = verdict.describe()
    jsonschema.validate(told, closed(checks_schema()))
    assert told["waived"] == [
        {
            "rule": "authorized-keys",
            "path": "/root/.ssh/authorized_keys",
            "detail": "the owner of a key can log in as root",
            "reason": "the definition lets the owners of keys log in as root",
        },
        {
            "rule": "private-key",
            "path": "/opt/app/tests/test.key",
            "detail": "a PEM private key",
            "reason": "a test's",
        },
    ]
    error = make_error(verdict.counted)
    assert str(error) == (
        "the image must not be published: authorized-keys: /etc/ssh/authorized_keys.d/ops: the "
        "owner of a key can log in\n"
        "  | error authorized-keys: /home/ops/.ssh/authorized_keys2: the owner of a key can log "
        "in as ops\n"
        "  | error private-key: /etc/wireguard/wg0.conf: a WireGuard private key\n"
        "  | error private-key: /home/ops/.gnupg/private-keys-v1.d/AA.key: a private key of "
        "GnuPG\n"
        "  | error private-key: /home/ops/.ssh/id_ed25519: an OpenSSH private key\n"
        "  | error private-key: /root/.ssh/id_rsa: a PEM private key\n"
        "  | warning log: /var/log/apt/history.log: a log of 1.95 KiB\n"
        "  do: remove the file: keys come with the launch; or have the definition's `users` name "
        "them where that is wanted; or give the reason why it may be so below `waive:` in the "
        "definition"
    )
    assert error is not None and error.exit_code == 75
    # A manifest says the same later, and the definition may waive more by then.
    again = find_error(told, APPLIANCE)
    assert again is not None and again.what == error.what
    more = (Waiver(rule="private-key", reason="x"), Waiver(rule="authorized-keys", reason="y"))
    assert find_error(told, replace(APPLIANCE, waive=more)) is None
    assert find_error(None, APPLIANCE) is None


def test_a_release_that_has_ended_is_only_a_warning(tmp_path: Path) -> None:
    verdict = judge(APPLIANCE, look(tmp_path, {}), date(2031, 1, 1))
    (told,) = verdict.describe()["findings"]
    assert (told["rule"], told["severity"]) == ("release-ended", "warning")
    assert make_error(verdict.counted) is None
