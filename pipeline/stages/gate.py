"""Looks into a root file system for what no image that others boot should have."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

from pipeline import checks
from pipeline.disk.contents import Ext4Contents
from pipeline.disk.ext4_reader import Reader
from pipeline.stages.base import HERE_ONLY, Context, Stage
from pipeline.store import Artifact


@dataclass(frozen=True, kw_only=True)
class CheckContents(Stage):
    """Its facts are all that the rules find, whatever the definition waives: `findings`.

    Raises FileSystemError.
    """

    name: ClassVar[str] = "gate"
    revision: ClassVar[int] = 2

    rules: tuple[str, ...]
    """The ids of all rules, so that a new one looks at what was built before."""
    host_name: str = field(default="", metadata=HERE_ONLY)
    """The build host's, which the image should not have."""

    def run(self, inputs: Sequence[Artifact], context: Context) -> Mapping[str, Any]:
        (root,) = inputs
        context.progress.step("looking for what images should not have")
        with Reader(root.file("root.ext4")) as reader:
            findings = checks.check_image(Ext4Contents(reader), self.host_name)
        return {"findings": [finding.to_facts() for finding in findings]}
