"""`phantom-image check FILE`: looks for what no image that others boot should have."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from functools import partial
from pathlib import Path

from pipeline import checks
from pipeline.checks.image_file import opened
from pipeline.checks.report import count, describe, explain, say_count
from pipeline.checks.rule import Finding
from pipeline.commands.image_files import opened_disk, stoppable
from pipeline.commands.output import print_json, print_line, print_table
from pipeline.errors import GateError
from pipeline.model import Progress
from pipeline.store import Store


def check_file(file: Path, declared: str | None, store: Store, progress: Progress) -> list[Finding]:
    """What counts, today, of what the rules find in an image file of any format that base images
    may have. Raises UsageError, ImageFormatError, and what `checks.image_file` raises."""
    found = stoppable("check", partial(_check, file, declared, store, progress))
    counted, _ = checks.judge(found, (), datetime.now(UTC).date())
    return counted


def _check(file: Path, declared: str | None, store: Store, progress: Progress) -> list[Finding]:
    with opened_disk("check", file, declared, store, progress) as disk:
        progress.step("looking for what images should not have")
        with opened(disk.disk, disk.work, disk.log, store, progress) as contents:
            return checks.check_image(contents)


def tell_programs(file: Path, findings: Sequence[Finding]) -> int:
    """Prints what was found as JSON, and returns the command's exit status."""
    figures = {"file": str(file), "rules": len(checks.RULES), **count(findings)}
    print_json({**figures, "findings": [describe(finding) for finding in findings]})
    return GateError.exit_code if count(findings)["errors"] else 0


def tell(file: Path, findings: Sequence[Finding]) -> None:
    """Prints what was found. Raises GateError where one of it is an error."""
    print_line(f"{file}: {say_count(findings)}, by {len(checks.RULES)} rules")
    rows = [
        (checks.RULES[each.rule].severity, each.rule, each.path, each.detail) for each in findings
    ]
    if rows:
        print_table(rows, indent=2)
    for rule, (reason, todo) in explain(findings).items():
        print_line()
        print_line(f"{rule}: {reason}")
        print_line(f"  do: {todo}")
    if count(findings)["errors"]:
        raise GateError(
            f"the image breaks rules for images that others boot: {say_count(findings)}",
            where=str(file),
            todo="mend the errors that are listed above",
        )
