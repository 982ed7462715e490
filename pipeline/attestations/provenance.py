"""How an image was made: an in-toto statement (v1) with SLSA's provenance (v1), as JSON.

It follows from the manifest and the bill of materials, and has no times: the same build has the
same one, byte for byte.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from pipeline import __version__
from pipeline.attestations.sbom import FILE as SBOM

FILE = "provenance.intoto.json"
STATEMENT = "https://in-toto.io/Statement/v1"
PREDICATE = "https://slsa.dev/provenance/v1"
BUILD_TYPE = "urn:phantom-image:build:1"
BUILDER = "urn:phantom-image:builder"
"""Names the builder, before its identity where one is configured."""
ROOT = "root file system"
_TREE = "phantomTreeSha256"
"""The algorithm of digests of folders: over names, contents and executable bits of their files."""
_PARAMETERS = ("source", "customizations", "pinned_packages", "build_secrets", "build_certificates")


def make_provenance(
    manifest: Mapping[str, Any],
    components: Sequence[Mapping[str, Any]],
    *,
    identity: str | None,
    commit: str | None,
) -> str:
    """The document's text, of a build's manifest and the components of its bill of materials.
    `identity` is the builder's, as whoever checks its signature knows it, and `commit` says which
    version of the program it is."""
    about, inputs = manifest["appliance"], manifest["inputs"]
    told = {name: inputs[name] for name in _PARAMETERS if name in inputs}
    version = __version__ if commit is None else f"{__version__} ({commit})"
    statement = {
        "_type": STATEMENT,
        "subject": list(_subjects(manifest)),
        "predicateType": PREDICATE,
        "predicate": {
            "buildDefinition": {
                "buildType": BUILD_TYPE,
                "externalParameters": {"appliance": dict(about), "sites": _sites(manifest), **told},
                "resolvedDependencies": [*_dependencies(inputs), *map(_package, components)],
            },
            "runDetails": {
                "builder": {
                    "id": f"{BUILDER}:{identity}" if identity else BUILDER,
                    "version": {"phantom-image": version},
                },
                "metadata": {"invocationId": f"{about['name']}/{about['build']}"},
                "byproducts": _byproducts(manifest),
            },
        },
    }
    return _write(statement)


def with_images(statement: Mapping[str, Any], manifest: Mapping[str, Any]) -> str:
    """The text of a build's statement, with the images that its manifest has now."""
    predicate = statement["predicate"]
    definition = predicate["buildDefinition"]
    parameters = {**definition["externalParameters"], "sites": _sites(manifest)}
    definition = {**definition, "externalParameters": parameters}
    details = {**predicate["runDetails"], "byproducts": _byproducts(manifest)}
    predicate = {**predicate, "buildDefinition": definition, "runDetails": details}
    return _write({**statement, "subject": list(_subjects(manifest)), "predicate": predicate})


def _write(statement: Mapping[str, Any]) -> str:
    return json.dumps(statement, indent=2, ensure_ascii=False) + "\n"


def _sites(manifest: Mapping[str, Any]) -> list[str]:
    return [image["site"] for image in manifest["images"]]


def _subjects(manifest: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """The root file system; each file; and the disk in each compressed file."""
    yield _described(ROOT, manifest["root_filesystem"]["sha256"])
    images = {image["file"]: image for image in manifest["images"]}
    for file, image in sorted(images.items()):
        yield _described(file, image["sha256"])
        if image["compression"] is not None:
            yield _described(f"disk in {file}", image["disk_sha256"])


def _byproducts(manifest: Mapping[str, Any]) -> list[dict[str, Any]]:
    return [_described(SBOM, manifest["sbom"]["sha256"])]


def _described(name: str, sha256: str) -> dict[str, Any]:
    return {"name": name, "digest": {"sha256": sha256}}


def _dependencies(inputs: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """What beside packages the image was made of."""
    definition = inputs["definition"]
    digests = {_TREE: definition["digest"], "gitCommit": definition["commit"]}
    yield {
        "name": "definition",
        "digest": {name: digest for name, digest in digests.items() if digest is not None},
        "annotations": {"dirty": definition["dirty"]},
    }
    base = inputs["source"].get("base_image")
    if base is not None:
        location = base["location"]
        if isinstance(location, Mapping):
            location = f"urn:phantom-image:image:{location['appliance']}/{location['build']}"
        yield {"name": "base image", "uri": location, "digest": {"sha256": base["sha256"]}}
    for element in inputs["elements"]:
        told: dict[str, Any] = {"name": f"element {element['name']}"}
        told["digest"] = {_TREE: element["digest"]}
        if commit := element.get("commit"):
            told["digest"]["gitCommit"] = commit
            told["annotations"] = {"dirty": element["dirty"]}
        yield told


def _package(component: Mapping[str, Any]) -> dict[str, Any]:
    told: dict[str, Any] = {"uri": component["purl"]}
    for known in component.get("hashes", ()):
        told["digest"] = {"sha256": known["content"]}
    return told
