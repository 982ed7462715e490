"""`phantom-image doctor`: what this host lacks, what weakens its sites, and what mends it."""

from __future__ import annotations

from argparse import ArgumentParser, Namespace
from collections.abc import Iterator, Sequence
from pathlib import Path

from pipeline.clouds import clouds, make_cloud
from pipeline.commands import options as shared
from pipeline.commands.output import cell, print_json, print_table
from pipeline.definitions.phantoms import load_phantoms
from pipeline.definitions.sites import BUILT_IN, load_sites
from pipeline.errors import HostError, PhantomError
from pipeline.machine import host
from pipeline.machine.requirements import Finding

_WORDS = {True: "ok", None: "warning", False: "missing"}

EXAMPLES = ("phantom-image doctor",)


def add_arguments(parser: ArgumentParser) -> None:
    """Adds the command's arguments."""
    shared.add(parser, "json")


def run(options: Namespace) -> int:
    """Prints what was looked at; the status is that of HostError where something is missing."""
    findings = [*host.diagnose(shared.store_folder(options)), *find_risks(options.sites)]
    if options.json:
        print_json([vars(finding) for finding in findings])
    else:
        print_table([_row(finding) for finding in findings])
    return HostError.exit_code if any(finding.ok is False for finding in findings) else 0


def _row(finding: Finding) -> tuple[str, ...]:
    """How it is, what it is, and what was found; what mends it stands below."""
    found = f"{finding.found} - {finding.meaning}"
    mend = [] if finding.mend is None else [f"mend: {finding.mend}"]
    return _WORDS[finding.ok], finding.name, cell([found, *mend])


def find_risks(path: Path) -> Iterator[Finding]:
    """What weakens the security of the sites and Phantoms in sites.yaml; one finding that all is
    well for each where nothing does."""
    try:
        sites = load_sites(path, clouds())
    except PhantomError as error:
        yield _make_finding(str(path), error)
        return
    for site in sites:
        if site.where == BUILT_IN:
            continue
        name = f"site {site.name}"
        try:
            risks = make_cloud(site).find_risks()
        except PhantomError as error:
            yield _make_finding(name, error)
            continue
        yield from _tell(name, risks)
    try:
        phantoms = load_phantoms(path)
    except PhantomError as error:
        yield _make_finding(str(path), error)
        return
    for phantom in phantoms.values():
        yield from _tell(f"Phantom {phantom.name}", phantom.find_risks())


def _tell(name: str, risks: Sequence[str]) -> Iterator[Finding]:
    for risk in risks:
        yield Finding(name=name, ok=None, found=risk, meaning="security")
    if not risks:
        yield Finding(name=name, ok=True, found="no setting weakens it", meaning="security")


def _make_finding(name: str, error: PhantomError) -> Finding:
    return Finding(
        name=name,
        ok=None,
        found=error.what,
        meaning=(error.detail or "images cannot be published there").splitlines()[-1],
        mend=error.todo,
    )
