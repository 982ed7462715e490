"""`phantom-image nightly`: builds and publishes of all appliances what changed."""

from __future__ import annotations

import re
import sys
import time
from argparse import ArgumentParser, ArgumentTypeError, Namespace
from collections.abc import Iterable, Sequence
from dataclasses import replace
from datetime import datetime
from fnmatch import fnmatchcase
from functools import partial
from pathlib import Path
from typing import Any

from pipeline.attestations.vulnerabilities import read_tracker
from pipeline.build.plan import make_plan
from pipeline.build.prune import find_starts
from pipeline.catalog.pages import Site as CatalogSite
from pipeline.commands import night_install, tracker
from pipeline.commands import options as shared
from pipeline.commands.catalog import write_catalog
from pipeline.commands.night_output import print_night
from pipeline.commands.output import cell, print_error, print_json, print_lines, print_table
from pipeline.definitions.appliance import list_appliances, load_appliance
from pipeline.definitions.nightly import NightSettings, load_nightly
from pipeline.definitions.phantoms import load_phantoms
from pipeline.errors import NightFailedError, NightNotRunError, PhantomError, UsageError
from pipeline.model import Appliance, Site, format_size, parse_size
from pipeline.nightly import reports
from pipeline.nightly.exposure import judge
from pipeline.nightly.hooks import run_hooks
from pipeline.nightly.night import Night, State
from pipeline.nightly.order import STAGE_SECONDS, STORE_BYTES, Order
from pipeline.nightly.places import Places
from pipeline.nightly.report_json import to_report
from pipeline.nightly.run import look_ahead, run_night
from pipeline.nightly.survey import Task
from pipeline.tools.snapshot import Snapshot
from pipeline.workspace import Workspace

EXAMPLES = (
    "phantom-image nightly",
    "phantom-image nightly --only 'web-*' --site hotel",
    "phantom-image nightly --dry-run",
    "phantom-image nightly --show --time 01:15",
)


def add_arguments(parser: ArgumentParser) -> None:
    """Adds the command's arguments."""
    add = parser.add_argument
    add("appliance", nargs="*", metavar="APPLIANCE", help="appliances (all that have definitions)")
    add("--only", action="append", metavar="GLOB", help="those of them with such names, as 'web-*'")
    shared.add(parser, "sites")
    add("--no-publish", action="store_true", help="build and boot, and send nothing")
    add("--force", action="store_true", help="build what is unchanged, too")
    text = "leave alone what was built since: 12h, 3d, 2026-01-31, 2026-01-31T02:30"
    add("--since", type=_moment, metavar="WHEN", help=text)
    add("--jobs", type=_count, metavar="N", help="cores that stages keep busy (all)")
    text = f"minutes that a stage may take ({STAGE_SECONDS / 60:.0f})"
    add("--stage-limit", type=_minutes, default=STAGE_SECONDS, metavar="MINUTES", help=text)
    text = f"how much of the store stays ({format_size(STORE_BYTES)}); `all`: everything"
    add("--store-size", type=_size, default=STORE_BYTES, metavar="SIZE", help=text)
    add("--dry-run", action="store_true", help="tell what would be built, and why; build nothing")
    shared.add(parser, "verbose", "json")
    night_install.add_arguments(parser)


def run(options: Namespace) -> int | None:
    """Runs a night, writes its reports and prints what came of it. Raises NightFailedError where
    something failed, NightNotRunError where nothing ran, UsageError."""
    if night_install.run_install(options):
        return None
    if options.dry_run:
        _look_ahead(options)
        return None
    reports.check()
    settings = load_nightly(options.sites)
    location = _find_tracker(options, settings)
    with shared.open_shown_workspace(options, uses_store=False, signs=True) as workspace:
        order = _make_order(options, workspace)
        night = run_night(order, workspace)
        night, ended = _finish(night, workspace, settings, location)
    folder = Places(workspace).folder
    history, paths = reports.history(folder), reports.Paths.of(night, folder)
    try:
        with workspace.errors():
            reports.write(night, history, folder)
    except PhantomError as error:  # a full disk is what people want to be told of
        ended = error
        told = f"the report could not be written: {error.where}: {error.what}"
        night = replace(night, warnings=(*night.warnings, told))
    warnings = run_hooks(settings.hooks, night, history, paths)
    if options.json:
        print_json(to_report(night))
    else:
        print_night(night, paths.page)
    print_lines((f"warning: {warning}" for warning in warnings), file=sys.stderr)
    if night.interrupted:
        raise KeyboardInterrupt(night.interrupted)
    ended = ended or _find_error(night, paths.page)
    if ended is None:
        return None
    if not options.json:
        raise ended
    print_error(ended)  # standard output has its one value already
    return ended.exit_code


def _find_tracker(options: Namespace, settings: NightSettings) -> str | None:
    """What says which vulnerabilities are known. Raises UsageError where a file is not there, or
    where there is nothing to fail by."""
    location = tracker.find_location(options)
    if location is None and settings.fail_above is not None:
        raise UsageError(
            "`nightly: fail_above` has nothing to go by",
            where=str(options.sites),
            todo="name the export of Debian's security tracker as `vulnerabilities`",
        )
    return location


def _finish(
    night: Night, workspace: Workspace, settings: NightSettings, location: str | None
) -> tuple[Night, PhantomError | None]:
    """The night with what is done behind its builds: known vulnerabilities are looked up, and the
    catalog is written. What goes wrong there is a warning of the night too."""
    ended, known = None, None
    if night.interrupted or night.could_not_run is not None:
        return night, None
    if location is not None:
        try:
            known = tracker.find_file(location, workspace)
            night = judge(night, workspace.build, read_tracker(known), settings.fail_above)
        except PhantomError as error:
            ended, night = error, _warn(night, "known vulnerabilities cannot be told", error)
    if settings.catalog is not None:
        site = CatalogSite(title=settings.catalog.title, url=settings.catalog.url)
        try:
            folder = settings.catalog.folder
            made = write_catalog(workspace, folder, site, known=known, skip_broken=True)
            for left_out in made.skipped:
                night = _warn(night, "the catalog leaves a build out", left_out)
        except PhantomError as error:
            ended, night = error, _warn(night, "the catalog could not be written", error)
    return night, ended


def _warn(night: Night, what: str, error: PhantomError) -> Night:
    where = f"{error.where}: " if error.where else ""
    return replace(night, warnings=(*night.warnings, f"{what}: {where}{error.what}"))


def _find_error(night: Night, page: Path) -> PhantomError | None:
    """What the command ends with where not all is well."""
    if night.could_not_run is not None:
        return NightNotRunError(
            f"the night could not run: {night.could_not_run}",
            todo="mend that; what should have been built, the next night builds",
        )
    bad = [each for each in night.outcomes if each.state in (State.FAILED, State.SKIPPED)]
    if not bad:
        return None
    names = ", ".join(dict.fromkeys(each.appliance for each in bad))
    return NightFailedError(
        f"{len(bad)} of {len(night.outcomes)} failed or were skipped: {names}",
        todo=f"{page} says why; the next night tries them again",
    )


# ---- what is asked for


def _make_order(options: Namespace, workspace: Workspace) -> Order:
    def plan(appliance: Appliance, sites: Sequence[Site], snapshot: Snapshot) -> Any:
        return make_plan(
            appliance, sites, workspace.store, builds=workspace.build, snapshot=snapshot
        )

    return Order(
        names=_find_names(options),
        sites=shared.load_sites(options),
        load=lambda name: load_appliance(name, options.images),
        make_plan=plan,
        site_order=tuple(shared.load_site_order(options)),
        publish=not options.no_publish,
        force=options.force,
        since=options.since,
        jobs=options.jobs,
        stage_seconds=options.stage_limit,
        store_bytes=options.store_size,
        find_starts=partial(find_starts, options.images),
        phantoms=tuple(load_phantoms(options.sites).values()),
    )


def _find_names(options: Namespace) -> tuple[str, ...]:
    """The appliances that the options name. Raises UsageError."""
    known = list_appliances(options.images)
    if unknown := [name for name in options.appliance if name not in known]:
        raise UsageError(
            f"there is no appliance {unknown[0]!r} in {options.images}",
            todo=f"name some of {', '.join(known)}, or none for all",
        )
    named = tuple(dict.fromkeys(options.appliance)) or known
    chosen = [name for name in named if _fits(name, options.only)]
    if not chosen:
        raise UsageError(
            f"there is no appliance to build in {options.images}",
            todo="write a definition (`phantom-image new`), or see what --only says",
        )
    return tuple(chosen)


def _fits(name: str, patterns: Iterable[str] | None) -> bool:
    return patterns is None or any(fnmatchcase(name, pattern) for pattern in patterns)


def _moment(text: str) -> float:
    if ago := re.fullmatch(r"([0-9]{1,5})([hd])", text):
        return time.time() - int(ago[1]) * (3600 if ago[2] == "h" else 86_400)
    try:
        return datetime.fromisoformat(text).astimezone().timestamp()
    except (ValueError, OverflowError, OSError) as error:
        raise ArgumentTypeError(f"{text[:40]!r} is no time; write 12h, 3d or 2026-01-31") from error


def _count(text: str) -> int:
    if not re.fullmatch(r"[1-9][0-9]{0,3}", text):
        raise ArgumentTypeError(f"{text[:40]!r} is no number of cores from 1 to 9999")
    return int(text)


def _minutes(text: str) -> float:
    if not re.fullmatch(r"[0-9]{1,5}(\.[0-9]{1,3})?", text) or float(text) == 0:
        raise ArgumentTypeError(f"{text[:40]!r} is no number of minutes from 0.001 to 99999")
    return float(text) * 60


def _size(text: str) -> int | None:
    if text == "all":
        return None
    try:
        return parse_size(text)
    except ValueError as error:
        raise ArgumentTypeError(str(error)) from error


# ---- what is printed


def _look_ahead(options: Namespace) -> None:
    workspace = shared.open_workspace(options)
    order = _make_order(options, workspace)
    rows = [row for task in look_ahead(order, workspace) for row in _rows(task, order)]
    if options.json:
        keys = ("appliance", "site", "action", "why")
        print_json({"appliances": [dict(zip(keys, row, strict=True)) for row in rows]})
        return
    shown = [(*row[:3], cell(row[3])) for row in rows]
    print_table(shown, ("appliance", "site", "what", "why"))


def _rows(task: Task, order: Order) -> list[tuple[str, str, str, list[str]]]:
    """What would be done about each site of an appliance, and why."""
    if task.base is not None:
        why = [f"{task.base}, which it is made of, comes first"]
        return [(task.name, site.name, "later", why) for site in order.sites]
    rows = [
        (task.name, each.site, str(each.state), [each.message or each.because or ""])
        for each in task.outcomes
    ]
    rows += [
        (task.name, site, "build" if task.missing else "send", list(wanted.reasons))
        for site, wanted in task.wanted.items()
    ]
    return sorted(rows, key=lambda row: row[1])
