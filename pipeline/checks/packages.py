"""Rules of installed packages and of where further ones come from."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterator

from pipeline.checks.dpkg import broken
from pipeline.checks.root import Root
from pipeline.checks.rule import Found, Rule
from pipeline.disk.contents import File
from pipeline.disk.tree import COPY_LIMIT
from pipeline.disk.untrusted import lines_of, to_printable

_LOCAL = re.compile(r"(?:(?:https?|ftp)://(?:localhost|127\.|\[::1\])|file:|copy:)", re.IGNORECASE)
_PROXIES = {
    "apt": re.compile(
        r"(?mi)^[ \t]*Acquire::(?:https?|ftp)(?:::[^\s\"]*)?::Proxy[ \t]+\"([^\"]*)\""
    ),
    "dnf": re.compile(r"(?mi)^[ \t]*proxy[ \t]*=[ \t]*([^\s]+)"),
    "environment": re.compile(
        r"(?mi)^[ \t]*(?:export[ \t]+)?(?:https?|ftp|all)_proxy[ \t]*=[ \t]*[\"']?([^\s\"']+)"
    ),
    "pip": re.compile(
        r"(?mi)^[ \t]*(?:proxy|index-url|extra-index-url)[ \t]*=[ \t]*"
        r"((?:https?://(?:localhost|127\.)|[^/\s:]+:[0-9]+)[^\s]*)"
    ),
}
_NO_PROXY = ("", "direct", "false", "none", "_none_")
_ONE_LINE = re.compile(
    r"\s*deb(?:-src)?\s+(?:\[(?P<options>[^\]]*)\]\s+)?(?P<uri>\S+)\s+(?P<suite>\S+)"
)
_KEYRINGS = "/etc/apt/trusted.gpg.d"
_OWN_KEYS = re.compile(r"(debian|ubuntu|raspbian|devuan|kali|linuxmint)-.*")


# ---- what is installed


def _find_broken(root: Root) -> Iterator[Found]:
    for name, state in () if root.dpkg is None else root.dpkg.states.items():
        if broken(state):
            detail = f"{name} is in the state {state!r}"
            yield Found(path="/var/lib/dpkg/status", detail=detail, subject=name)


def _find_changed(root: Root) -> Iterator[Found]:
    if root.dpkg is None:
        return
    for path, digest in root.dpkg.digests.items():
        file = root.contents.files.get(path)
        if file is None or not file.is_file:
            continue
        if file.size > COPY_LIMIT or root.contents.md5(file) != digest:
            package = root.dpkg.owners.get(path, "its package")
            yield Found(path=path, detail=f"its content is not that of {package}")


def _find_missing(root: Root) -> Iterator[Found]:
    if root.dpkg is None:
        return
    missing = defaultdict(list)
    for path in root.dpkg.digests:
        if path not in root.contents.files and not root.dpkg.is_left_out(path):
            missing[root.dpkg.owners.get(path, "a package")].append(path)
    for package, paths in missing.items():
        more = f", and {len(paths) - 1} more of its files" if len(paths) > 1 else ""
        yield Found(path=min(paths), detail=f"a file of {package} is not there{more}")


# ---- where packages come from


def _files(root: Root, *places: str) -> Iterator[File]:
    for place in places:
        file = root.contents.find(place)
        if file is not None:
            yield from (
                [file] if file.is_file else filter(lambda each: each.is_file, root.inside(place))
            )


def _sources(root: Root) -> Iterator[tuple[str, dict[str, str], str, str]]:
    """apt's sources: the file, the options in lower case, the URIs, and the suites."""
    for file in _files(root, "/etc/apt/sources.list", "/etc/apt/sources.list.d"):
        text = root.contents.text(file.path)
        if file.path.endswith(".list"):
            for line in lines_of(text):
                match = _ONE_LINE.match(line)
                if match is not None:
                    words = (word.partition("=") for word in (match["options"] or "").split())
                    options = {key.lower(): value for key, _, value in words}
                    yield file.path, options, match["uri"], match["suite"]
        elif file.path.endswith(".sources"):
            for stanza in re.split(r"\n\s*\n", re.sub(r"(?m)^#.*\n?", "", text)):
                pairs = re.findall(r"(?m)^([A-Za-z-]+):[ \t]*(.*(?:\n[ \t].*)*)", stanza)
                fields = {key.lower(): value.strip() for key, value in pairs}
                if fields.get("enabled", "yes").lower() != "no" and "uris" in fields:
                    yield file.path, fields, fields["uris"], fields.get("suites", "")


def _find_unsigned(root: Root) -> Iterator[Found]:
    for path, options, uris, _ in _sources(root):
        for option in ("trusted", "allow-insecure", "allow-weak"):
            if options.get(option, "").lower() in ("yes", "true", "1"):
                yield Found(path=path, detail=f"{option}: yes, for {_shorten(uris)}")
    for file in _files(root, "/etc/yum.conf", "/etc/dnf/dnf.conf", "/etc/yum.repos.d"):
        text = root.contents.text(file.path)
        for section in re.split(r"(?m)^(?=[ \t]*\[)", text):
            on = re.search(r"(?mi)^[ \t]*enabled[ \t]*=[ \t]*(0|false|no)\b", section) is None
            if on and re.search(r"(?mi)^[ \t]*gpgcheck[ \t]*=[ \t]*(0|false|no)\b", section):
                name = section.strip().partition("\n")[0]
                yield Found(path=file.path, detail=f"gpgcheck=0 in {_shorten(name)}")


def _find_unbound(root: Root) -> Iterator[Found]:
    """Sources of others whose packages any key may sign that apt trusts."""
    foreign = [
        name
        for file in root.inside(_KEYRINGS)
        if file.is_file and not _OWN_KEYS.match(name := file.name)
    ]
    codename = "" if root.release is None else root.release.codename
    own = (codename, "stable", "oldstable", "testing", "sid", "unstable")
    for path, options, uris, suites in _sources(root):
        is_own = bool(codename) and suites.split("-")[0].split("/")[0].split(" ")[0] in own
        if foreign and "signed-by" not in options and not is_own:
            yield Found(path=path, detail=f"no signed-by, for {_shorten(uris)}")


def _find_local(root: Root) -> Iterator[Found]:
    for path, _, uris, _ in _sources(root):
        if _LOCAL.match(uris):
            yield Found(path=path, detail=f"packages come from {_shorten(uris)}")


def _find_proxies(root: Root) -> Iterator[Found]:
    places = {
        "apt": ("/etc/apt/apt.conf", "/etc/apt/apt.conf.d"),
        "dnf": ("/etc/dnf/dnf.conf", "/etc/yum.conf"),
        "environment": ("/etc/environment", "/etc/profile.d", "/etc/wgetrc"),
        "pip": ("/etc/pip.conf", "/root/.config/pip/pip.conf", "/root/.pip/pip.conf"),
    }
    for kind, paths in places.items():
        for file in _files(root, *paths):
            for proxy in _PROXIES[kind].findall(root.contents.text(file.path)):
                if proxy.lower() not in _NO_PROXY:
                    yield Found(path=file.path, detail=f"it names {_shorten(proxy)}")


def _shorten(text: str) -> str:
    return to_printable(re.sub(r"//[^/@\s]*@", "//***@", text))[:100]


RULES = (
    Rule(
        id="package-broken",
        severity="error",
        what="a package that is not wholly installed",
        reason="it may not work, and package managers refuse to install anything else",
        todo="finish it (`dpkg --configure --pending`), or remove it",
        find=_find_broken,
    ),
    Rule(
        id="package-file-changed",
        severity="warning",
        what="a file that is not as its package has it",
        reason="the next update undoes the change, and the list of packages does not tell of it",
        todo="put the change into a package or a drop-in, or divert the file (`dpkg-divert`)",
        find=_find_changed,
    ),
    Rule(
        id="package-file-missing",
        severity="warning",
        what="a file of a package that is not there",
        reason="the package may not work, and the next update brings the file back",
        todo="remove the package, or keep dpkg from unpacking the file (`path-exclude`)",
        find=_find_missing,
    ),
    Rule(
        id="source-unsigned",
        severity="error",
        what="a source of packages without signatures",
        reason="whoever is on the way to it can put programs into the machine",
        todo="sign the archive, name its key (`signed-by`), and remove the option",
        find=_find_unsigned,
    ),
    Rule(
        id="source-any-key",
        severity="warning",
        what="a source of packages that any trusted key may sign",
        reason="the owner of one archive can pass packages off as those of another",
        todo="name the archive's own key with `signed-by`; the key `repositories` does so",
        find=_find_unbound,
    ),
    Rule(
        id="source-local",
        severity="error",
        what="a source of packages on the build host",
        reason="no machine of the image has it, and its package manager fails",
        todo="name an archive that machines reach, or remove the entry",
        find=_find_local,
    ),
    Rule(
        id="proxy",
        severity="error",
        what="a proxy for programs that fetch packages",
        reason="it is that of the build's network: elsewhere nothing can be installed",
        todo="remove it; user-data can set one where a site has one",
        find=_find_proxies,
    ),
)
