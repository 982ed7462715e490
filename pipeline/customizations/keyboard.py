"""`keyboard`: the keyboard of the machine's console."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from pipeline.customizations.customization import Customization

_Keyboard = Mapping[str, str]


def _packages(keyboard: _Keyboard) -> Iterable[str]:
    return ["console-setup", "keyboard-configuration"]


def _script(keyboard: _Keyboard) -> str:
    layout, variant = keyboard["layout"], keyboard.get("variant", "")
    model, options = keyboard.get("model", "pc105"), keyboard.get("options", "")
    keymap = f"{layout}-{variant}" if variant else layout
    return f"""\
if [ -e /etc/debian_version ]; then
    need setupcon console-setup
    cat >/etc/default/keyboard <<'END'
XKBMODEL="{model}"
XKBLAYOUT="{layout}"
XKBVARIANT="{variant}"
XKBOPTIONS="{options}"
BACKSPACE="guess"
END
    rm -f /etc/console-setup/cached_* # of the layout before
else
    sed -i '/^KEYMAP=/d' /etc/vconsole.conf 2>/dev/null || :
    echo 'KEYMAP={keymap}' >>/etc/vconsole.conf
fi
"""


def _text(description: str, example: str) -> dict[str, Any]:
    return {
        "description": description,
        "type": "string",
        "pattern": "^[a-z0-9_:,.-]*$",
        "maxLength": 100,
        "errorMessage": "must be a name that XKB knows: lower-case letters, digits, '_', ',' and "
        "':'",
        "examples": [example],
    }


CUSTOMIZATION = Customization(
    key="keyboard",
    schema={
        "description": "The keyboard of the machine's console, in XKB's names "
        "(xkeyboard-config(7)).",
        "type": "object",
        "required": ["layout"],
        "additionalProperties": False,
        "properties": {
            "layout": _text("The layout.", "de") | {"minLength": 1},
            "variant": _text("The layout's variant.", "nodeadkeys"),
            "model": _text("The keyboard's model.", "pc105"),
            "options": _text("Options, separated by ','.", "compose:menu"),
        },
        "examples": [{"layout": "de", "variant": "nodeadkeys"}],
    },
    packages=_packages,
    script=_script,
)
