"""The documents beside a build's manifest, made, found again, and made anew for further images."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pipeline import records
from pipeline.attestations import provenance, sbom
from pipeline.attestations.documents import read_document, write_document
from pipeline.tools import own_commit
from pipeline.workspace import Workspace

_LIST = {"metadata": {"component": dict}}
_STATEMENT = {
    "_type": str,
    "subject": list,
    "predicate": {
        "buildDefinition": {"externalParameters": {"sites": list}},
        "runDetails": dict,
    },
}


def attest(
    folder: Path, content: Mapping[str, Any], inventory: Mapping[str, Any], workspace: Workspace
) -> dict[str, Any]:
    """Writes a build's bill of materials and provenance into its folder, signed where a key is
    configured, and returns its manifest with their digests. Raises DefinitionError."""
    listed = sbom.make_sbom(content, inventory)
    content = {**content, "sbom": write_document(folder / sbom.FILE, listed, workspace.sign)}
    made = provenance.make_provenance(
        content,
        json.loads(listed)["components"],
        identity=workspace.identity,
        commit=own_commit.describe_commit(),
    )
    written = write_document(folder / provenance.FILE, made, workspace.sign)
    return {**content, "provenance": written}


def attest_images(folder: Path, content: Mapping[str, Any], workspace: Workspace) -> dict[str, Any]:
    """A build's manifest, with documents that name all its images. Those that builds of earlier
    versions lack are not made. Raises DefinitionError, and as `check_attested`."""
    if None in (content["sbom"], content["provenance"]):
        return dict(content)
    listed = records.parse(read_document(folder, content["sbom"]), _LIST)
    statement = records.parse(read_document(folder, content["provenance"]), _STATEMENT)
    written = write_document(folder / sbom.FILE, sbom.with_images(listed, content), workspace.sign)
    content = {**content, "sbom": written}
    text = provenance.with_images(statement, content)
    written = write_document(folder / provenance.FILE, text, workspace.sign)
    return {**content, "provenance": written}


def check_attested(folder: Path, content: Mapping[str, Any]) -> None:
    """Checks that the documents in a build's folder are those that its manifest names. Raises
    TamperedError, GoneError."""
    for told in (content["sbom"], content["provenance"]):
        if told is not None:
            read_document(folder, told)
