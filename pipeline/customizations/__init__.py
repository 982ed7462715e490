"""Keys of a definition that customize the image, one module each.

A new key is a module that defines `CUSTOMIZATION`, and a line here with the module's name. Nothing
else knows of a single key: definitions take its schema, its checks and how it is merged from here,
sources its packages and its script, and the manifest its value.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from importlib import import_module
from typing import Any

from pipeline.customizations import files
from pipeline.customizations.customization import HEAD, Customization, Step, UnreadyError
from pipeline.errors import DefinitionError
from pipeline.file_copies import Copy, TextFile
from pipeline.model import Positions

CUSTOMIZATIONS: dict[str, Customization] = {
    name: import_module(f"{__name__}.{name}").CUSTOMIZATION
    for name in (
        "repositories",
        "debconf",
        "groups",
        "users",
        "directories",
        "timezone",
        "locale",
        "keyboard",
        "hostname",
        "kernel_options",
        "swap",
        "python",
        "services",
    )
}
"""The customizations by their keys, in the order in which they run."""


def needed_packages(values: Mapping[str, Any]) -> dict[str, str]:
    """The Debian packages that a definition's customizations need, each with the key that first
    needs it."""
    found: dict[str, str] = {}
    for key, customization in CUSTOMIZATIONS.items():
        if key in values:
            for package in customization.packages(values[key]):
                found.setdefault(package, key)
    return found


def make_answers(values: Mapping[str, Any]) -> str:
    """The answers for debconf, a line each."""
    return "".join(
        customization.answers(values[key])
        for key, customization in CUSTOMIZATIONS.items()
        if key in values
    )


def make_steps(
    values: Mapping[str, Any], positions: Positions, copies: Sequence[Copy] = ()
) -> tuple[Step, ...]:
    """What customizes the image, in the order in which it runs; `copies` are the definition's
    files. Raises DefinitionError where what a value refers to outside the definition is missing."""
    steps = []
    for key, customization in CUSTOMIZATIONS.items():
        if key == "directories":  # owners may be users of the definition
            script, kept = files.make_script(copies), files.written(copies)
            steps.append(_make_step("files", script, positions, kept))
        if key in values:
            value = values[key]
            with _located(customization, positions):
                script = customization.script(value)
            made = _make_step(key, script, positions, customization.kept(value))
            steps.append(replace(made, seconds=customization.seconds))
    return tuple(step for step in steps if step.script != HEAD)


@contextmanager
def _located(customization: Customization, positions: Positions) -> Iterator[None]:
    try:
        yield
    except UnreadyError as error:
        where = positions.find(customization.key, *error.keys)
        raise DefinitionError(error.what, where=where, todo=error.todo) from error


def _make_step(name: str, script: str, positions: Positions, kept: Iterable[str]) -> Step:
    script = HEAD + script
    return Step(
        name=name,
        digest=hashlib.sha256(script.encode()).hexdigest(),
        script=script,
        where=positions.find(name),
        kept=tuple(kept),
    )


def describe(value: Any) -> Any:
    """A definition's customizations, or a part of them, as the manifest names them: of a file its
    name and digest."""
    if isinstance(value, TextFile):
        return {"file": value.path.name, "sha256": value.sha256}
    if isinstance(value, Mapping):
        return {name: describe(part) for name, part in value.items()}
    if isinstance(value, list | tuple):
        return [describe(part) for part in value]
    return value
