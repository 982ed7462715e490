"""What apt complains about in an archive that a definition names, in our words."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence

from pipeline.customizations.repositories import Repository
from pipeline.errors import MirrorError

# Of its warnings, only those that leave an archive out.
_COMPLAINT = re.compile(
    r"^(?:E: |W: (?=Failed to fetch|GPG error|An error occurred|.*doesn't have the component))"
    r"(.*)$",
    re.MULTILINE,
)
_SAME_KEY = "see that `key` is the file that the archive's maintainers publish"
_RIGHT = "see that its url, suite and components are right"
_MEANINGS: tuple[tuple[re.Pattern[str], str, str], ...] = tuple(
    (re.compile(form), what, todo)
    for form, what, todo in (
        (
            r"(?:EXPKEYSIG|REVKEYSIG) (?P<told>[0-9A-F]{16,40})",
            "is signed by the key {told}, which has expired or was revoked",
            "get the archive's new key for `key`",
        ),
        (
            r"EXPSIG|[Ee]xpired signature",
            "has an index whose signature has expired",
            "its maintainers must sign it again",
        ),
        (
            r"BADSIG|[Bb]ad signature",
            "has an index that is not what was signed",
            "try again later; if it stays so, somebody changes it on its way",
        ),
        (
            r"(?:NO_PUBKEY |[Mm]issing key )(?P<told>[0-9A-F]{16,40})",
            "is signed by the key {told}, which `key` does not hold",
            _SAME_KEY,
        ),
        (
            r"isn't valid, got 'NOSPLIT'|is not signed|NODATA",
            "has an index that nobody signed",
            "only a signed archive can be used; ask its maintainers, or name its packages as files",
        ),
        (
            r"Release file for .* is expired",
            "has an index whose time is over",
            "use an archive that is up to date",
        ),
        (
            r"Release file for .* is not valid yet",
            "has an index of the future",
            "set this host's clock",
        ),
        (
            r"doesn't have the component '(?P<told>[^']{1,100})'",
            "has no component {told}",
            _RIGHT,
        ),
        (
            r"does not have a Release file|/(?:In)?Release +404\b",
            "has no index at {index}",
            f"{_RIGHT}, and that the archive has an InRelease",
        ),
        (
            r"(?P<told>(?:Could not (?:connect|resolve|handshake)|Connection|Unable to connect|"
            r"Temporary failure|Could not wait).{0,200}|\b(?:40[137]|5\d\d) {1,2}[A-Z].{0,100})",
            "cannot be reached: {told}",
            "see that its url is right, and that it answers; run the same command again",
        ),
    )
)
_ANY_OTHER = f"{_RIGHT}, that it answers, and that `key` is the key that signs it"


def explain(
    output: str,
    repositories: Sequence[Repository],
    reached_as: Callable[[str], str] = str,
) -> MirrorError | None:
    """The error for the first of the repositories that apt complains about in its output, which
    has their URLs as `reached_as` makes them; None if it complains about none."""
    complaints = _COMPLAINT.findall(output)
    for repository in repositories:
        url = reached_as(repository.url)
        ours = [text for text in complaints if _is_about(text, url)]
        if not ours:
            continue
        for form, what, todo in _MEANINGS:
            found = next(filter(None, map(form.search, ours)), None)
            if found is not None:
                told = found.groupdict().get("told", "")
                text = what.format(told=told, index=repository.index)
                return _error(repository, text, todo)
        return _error(repository, f"cannot be used: {ours[0]}", _ANY_OTHER)
    return None


def check_components(index: str, repository: Repository) -> None:
    """Checks that an archive's index has all components that are asked for, which apt only warns
    of. Raises MirrorError."""
    found = re.search(r"^Components: (.{0,1000})$", index, re.MULTILINE)
    known = found[1].split() if found else []
    names = {*known, *(each.rpartition("/")[2] for each in known)}
    missing = [each for each in repository.components if each.rpartition("/")[2] not in names]
    if known and missing:
        what = f"has no component {', '.join(missing)}; it has {', '.join(known)}"
        raise _error(repository, what, "correct `components`")


def _is_about(complaint: str, url: str) -> bool:
    """Whether a complaint has this URL, and not one that only begins with it."""
    return re.search(rf"{re.escape(url)}(?=[/ ':]|$)(?!:\d)", complaint) is not None


def _error(repository: Repository, what: str, todo: str) -> MirrorError:
    return MirrorError(
        f"the repository {repository.name!r} {what}", where=repository.where or None, todo=todo
    )
