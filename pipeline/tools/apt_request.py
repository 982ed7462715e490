"""What is asked of apt: whether it exists, and whether it can be installed together.

Names are exact: apt itself would take `zst.` for a regular expression and `curl-` for a removal, so
it only gets names that its lists have.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace

from pipeline.errors import PhantomError, UnknownPackageError
from pipeline.model import split_pin
from pipeline.tools import run
from pipeline.tools.apt_lists import Lists

Others = AbstractContextManager[Lists | None]
_NAME = re.compile(r"[a-z0-9][a-z0-9+.-]+")
_UNMET = re.compile(r"^ +(\S+ : (?:\S*Depends|Conflicts|Breaks): .*\S)", re.MULTILINE)
_EXACT = re.compile(r"Depends: (\S+) \(= (\S+)\) but", re.MULTILINE)
_SHOWN = 4  # of apt's lines, and of a package's versions
_ELEMENT = "element "
_MOST_HINTS = 10  # packages whose nearest name is searched for
_MOST_SHOWN = 100  # packages in one message
_NEAR = 0.75  # of difflib's ratio: `nginx-lite` and `nginx-light` have 0.86
_ELSEWHERE = "; for a package of another archive, name that in `repositories`"


@dataclass(frozen=True, kw_only=True)
class Wanted:
    """A package that somebody asks for."""

    name: str
    version: str | None = None
    """The only version that will do."""
    asker: str = ""
    """Who asks, for messages: a place in a definition, or what `element_asker` says."""
    preferred: bool = False
    """Whether it is left out where it conflicts with what others ask for."""

    @staticmethod
    def parse(text: str, *, asker: str = "", preferred: bool = False) -> Wanted:
        """What `name` or `name=version` asks for."""
        name, version = split_pin(text)
        return Wanted(name=name, version=version, asker=asker, preferred=preferred)

    @property
    def word(self) -> str:
        """As apt takes it, and definitions write it."""
        return self.name if self.version is None else f"{self.name}={self.version}"

    @property
    def shown(self) -> str:
        return f"{self.word} ({self.asker})" if self.asker else self.word

    @property
    def by_element(self) -> bool:
        return self.asker.startswith(_ELEMENT)


def element_asker(element: str) -> str:
    """The words for an element that asks for a package."""
    return f"{_ELEMENT}{element}"


def merge(wanted: Iterable[Wanted]) -> list[Wanted]:
    """Each package once, sorted by name. Who asks first is named; a version that one of them asks
    for is what all get, and a preference is one only where nobody insists.

    Raises UnknownPackageError for a package of two versions.
    """
    merged: dict[str, Wanted] = {}
    for each in wanted:
        known = merged.setdefault(each.name, each)
        if None not in (known.version, each.version) and known.version != each.version:
            raise UnknownPackageError(
                f"{each.name} is asked for in two versions: {known.shown} and {each.shown}",
                where=None if known.by_element else known.asker or None,
                packages=[each.name],
                todo="ask for one of them",
            )
        insists = known if not known.preferred else each
        merged[each.name] = replace(
            insists,
            version=known.version or each.version,
            preferred=known.preferred and each.preferred,
        )
    return [merged[name] for name in sorted(merged)]


@dataclass(frozen=True, kw_only=True)
class _Fault:
    wanted: Wanted
    text: str
    todo: str


def check_exist(
    lists: Lists, wanted: Sequence[Wanted], *, release: str, others: Callable[[], Others]
) -> None:
    """Raises UnknownPackageError unless every package is one of the lists', in the version asked
    for. `others` gives lists of the archive's other components, or None."""
    versions = lists.versions(each.name for each in wanted if _NAME.fullmatch(each.name))
    missing = [each for each in wanted if each.name not in versions]
    faults = _explain_missing(lists, missing, release, others) if missing else []
    for each in wanted:
        known = [version for version, _component in versions.get(each.name, ())]
        if known and each.version is not None and each.version not in known:
            some = ", ".join(dict.fromkeys(known[:_SHOWN]))
            text = f"{release} has no version {each.version} of {each.name}; it has {some}"
            todo = "write a version that there is, or the name alone for the newest"
            faults.append(_Fault(wanted=each, text=text, todo=todo))
    if not faults:
        return
    first = faults[0]
    if len(faults) == 1:
        where, what, detail = first.wanted.asker or None, first.text, None
    else:
        where, what = None, f"{len(faults)} packages cannot be had"
        lines = [f"{fault.wanted.asker}: {fault.text}" for fault in faults[:_MOST_SHOWN]]
        if len(faults) > len(lines):
            lines.append(f"and {len(faults) - len(lines):,} more")
        detail = "\n".join(lines)
    raise UnknownPackageError(
        what,
        where=where,
        packages=[fault.wanted.name for fault in faults],
        todo="; ".join(dict.fromkeys(fault.todo for fault in faults)),
        detail=detail,
    )


def _explain_missing(
    lists: Lists, missing: Sequence[Wanted], release: str, others: Callable[[], Others]
) -> list[_Fault]:
    known, mentioned = lists.names(), lists.names(virtual=True)
    names = [each.name for each in missing if _NAME.fullmatch(each.name)]
    with others() as elsewhere:
        components = elsewhere.versions(names) if elsewhere else {}
    provided = lists.providers(mentioned.intersection(names))

    first = missing[:_MOST_HINTS]

    def explain(each: Wanted) -> tuple[str, str]:
        if each.name in components:
            component = components[each.name][0][1]
            return (
                f"{release} has {each.name} in its component {component}, which `components` does "
                "not name",
                f"write `source: {{scratch: {{components: [{component}]}}}}`, or take it out",
            )
        if providers := provided.get(each.name):
            return (
                f"{each.name} is a virtual package, which these provide: {', '.join(providers)}",
                "name one of those that provide it",
            )
        near = []
        if each in first:  # each search takes a second
            near = difflib.get_close_matches(each.name, known, n=1, cutoff=_NEAR)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        todo = "correct the name, or take out the package, in the definition or in the element "
        return f"{release} has no package {each.name}{hint}", f"{todo}that asks for it{_ELSEWHERE}"

    explained = ((each, *explain(each)) for each in missing)
    return [_Fault(wanted=each, text=text, todo=todo) for each, text, todo in explained]


def choose(lists: Lists, wanted: Sequence[Wanted]) -> tuple[list[Wanted], str]:
    """The packages to ask apt for, without the preferred ones that conflict with others, and apt's
    answer. Raises UnknownPackageError for other conflicts."""
    answer = _try(lists, wanted)
    if answer is not None:
        return [*wanted], answer
    chosen = [each for each in wanted if not each.preferred]
    answer = _try(lists, chosen)
    if answer is None:
        raise _explain_conflict(lists, chosen)
    for each in wanted:
        if each.preferred and (more := _try(lists, [*chosen, each])) is not None:
            chosen, answer = [*chosen, each], more
    return chosen, answer


def _try(lists: Lists, wanted: Sequence[Wanted]) -> str | None:
    """apt's answer, or None if the packages cannot be installed together.

    A pinned package may need others in versions that are not the newest, as a program and its
    library do, which apt only takes if they are asked for.
    """
    words = {each.name: each.word for each in wanted}
    pinned = any(each.version is not None for each in wanted)
    while True:
        try:
            return lists.solve(words.values())
        except run.ToolError as error:
            needed = {name: f"{name}={version}" for name, version in _EXACT.findall(error.output)}
            if not pinned or all(name in words for name in needed):
                return None
            words = {**needed, **words}


def _explain_conflict(lists: Lists, wanted: Sequence[Wanted]) -> PhantomError:
    if lists.without and (kept_out := _find_indispensable(lists)):
        return UnknownPackageError(
            f"no image can do without {' and '.join(kept_out)}",
            where=lists.without[kept_out[0]] or None,
            packages=kept_out,
            todo=f"take {'it' if len(kept_out) == 1 else 'them'} out of `without_packages`",
        )
    try:
        lists.solve(each.word for each in wanted)
        unmet = []
    except run.ToolError as error:
        unmet = _UNMET.findall(error.output)
        if not unmet:
            return error
    # Each line reads `package : Conflicts: package ...`.
    named = {line.split()[place] for line in unmet for place in (0, 3)}
    suspects = [each for each in wanted if each.name in named]
    if not suspects or _try(lists, suspects) is not None:
        suspects = [*wanted]
    guilty = _minimise(lists, [], suspects, changed=False)
    guilty.sort(key=lambda each: each.by_element)
    missed = [name for name in lists.without if any(name in line.split() for line in unmet)]
    users = [each for each in guilty if not each.by_element]
    elements = [each for each in guilty if each.by_element]
    if missed:
        todo = f"take {' and '.join(missed)} out of `without_packages`"
    elif users and elements:
        needed = ", ".join(f"{each.asker} needs {each.name}" for each in elements)
        todo = f"take out {' or '.join(each.name for each in users)}: {needed}"
    else:
        todo = "take out one of them" if len(guilty) > 1 else "take it out"
        if any(each.version is not None for each in guilty):
            todo += ", or ask for another version"
    together = " together" if len(guilty) > 1 else ""
    return UnknownPackageError(
        f"{' and '.join(each.shown for each in guilty)} cannot be installed{together}",
        where=(users or guilty)[0].asker or None,
        packages=[each.name for each in guilty],
        detail="\n".join(unmet[:_SHOWN]) or None,
        todo=todo,
    )


def _find_indispensable(lists: Lists) -> list[str]:
    """Which of the packages that are not to be there are needed even where nobody asks for any."""
    try:
        lists.solve([])
    except run.ToolError as error:
        words = error.output.split()
        return [name for name in lists.without if name in words] or [*lists.without]
    return []


def _minimise(
    lists: Lists, kept: list[Wanted], suspects: list[Wanted], *, changed: bool
) -> list[Wanted]:
    """The fewest of the suspects that, with what is kept, cannot be installed together; `changed`:
    whether what is kept may suffice for that (QuickXplain, Junker 2004)."""
    if changed and _try(lists, kept) is None:
        return []
    if len(suspects) == 1:
        return suspects
    first, second = suspects[: len(suspects) // 2], suspects[len(suspects) // 2 :]
    of_second = _minimise(lists, kept + first, second, changed=True)
    of_first = _minimise(lists, kept + of_second, first, changed=bool(of_second))
    return of_first + of_second
