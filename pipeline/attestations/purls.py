"""Package URLs, by which scanners and databases of vulnerabilities know packages."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from packageurl import PackageURL


def make_package_url(
    package: Mapping[str, Any], kind: str | None, distribution: Mapping[str, str]
) -> PackageURL:
    """The URL of a package of a distribution. `kind` is the type of its manager, such as `deb`.
    `distro` and `upstream`, where the source is called otherwise, are as scanners expect them."""
    from packageurl import PackageURL

    vendor, version = distribution["id"], package["version"]
    told = {
        "arch": package["architecture"],
        "distro": "-".join(filter(None, (vendor, distribution["version"]))),
    }
    if kind == "rpm" and ":" in version:
        told["epoch"], version = version.split(":", 1)
    source, source_version = package.get("source"), package.get("source_version")
    if source is not None and (source, source_version) != (package["name"], package["version"]):
        same = source_version == package["version"]
        told["upstream"] = source if same else f"{source}@{source_version}"
    return PackageURL(kind or "generic", vendor, package["name"], version, told)


def make_python_url(package: Mapping[str, Any]) -> PackageURL:
    """The URL of a package of Python's index."""
    from packageurl import PackageURL

    return PackageURL("pypi", None, package["name"], package["version"])
