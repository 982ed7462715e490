"""The bill of materials of an image: CycloneDX 1.6, as JSON.

The same image has the same one, byte for byte: the serial number comes from the content, and the
timestamp is the time that no file of the image is younger than.
"""

from __future__ import annotations

import hashlib
import json
import uuid
from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from pipeline import __version__
from pipeline.attestations.licences import find_expression, find_spdx_id
from pipeline.attestations.purls import make_package_url, make_python_url

if TYPE_CHECKING:
    from cyclonedx.model import Property
    from cyclonedx.model.component import Component
    from cyclonedx.model.license import License

FILE = "sbom.cdx.json"
_NAMESPACE = uuid.UUID("f6a7d6a2-9f63-4a5c-8d0f-57c8f3f7c1a4")  # of serial numbers; drawn once
_PREFIX = "phantom-image:"
SOURCE, SOURCE_VERSION = f"{_PREFIX}source-package", f"{_PREFIX}source-version"
"""The properties of a package that name its source package."""
_NOTHING: Mapping[str, Any] = {}


def make_sbom(manifest: Mapping[str, Any], inventory: Mapping[str, Any]) -> str:
    """The document's text, of a build's manifest and what `stages/inventory.py` has read."""
    from cyclonedx.model.bom import Bom, BomMetaData
    from cyclonedx.model.dependency import Dependency
    from cyclonedx.output.json import JsonV1Dot6

    inputs = manifest["inputs"]
    subject = _make_subject(manifest["appliance"], manifest["root_filesystem"]["sha256"])
    parts = [*_packages(inputs, inventory), *_python_packages(inputs, inventory)]
    made = datetime.fromtimestamp(inventory["epoch"], UTC)
    bom = Bom(
        serial_number=uuid.UUID(int=0),
        metadata=BomMetaData(timestamp=made, component=subject),
        components=parts,
    )
    bom.metadata.tools.components.add(_make_tool())
    depends = [Dependency(ref=part.bom_ref) for part in parts]
    bom.dependencies = [Dependency(ref=subject.bom_ref, dependencies=depends), *depends]
    document = json.loads(JsonV1Dot6(bom).output_as_string())
    document["components"] = sorted(
        document.get("components", ()), key=lambda each: each["bom-ref"]
    )
    return with_images(document, manifest)


def with_images(document: Mapping[str, Any], manifest: Mapping[str, Any]) -> str:
    """The text of a build's document, with the files that its manifest has now: the parts of what
    the document is about."""
    subject = document["metadata"]["component"]
    files = {image["file"]: image for image in manifest["images"]}
    parts = [_describe_file(image) for _, image in sorted(files.items())]
    about = {**document["metadata"], "component": {**subject, "components": parts}}
    told = {**document, "metadata": about, "serialNumber": uuid.UUID(int=0).urn}
    digest = hashlib.sha256(json.dumps(told, sort_keys=True).encode()).hexdigest()
    told["serialNumber"] = uuid.uuid5(_NAMESPACE, digest).urn
    return json.dumps(told, indent=2, sort_keys=True, ensure_ascii=False) + "\n"


def _describe_file(image: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "type": "file",
        "bom-ref": f"file:{image['file']}",
        "name": image["file"],
        "hashes": [{"alg": "SHA-256", "content": image["sha256"]}],
        "properties": [{"name": f"{_PREFIX}disk-sha256", "value": image["disk_sha256"]}],
    }


def _make_subject(about: Mapping[str, Any], root_sha256: str) -> Component:
    from cyclonedx.model.component import Component, ComponentType

    return Component(
        type=ComponentType.OPERATING_SYSTEM,
        name=about["name"],
        version=about["version"],
        description=about["summary"],
        bom_ref=f"{about['name']}@{about['build']}",
        hashes=_hashes(root_sha256),
        properties=_properties(build=about["build"], hashed="root file system"),
    )


def _make_tool() -> Component:
    from cyclonedx.model.component import Component, ComponentType

    return Component(type=ComponentType.APPLICATION, name="phantom-image", version=__version__)


def _packages(inputs: Mapping[str, Any], inventory: Mapping[str, Any]) -> Iterator[Component]:
    """What the image's package manager knows: dpkg's database is read in the image itself, of
    another manager the manifest has the list."""
    known = {_identify(each): each for each in inputs["packages"]}
    listed = inventory["packages"] if inventory["kind"] == "deb" else inputs["packages"]
    for package in {_identify(each): each for each in listed}.values():
        url = make_package_url(package, inventory["kind"], inventory["distribution"])
        yield _make_component(
            package,
            url,
            sha256=known.get(_identify(package), _NOTHING).get("sha256"),
            properties=_properties(
                **{
                    "source-package": package.get("source"),
                    "source-version": package.get("source_version"),
                },
                architecture=package["architecture"],
            ),
        )


def _python_packages(
    inputs: Mapping[str, Any], inventory: Mapping[str, Any]
) -> Iterator[Component]:
    """What pip, or a program like it, installed. Digests are those of wheels."""
    wheels = inputs.get("python", _NOTHING).get("wheels", ())
    digests = {make_python_url(each): each["sha256"] for each in wheels}
    found: dict[Any, list[Mapping[str, Any]]] = {}
    for package in inventory["python"]:
        found.setdefault(make_python_url(package), []).append(package)
    for url, packages in found.items():
        places = _properties(*(("place", each["place"]) for each in packages))
        yield _make_component(packages[0], url, sha256=digests.get(url), properties=places)


def _identify(package: Mapping[str, Any]) -> tuple[str, str, str]:
    return package["name"], package["version"], package["architecture"]


def _make_component(
    package: Mapping[str, Any], url: Any, *, sha256: str | None, properties: Iterable[Property]
) -> Component:
    from cyclonedx.model.component import Component, ComponentType

    return Component(
        type=ComponentType.LIBRARY,
        name=package["name"],
        version=package["version"],
        purl=url,
        bom_ref=url.to_string(),
        licenses=_licences(package.get("licences", ())),
        hashes=_hashes(sha256),
        properties=properties,
    )


def _licences(names: Sequence[str]) -> Iterator[License]:
    from cyclonedx.model.license import DisjunctiveLicense, LicenseExpression

    expression = find_expression(names)
    if expression is not None:
        yield LicenseExpression(expression)
        return
    for name in names:
        spdx = find_spdx_id(name)
        yield DisjunctiveLicense(name=name) if spdx is None else DisjunctiveLicense(id=spdx)


def _hashes(sha256: str | None) -> list[Any]:
    from cyclonedx.model import HashAlgorithm, HashType

    return [] if sha256 is None else [HashType(alg=HashAlgorithm.SHA_256, content=sha256)]


def _properties(*pairs: tuple[str, str | None], **named: str | None) -> list[Property]:
    from cyclonedx.model import Property

    return [
        Property(name=f"{_PREFIX}{name}", value=value)
        for name, value in (*pairs, *named.items())
        if value is not None
    ]
