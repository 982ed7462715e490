"""Mistakes in the keys that customize the image, and how a definition inherits them."""

from __future__ import annotations

from pathlib import Path

import pytest
from definition_texts import HEAD, Load, Write

from pipeline.definitions.appliance import load_appliance
from pipeline.errors import DefinitionError

FILE = "images/web/appliance.yaml"

# A definition's lines and its messages: one `line:column: message` for each mistake.
MISTAKES: list[tuple[str, list[str]]] = [
    (
        "timezone: Mars/Base One\n",
        [
            "4:11: 'timezone' must be the name of a time zone, such as Europe/Berlin or UTC, not "
            "'Mars/Base One'"
        ],
    ),
    (
        "services: {enabled: [nginx, a b], started: [x]}\n",
        [
            "4:29: 'services.enabled[1]' must be the name of a service, such as nginx or "
            "backup.timer, not 'a b'",
            "4:35: unknown key 'started' in 'services'; known here: enabled, disabled, masked",
        ],
    ),
    (
        "services:\n  enabled: [nginx]\n  masked: [nginx.service]\n",
        ["6:12: 'services.masked[0]': 'nginx.service' is among the enabled services too"],
    ),
]


@pytest.mark.parametrize(("text", "messages"), MISTAKES)
def test_mistakes(load: Load, text: str, messages: list[str]) -> None:
    with pytest.raises(DefinitionError) as caught:
        load(HEAD + text)
    told = str(caught.value).splitlines()
    found = [told[0]] if len(messages) == 1 else [line.removeprefix("  | ") for line in told[1:-1]]
    assert found == [f"{FILE}:{message}" for message in messages]


def test_the_child_decides_for_its_parent(write: Write, load: Load) -> None:
    write(
        "images/common/appliance.yaml",
        'name: common\nversion: "1"\nsummary: s\ntimezone: UTC\n'
        "services: {enabled: [a, b], masked: [c]}\n",
    )
    loaded = load(f"extends: common\n{HEAD}services: {{disabled: [b.service], enabled: [c]}}\n")
    assert loaded.customizations == {
        "timezone": "UTC",
        "services": {"enabled": ["a", "c"], "disabled": ["b.service"]},
    }
    assert load_appliance("common", Path("images")).customizations["services"] == {
        "enabled": ["a", "b"],
        "masked": ["c"],
    }
