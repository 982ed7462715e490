"""`phantom-image verify`: whether documents and images are what somebody signed."""

from __future__ import annotations

from argparse import ArgumentParser, Namespace
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from pipeline import records
from pipeline.attestations import signing, verification
from pipeline.attestations.verification import Finding, find
from pipeline.build.manifest import DOCUMENTS, load_manifest
from pipeline.build.sites import open_site
from pipeline.clouds import make_cloud
from pipeline.commands import options as shared
from pipeline.commands.manifest import check, make_error
from pipeline.commands.output import format_place, print_json, print_line, print_table
from pipeline.definitions.signing import load_signing
from pipeline.errors import UsageError
from pipeline.model import Progress
from pipeline.progress import failing
from pipeline.workspace import Workspace

EXAMPLES = (
    "phantom-image verify web --allowed-signers signers",
    "phantom-image verify manifest.json --image web-1.0-0123456789ab.gz",
    "phantom-image verify build/web/latest --site amazon --json",
)


def add_arguments(parser: ArgumentParser) -> None:
    """Adds the command's arguments."""
    add = parser.add_argument
    shared.add(parser, "manifest", "of")
    what = parser.add_mutually_exclusive_group()
    what.add_argument(
        "--image", type=Path, metavar="FILE", help="this image, and not those beside the manifest"
    )
    what.add_argument(
        "--site", action="append", metavar="SITE", help="what this site holds; commas or again"
    )
    what.add_argument("--documents", action="store_true", help="no image, the documents alone")
    add(
        "--allowed-signers",
        type=Path,
        metavar="FILE",
        help="whose signatures count (ssh-keygen(1)); else as sites.yaml says",
    )
    shared.add(parser, "json")


def run(options: Namespace) -> int | None:
    """Checks and prints what came of it. Raises the first failure's error, with the others in it;
    with --json, returns its exit status."""
    path = shared.find_named_manifest(options)
    if options.image is not None and not options.image.is_file():
        raise UsageError(
            f"there is no image {str(options.image)!r}", todo="name a file, or leave --image out"
        )
    with shared.open_shown_workspace(options, uses_store=False) as workspace:
        findings = list(_verify(path, options, workspace))
    failed = [finding for finding in findings if finding.error is not None]
    if options.json:
        print_json(_describe(path, findings))
        return failed[0].error.exit_code if failed and failed[0].error else None
    print_table([(each.what, each.said) for each in findings if each.error is None])
    for finding in failed:
        assert finding.error is not None
        error = finding.error
        others = [f"also: {each.error}" for each in failed if each is not finding]
        error.detail = "\n".join(filter(None, [error.detail, *others])) or None
        raise error
    print_line(f"{path}: verified")
    return None


def _describe(path: Path, findings: list[Finding]) -> dict[str, Any]:
    return {
        "manifest": str(path),
        "verified": all(finding.error is None for finding in findings),
        "checks": [
            {
                "of": finding.what,
                "passed": finding.error is None,
                "said": finding.said,
                "error": None if finding.error is None else type(finding.error).__name__,
            }
            for finding in findings
        ],
    }


def _verify(path: Path, options: Namespace, workspace: Workspace) -> Iterator[Finding]:
    """What comes of each check, in the order of what rests on what: a manifest whose signature does
    not count is not read."""
    with shared.reading(path) as real:
        data = _read(real)
    folder = real.parent
    with _allowed(options) as allowed:
        signed = find(path.name, lambda: verification.check_signature(data, real, allowed))
        yield signed
        if signed.error is not None:
            return
        content = _load(path, real)
        for name in DOCUMENTS:
            told = content[name]
            if told is not None:
                check = partial(verification.check_document, folder, told, allowed)
                yield find(told["file"], check)
    if options.site:
        yield from _verify_sites(content, options, workspace)
    elif not options.documents:
        yield from _verify_images(content, folder, options, workspace)


def _read(file: Path) -> bytes:
    """A file's content. Raises ManifestError for what is no manifest's, OSError."""
    try:
        return records.read_bytes(file)
    except records.Unfit:
        load_manifest(file)  # raises the error
        raise


@contextmanager
def _allowed(options: Namespace) -> Iterator[Path | None]:
    """The file of allowed signers that the command line or the settings name."""
    shared.load_site_order(options)  # whose file is checked with it
    named: Path | None = options.allowed_signers
    with signing.allowed_signers(load_signing(options.sites), named) as allowed:
        yield allowed


def _load(path: Path, real: Path) -> dict[str, Any]:
    """A manifest that is as its schema says. Raises ManifestError."""
    row = check(path)
    if not row["valid"]:
        raise make_error([row], 1)
    return load_manifest(real)


def _verify_images(
    content: Mapping[str, Any], folder: Path, options: Namespace, workspace: Workspace
) -> Iterator[Finding]:
    """The image that is named, or all that the manifest names and that lie beside it."""
    images = content["images"]
    wanted = {image["file"]: folder / image["file"] for image in images}
    if options.image is not None:
        wanted = {str(options.image): options.image}
    for name, file in wanted.items():
        fitting = [each for each in images if options.image is not None or each["file"] == name]
        progress = workspace.progress(f"verify {name}")
        progress.step("reading the image")
        finding = find(name, partial(verification.check_image, file, fitting, progress))
        _end(progress, finding)
        yield finding


def _verify_sites(
    content: Mapping[str, Any], options: Namespace, workspace: Workspace
) -> Iterator[Finding]:
    for site in shared.load_sites(options):
        progress = workspace.progress(f"verify {site.name}")
        published = list(verification.published_at(content, site.name))
        with open_site(make_cloud(site), workspace) as cloud:
            for publication, image in published:
                look = partial(verification.check_published, cloud, publication, image, progress)
                with failing(progress):
                    finding = find(
                        f"{publication.image_id} at {format_place(vars(publication))}", look
                    )
                yield finding
        _end(progress, finding)


def _end(progress: Progress, finding: Finding) -> None:
    if finding.error is None:
        progress.finish("as the manifest says")
    else:
        progress.fail("not as the manifest says")
