"""What `files` says beside copying: content in the definition itself, and owners.

Not a key of its own: it runs when users and groups are there, which the copying does not wait for.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from shlex import quote

from pipeline.file_copies import Copy, FileCopy, TextCopy

_FUNCTIONS = """\
# put PATH MODE TEXT
put() {
    place=$1
    # While an image is made, names are resolved as on the build host.
    [ "$place" != /etc/resolv.conf ] || [ ! -e "$place.ORIG" ] || place=$place.ORIG
    mkdir -p "${place%/*}"
    if [ -d "$place" ] && [ ! -L "$place" ]; then
        fail "$1 is a folder in the image, and none in the definition"
    fi
    rm -f "$place"
    printf %s "$3" >"$place"
    chmod "$2" "$place"
}
# own PATH OWNER: chown says by itself whom it does not know
own() {
    [ ! -L "$1" ] && [ ! -e "$1" ] || chown -h "$2" "$1"
}
"""


def make_script(copies: Sequence[Copy]) -> str:
    """The lines of shell that write contents and set owners; empty if there are none."""
    lines = "".join(_lines(copies))
    return _FUNCTIONS + lines if lines else ""


def written(copies: Iterable[Copy]) -> Iterator[str]:
    """The paths of the files that the script writes."""
    return (str(copy.target) for copy in copies if isinstance(copy, TextCopy))


def _lines(copies: Sequence[Copy]) -> Iterator[str]:
    for copy in copies:
        if isinstance(copy, TextCopy):
            yield f"put {quote(str(copy.target))} {copy.mode:04o} {quote(copy.text)}\n"
    owned = {
        (path, copy.owner.name)
        for copy in copies
        if copy.owner is not None
        for path in copy.owner.paths
    }
    for path, owner in sorted(owned):
        yield f"own {quote(str(path))} {quote(owner)}\n"
    for copy in copies:  # a change of owner takes these bits away
        if copy.owner and isinstance(copy, FileCopy | TextCopy) and copy.mode & 0o6000:
            yield f"chmod {copy.mode:04o} {quote(str(copy.target))}\n"
