"""`debconf`: answers to the questions that Debian's packages ask when they are configured."""

from __future__ import annotations

from typing import Any

from pipeline.customizations.customization import Customization, Report
from pipeline.file_copies import TextFile

_TYPES = ("select", "multiselect", "string", "boolean", "note", "text", "title", "error")


def _check(answers: Any, report: Report) -> None:
    if not isinstance(answers, TextFile):
        return
    for number, line in enumerate(answers.text.splitlines(), 1):
        words = line.split()
        if not words or words[0].startswith("#"):
            continue
        told = f"line {number} of {answers.path.name!r}"
        if len(words) > 2 and words[2] == "password":
            report((), f"{told} holds a password; no secret goes into a definition or an image")
        elif len(words) < 3 or words[2] not in _TYPES:
            report((), f"{told} is not `package question type answer`, as debconf-set-selections "
                "reads it")  # fmt: skip


def _answers(answers: TextFile) -> str:
    lines = [line for line in answers.text.splitlines() if line.strip()]
    return "".join(f"{line}\n" for line in lines if not line.lstrip().startswith("#"))


CUSTOMIZATION = Customization(
    key="debconf",
    schema={
        "description": "A file of answers to the questions of Debian's packages, as "
        "debconf-set-selections(1) reads it. They are set before packages are configured.",
        "type": "string",
        "minLength": 1,
        "examples": ["answers.debconf"],
    },
    check=_check,
    answers=_answers,
    text_files=((),),
)
