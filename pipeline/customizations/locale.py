"""`locale`: the language and the conventions of programs' output."""

from __future__ import annotations

from collections.abc import Iterable
from shlex import quote

from pipeline.customizations.customization import Customization

_BUILT_IN = ("C", "C.UTF-8", "POSIX")  # which the C library has without being told


def _packages(locale: str) -> Iterable[str]:
    return () if locale in _BUILT_IN else ("locales",)


def _script(locale: str) -> str:
    make = "" if locale in _BUILT_IN else "make\n"
    return f"locale={quote(locale)}\n{_FUNCTIONS}{make}name_it\n"


_FUNCTIONS = """\
# Debian makes each locale when it is asked for; others have packages of made ones.
make() {
    supported=/usr/share/i18n/SUPPORTED
    if [ -e /etc/debian_version ]; then
        need locale-gen locales
        line=$(grep -m 1 "^$locale " "$supported") || fail "the image's locales do not have $locale"
        grep -qxF "$line" /etc/locale.gen 2>/dev/null || echo "$line" >>/etc/locale.gen
        locale-gen
    else
        need locale glibc-common
        wanted=$(echo "$locale" | tr -d - | tr '[:upper:]' '[:lower:]')
        locale -a | tr -d - | tr '[:upper:]' '[:lower:]' | grep -qxF "$wanted" ||
            fail "the image lacks the locale $locale; add glibc-langpack-${locale%%_*}"
    fi
}
name_it() {
    if [ -e /etc/debian_version ]; then
        file=/etc/default/locale
    else
        file=/etc/locale.conf
    fi
    if [ -e "$file" ]; then
        sed -i -e '/^LANG=/d' -e '/^LC_ALL=/d' "$file"
    fi
    echo "LANG=$locale" >>"$file"
}
"""

CUSTOMIZATION = Customization(
    key="locale",
    schema={
        "description": "The machine's locale: language, territory and character set.",
        "type": "string",
        "pattern": "^(C|POSIX|C\\.UTF-8"
        "|[a-z]{2,3}_[A-Z]{2}(\\.[A-Za-z0-9-]{1,20})?(@[a-z]{1,20})?)$",
        "errorMessage": "must be a locale, such as de_DE.UTF-8 or C.UTF-8",
        "default": "C.UTF-8",
        "examples": ["de_DE.UTF-8", "en_US.UTF-8"],
    },
    packages=_packages,
    script=_script,
)
