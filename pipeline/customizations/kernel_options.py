"""`kernel_options`: what the boot loader adds to the kernel's command line, or leaves out."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from shlex import quote
from typing import Any

from pipeline.customizations.customization import Customization, Report

_Options = Mapping[str, Sequence[str]]

# The boot loader and the layout decide these.
_OURS = re.compile(r"(root|ro|rw|initrd|BOOT_IMAGE|init)(=.*)?")
_CONSOLE = re.compile(r"console=(ttyS0|tty0)(,.*)?")


def _check(value: _Options, report: Report) -> None:
    for part in ("append", "remove"):
        for index, option in enumerate(value.get(part, ())):
            if _OURS.fullmatch(option):
                report((part, index), f"{option!r} is for the image's layout to say")
    for index, option in enumerate(value.get("remove", ())):
        if _CONSOLE.fullmatch(option) or option == "console":
            report(("remove", index), "the boot check hears the machine by this console")


def _merge(parent: _Options, child: _Options) -> dict[str, list[str]]:
    """What the child appends is no longer removed, and the other way round."""
    opposite = {"append": "remove", "remove": "append"}
    merged = {
        part: [
            *(each for each in parent.get(part, ()) if each not in child.get(opposite[part], ())),
            *(each for each in child.get(part, ()) if each not in parent.get(part, ())),
        ]
        for part in opposite
    }
    return {part: options for part, options in merged.items() if options}


def _script(value: _Options) -> str:
    append, remove = (" ".join(value.get(part, ())) for part in ("append", "remove"))
    return f"append={quote(append)}\nremove={quote(remove)}\n{_FUNCTIONS}"


# An option without a value takes away those with its name and any value.
_FUNCTIONS = r"""
need awk mawk
# change FILE PATTERN: in the lines of a file that match, what follows the match are options
change() {
    [ -f "$1" ] && [ ! -L "$1" ] || return 0
    awk -v start="$2" -v add="$append" -v gone="$remove" -v quoted="${3-}" '
        BEGIN {
            added = split(add, more, " ")
            count = split(gone, names, " ")
            for (i = 1; i <= count; i++) leave[names[i]] = 1
        }
        match($0, start) {
            head = substr($0, 1, RLENGTH)
            rest = substr($0, RLENGTH + 1)
            tail = ""
            if (quoted) {
                tail = substr(rest, length(rest))
                rest = substr(rest, 1, length(rest) - 1)
            }
            number = split(rest, words, " ")
            line = ""
            split("", there)
            for (i = 1; i <= number; i++) {
                name = words[i]
                sub(/=.*/, "", name)
                if (words[i] in leave || name in leave) continue
                there[words[i]] = 1
                line = line (line == "" ? "" : " ") words[i]
            }
            for (i = 1; i <= added; i++)
                if (!(more[i] in there)) line = line (line == "" ? "" : " ") more[i]
            print head line tail
            next
        }
        { print }
    ' "$1" >"$1.phantom-new"
    cat "$1.phantom-new" >"$1" # keeps owner and mode
    rm "$1.phantom-new"
}
found=
for file in /boot/grub/grub.cfg /boot/grub2/grub.cfg; do
    [ ! -f "$file" ] || found=yes
    change "$file" '^[ \t]*(linux|linux16|linuxefi)[ \t]+[^ \t]+[ \t]*'
done
for file in /boot/grub/menu.lst /boot/grub/grub.conf; do
    [ ! -f "$file" ] || found=yes
    change "$file" '^[ \t]*kernel[ \t]+[^ \t]+[ \t]*'
done
for file in /boot/loader/entries/*.conf; do
    change "$file" '^options[ \t]+'
done
for file in /boot/extlinux/extlinux.conf /boot/extlinux.conf /extlinux.conf \
    /boot/syslinux/syslinux.cfg; do
    [ ! -f "$file" ] || found=yes
    change "$file" '^[ \t]*[Aa][Pp][Pp][Ee][Nn][Dd][ \t]+'
done
change /etc/kernel/cmdline '^'
for file in /etc/default/grub /etc/default/grub.d/*.cfg; do
    change "$file" '^[ \t]*GRUB_CMDLINE_LINUX=["'\'']' quoted
done
[ -n "$found" ] || fail 'the image has no configuration of a boot loader'
"""


def _listed(description: str, example: list[str]) -> dict[str, Any]:
    return {
        "description": description,
        "type": "array",
        "uniqueItems": True,
        "items": {
            "description": "An option of the kernel.",
            "type": "string",
            "pattern": "^[A-Za-z][A-Za-z0-9_.-]*(=[A-Za-z0-9_.,:=/@%+-]*)?$",
            "maxLength": 200,
            "errorMessage": f"must be an option of the kernel, such as {example[0]}",
            "examples": example,
        },
        "examples": [example],
    }


CUSTOMIZATION = Customization(
    key="kernel_options",
    schema={
        "description": "Options that the image's boot loader gives to the kernel. A Nimbus site "
        "that starts a kernel of its own decides them itself.",
        "type": "object",
        "additionalProperties": False,
        "properties": {
            "append": _listed("Options to add.", ["mitigations=off"]),
            "remove": _listed(
                "Options to leave out; a name alone leaves it out with any value.", ["quiet"]
            ),
        },
        "examples": [{"append": ["mitigations=off"], "remove": ["quiet"]}],
    },
    check=_check,
    merge=_merge,
    script=_script,
)
