"""The command line: the only place that prints and exits."""

from __future__ import annotations

import argparse
import json
import os
import signal
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline import __version__
from pipeline.errors import PhantomError, UsageError

if TYPE_CHECKING:
    from pipeline.model import Appliance, Site
    from pipeline.production import Cleaned, Produced
    from pipeline.workspace import Workspace

DEFAULT_APPLIANCE = "hello-phantom"
STORE = "PHANTOM_STORE"
_FORMATS = ("raw", "qcow2", "vmdk", "vhd", "vdi")
_INTERRUPTED = 130
_CLEAN_HOURS = 24.0  # so long a killed upload may still be gone on with


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command; its exit status. 0: done; the statuses of `errors.py`; 2: wrong words."""
    options = _parser().parse_args(arguments)
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, _end)
    try:
        status: int = options.run(options)
        sys.stdout.flush()
        return status
    except PhantomError as error:
        return _report(error, options)
    except KeyboardInterrupt as interrupt:
        print("interrupted; the same command goes on where it can", file=sys.stderr)
        return interrupt.args[0] if interrupt.args else _INTERRUPTED
    except BrokenPipeError:  # whoever read our output has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0


def _end(number: int, _: object) -> None:
    """A polite request to end, from a build server or a closed terminal: as by control-c."""
    raise KeyboardInterrupt(128 + number)


def _report(error: PhantomError, options: argparse.Namespace) -> int:
    if getattr(options, "json", False):
        fields = {"error": type(error).__name__, "exit_code": error.exit_code, "what": error.what}
        more = {"where": error.where, "todo": error.todo, "detail": error.detail}
        log = {"log": str(error.log) if error.log else None}
        print(json.dumps({**fields, **more, **log}, indent=2))
    print(f"{_red('error:')} {error}", file=sys.stderr)
    return error.exit_code


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="phantom-image",
        description="Builds appliances for Phantom: images that boot, fetch their user-data and "
        "configure themselves, published to the clouds that Phantom uses.",
    )
    parser.add_argument("--version", action="version", version=f"phantom-image {__version__}")
    parser.add_argument(
        "--images", type=Path, default=Path("images"), help="folder of definitions (images)"
    )
    parser.add_argument(
        "--sites", type=Path, default=Path("sites.yaml"), help="file of sites (sites.yaml)"
    )
    parser.add_argument(
        "--build", type=Path, default=Path("build"), help="folder of manifests and images (build)"
    )
    verbs = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)

    on_sites = (_appliance, _on_sites, _verbose)
    _verb(verbs, "image", _image, "build, boot, publish, and write the manifest", *on_sites, _json)
    _verb(
        verbs,
        "plan",
        _plan,
        "tell what would be done, and why; writes nothing",
        *(_appliance, _on_sites, _json),
    )
    _verb(verbs, "build", _build, "build and boot, without publishing", *on_sites, _json)
    verb = _verb(
        verbs, "boot", _boot, "start a site's machine, with its console on this terminal", *on_sites
    )
    verb.add_argument("--machine", metavar="NAME", help="of a site's machines this one (the first)")
    _verb(verbs, "publish", _publish, "publish what is built and booted", *on_sites, _json)
    _verb(
        verbs,
        "retire",
        _retire,
        "remove a build's images from its sites",
        *(_appliance, _on_sites, _of_build, _json),
    )
    verb = _verb(
        verbs, "list", _list, "list builds, or with --site the images that a site has", _json
    )
    verb.add_argument("--site", action="append", metavar="SITE", help="list this site's images")
    verb = _verb(
        verbs, "clean", _clean, "tell what crashes left at a site; with --remove, remove it", _json
    )
    verb.add_argument(
        "--site", action="append", metavar="SITE", required=True, help="this site; commas or again"
    )
    verb.add_argument("--remove", action="store_true", help="remove what is found")
    verb.add_argument(
        "--older-than",
        type=float,
        default=_CLEAN_HOURS,
        metavar="HOURS",
        help=f"leave alone what is younger: it may be at work ({_CLEAN_HOURS:g})",
    )
    pin = "fetch the base image of a definition, show it, and write its digest there"
    _verb(verbs, "pin", _pin, pin, _appliance, _json)
    _verb(verbs, "show", _show, "show a build's manifest", _appliance, _of_build, _json)
    inspect = "tell what an image file is, which clouds it would boot on, and why not"
    verb = _verb(verbs, "inspect", _inspect, inspect, _verbose, _json)
    verb.add_argument("file", type=Path, metavar="FILE", help="a disk image; it is only read")
    verb.add_argument(
        "--format", choices=_FORMATS, help="what it must be, where it does not tell it itself"
    )
    doctor = "look at this host: what is missing, and what mends it"
    _verb(verbs, "doctor", _doctor, doctor, _json)
    verb = _verb(verbs, "schema", _schema, "print the JSON Schema of definitions, for editors")
    verb.add_argument("--sites", dest="of_sites", action="store_true", help="that of sites.yaml")
    verb = _verb(verbs, "gc", _gc, "evict what was used longest ago from the store", _json)
    verb.add_argument(
        "--size", default="20GiB", help="how much may stay (20GiB); 0B evicts everything"
    )
    return parser


def _verb(
    verbs: Any, name: str, run: Any, help: str, *options: Callable[[argparse.ArgumentParser], None]
) -> argparse.ArgumentParser:
    """A command, with the options that it shares with others."""
    verb: argparse.ArgumentParser = verbs.add_parser(name, help=help, description=help)
    verb.set_defaults(run=run)
    for add in options:
        add(verb)
    return verb


def _appliance(verb: argparse.ArgumentParser) -> None:
    verb.add_argument(
        "appliance",
        nargs="?",
        default=DEFAULT_APPLIANCE,
        help=f"name or definition ({DEFAULT_APPLIANCE})",
    )


def _on_sites(verb: argparse.ArgumentParser) -> None:
    verb.add_argument(
        "--cloud", action="append", metavar="CLOUD", help="the sites of this cloud; commas or again"
    )
    verb.add_argument("--site", action="append", metavar="SITE", help="this site; commas or again")


def _of_build(verb: argparse.ArgumentParser) -> None:
    verb.add_argument("--of", default="latest", metavar="BUILD", help="the build (latest)")


def _verbose(verb: argparse.ArgumentParser) -> None:
    verb.add_argument("-v", "--verbose", action="store_true", help="show what programs print")


def _json(verb: argparse.ArgumentParser) -> None:
    verb.add_argument("--json", action="store_true", help="print JSON")


# ---- what the commands do


def _image(options: argparse.Namespace) -> int:
    return _produce(options, publish=True)


def _build(options: argparse.Namespace) -> int:
    return _produce(options, publish=False)


def _publish(options: argparse.Namespace) -> int:
    from pipeline.plan import make_plan
    from pipeline.reasons import explain

    appliance, sites = _load(options)
    workspace = _workspace(options, None)
    plan = make_plan(appliance, sites, workspace.store, builds=workspace.build)
    steps = explain(plan, workspace.store, {})
    missing = [step.stage.title for step in steps if step.action == "build"]
    if missing:
        raise UsageError(
            f"{appliance.name} is not built: {', '.join(missing)}",
            todo="`phantom-image image` builds and publishes",
        )
    return _produce(options, publish=True)


def _produce(options: argparse.Namespace, *, publish: bool) -> int:
    from pipeline.production import produce
    from pipeline.progress import Reporter

    appliance, sites = _load(options)
    started = time.monotonic()
    with Reporter(sys.stderr, verbose=options.verbose).shown() as reporter:
        workspace = _workspace(options, reporter)
        produced = produce(appliance, sites, workspace, publish=publish)
    if options.json:
        print(json.dumps(_summary(produced), indent=2))
    else:
        _print_summary(produced, time.monotonic() - started)
    return 0


def _plan(options: argparse.Namespace) -> int:
    from pipeline.plan import make_plan
    from pipeline.production import read_stages
    from pipeline.reasons import explain

    appliance, sites = _load(options)
    workspace = _workspace(options, None)
    plan = make_plan(appliance, sites, workspace.store, builds=workspace.build, keep=False)
    steps = explain(plan, workspace.store, read_stages(workspace, appliance.name))
    if options.json:
        stages = [
            {
                "stage": step.stage.title,
                "key": step.stage.key,
                "action": step.action,
                "reasons": list(step.reasons),
            }
            for step in steps
        ]
        told = {
            "appliance": appliance.name,
            "base_image": None if plan.base is None else str(plan.base.path),
            "stages": stages,
        }
        print(json.dumps(told, indent=2))
        return 0
    if plan.base is not None:
        print(f"starts from {plan.base.path}")
    width = max(len(step.stage.title) for step in steps)
    for step in steps:
        first, *others = step.reasons or ("",)
        colon = ": " if first else ""
        print(f"{step.stage.title:{width}}  {step.stage.key[:12]}  {step.action}{colon}{first}")
        for reason in others:
            print(f"{'':{width}}  {'':12}  {'':{len(step.action)}}  {reason}")
    return 0


def _boot(options: argparse.Namespace) -> int:
    from pipeline.interactive import run_machine
    from pipeline.progress import Reporter
    from pipeline.tools import run

    appliance, sites = _load(options)
    if len(sites) != 1:
        names = ", ".join(site.name for site in sites)
        raise UsageError(f"one machine boots at a time; name one of {names} with --site")
    with ExitStack() as stack:
        with Reporter(sys.stderr, verbose=options.verbose).shown() as reporter:
            machine = run_machine(
                appliance, sites[0], _workspace(options, reporter), options.machine
            )
            command, notes = stack.enter_context(machine)
        for note in notes:
            print(note, file=sys.stderr)
        return run.attach(command)


def _retire(options: argparse.Namespace) -> int:
    from pipeline.production import retire

    appliance, sites = _load(options)
    workspace = _workspace(options, None)
    found = _read_manifest(workspace, appliance.name, options.of)
    retired = retire(found, sites, workspace)
    if options.json:
        print(json.dumps([vars(each) for each in retired], indent=2))
        return 0
    for each in retired:
        print(f"retired {each.image_id} at {_place(vars(each))}")
    if not retired:
        print("nothing to retire: this build is published at none of these sites")
    return 0


def _list(options: argparse.Namespace) -> int:
    from pipeline import manifest
    from pipeline.clouds import clouds
    from pipeline.production import opened

    workspace = _workspace(options, None)
    rows: list[dict[str, Any]] = []
    if options.site:
        for site in _sites(options):
            cloud = clouds()[site.cloud](site)
            with opened(cloud, workspace):
                rows += [
                    {"site": each.site, "image_id": each.image_id, "location": each.location}
                    for each in cloud.list()
                ]
    else:
        for path in sorted(workspace.build.glob("*/*/manifest.json")):
            if path.parent.name == "latest":
                continue
            found = manifest.read_manifest(path.parent.parent, path.parent.name)
            if found is not None:
                latest = path.parent.parent / "latest"
                rows.append(
                    {
                        "appliance": found["appliance"]["name"],
                        "version": found["appliance"]["version"],
                        "build": found["appliance"]["build"],
                        "latest": latest.is_symlink()
                        and latest.readlink() == Path(path.parent.name),
                        "sites": sorted({each["site"] for each in found["publications"]}),
                    }
                )
    if options.json:
        print(json.dumps(rows, indent=2))
    else:
        _print_table(rows)
    return 0


def _clean(options: argparse.Namespace) -> int:
    from pipeline.production import clean

    found = clean(
        _sites(options), _workspace(options, None), hours=options.older_than, remove=options.remove
    )
    refused = [each.error for each in found if each.error is not None]
    if options.json and not refused:
        rows = [{**vars(each.leftover), "removed": each.removed} for each in found]
        print(json.dumps(rows, indent=2))
    elif not options.json:
        _print_cleaned(found, options)
    if refused:
        raise refused[0]
    return 0


def _print_cleaned(found: Sequence[Cleaned], options: argparse.Namespace) -> None:
    for each in found:
        left = each.leftover
        place = _place(vars(left))
        verb = "removed" if each.removed else "left"
        print(f"{verb:8} {place}  {left.kind}  {left.id}  since {left.since}: {left.reason}")
    kept = sum(not each.removed for each in found)
    if not found:
        print("nothing was left behind")
    elif kept and not options.remove:
        print(f"{kept} found; --remove removes what is older than {options.older_than:g} h")


def _pin(options: argparse.Namespace) -> int:
    from pipeline.definition import load_appliance
    from pipeline.model import format_size
    from pipeline.pinning import pin
    from pipeline.progress import Reporter

    appliance = load_appliance(options.appliance, options.images, pinned=False)
    with Reporter(sys.stderr).shown() as reporter:
        pinned = pin(appliance, _workspace(options, reporter))
    if options.json:
        print(json.dumps({"appliance": appliance.name, **vars(pinned)}, indent=2))
        return 0
    packed = f", packed by {pinned.compression}" if pinned.compression else ""
    disk = f", a disk of {format_size(pinned.disk_bytes)}" if pinned.disk_bytes else ""
    print(f"{appliance.name}: {pinned.location}")
    print(f"  {format_size(pinned.bytes)} of {pinned.format}{packed}{disk}")
    if not pinned.written:
        print(f"  sha256 {pinned.sha256}, as the definition says")
        return 0
    print(f"  sha256 {pinned.sha256}")
    before = f", in place of {pinned.previous}" if pinned.previous else ""
    print(f"  written to {pinned.file}{before}")
    return 0


def _show(options: argparse.Namespace) -> int:
    workspace = _workspace(options, None)
    found = _read_manifest(workspace, options.appliance, options.of)
    if options.json:
        print(json.dumps(found, indent=2, ensure_ascii=False))
        return 0
    from pipeline.model import format_size

    appliance = found["appliance"]
    print(f"{appliance['name']} {appliance['version']}, build {appliance['build']}")
    print(f"  {appliance['summary']}")
    print(
        f"  {len(found['inputs']['packages'])} packages, root {found['root_filesystem']['sha256']}"
    )
    for image in found["images"]:
        booted = ", ".join(
            f"booted by {each['machine']} in {each['boot_seconds']:.0f} s"
            for each in image["boot_checks"]
        )
        print(f"  image {image['file']}: {format_size(image['bytes'])}, {booted}")
        print(f"    sha256 {image['sha256']}")
    for each in found["publications"]:
        sandbox = " (sandbox)" if each["sandbox"] else ""
        print(
            f"  published at {_place(each)}{sandbox} as {each['image_id']}, {each['published_at']}"
        )
    return 0


def _doctor(options: argparse.Namespace) -> int:
    from pipeline import host

    findings = host.diagnose(_store_folder(options))
    if options.json:
        print(json.dumps([vars(finding) for finding in findings], indent=2))
    else:
        print(host.format_findings(findings))
    return 14 if any(finding.ok is False for finding in findings) else 0


def _inspect(options: argparse.Namespace) -> int:
    from pipeline.examining import describe, examine, format_description
    from pipeline.progress import Reporter
    from pipeline.tools.disk_formats import named

    declared = options.format and named(options.format)
    with Reporter(sys.stderr, verbose=options.verbose).shown() as reporter:
        store = _workspace(options, reporter).store
        examined = examine(options.file, declared, store, reporter.start("inspect"))
    told = describe(examined)
    print(json.dumps(told, indent=2) if options.json else format_description(told))
    return 0


def _schema(options: argparse.Namespace) -> int:
    from pipeline.clouds import clouds
    from pipeline.definition import appliance_schema, sites_schema

    schema = sites_schema(clouds()) if options.of_sites else appliance_schema()
    print(json.dumps(schema, indent=2))
    return 0


def _gc(options: argparse.Namespace) -> int:
    from pipeline.model import format_size, parse_size

    try:
        limit = parse_size(options.size)
    except ValueError as error:
        raise UsageError(str(error)) from error
    count, freed = _workspace(options, None).store.evict(limit)
    if options.json:
        print(json.dumps({"removed": count, "freed_bytes": freed}))
    else:
        print(f"removed {count} entries, freed {format_size(freed)}")
    return 0


# ---- what they share


def _load(options: argparse.Namespace) -> tuple[Appliance, tuple[Site, ...]]:
    from pipeline.definition import load_appliance

    return load_appliance(options.appliance, options.images), _sites(options)


def _sites(options: argparse.Namespace) -> tuple[Site, ...]:
    from pipeline.clouds import clouds
    from pipeline.definition import load_sites, select_sites

    sites = load_sites(options.sites, clouds())
    return select_sites(sites, _words(getattr(options, "cloud", None)), _words(options.site))


def _words(values: Sequence[str] | None) -> list[str] | None:
    """The words of an option that may be given again, and that may hold commas."""
    words = [word.strip() for value in values or () for word in value.split(",") if word.strip()]
    return words or None


def _store_folder(options: argparse.Namespace) -> Path:
    return Path(os.environ.get(STORE) or options.build / "store").resolve()


def _workspace(options: argparse.Namespace, reporter: Any) -> Workspace:
    from pipeline.model import NoProgress
    from pipeline.store import Store
    from pipeline.tools.namespace import remove_tree
    from pipeline.workspace import Workspace

    return Workspace(
        build=options.build.resolve(),
        store=Store(_store_folder(options), remove_tree),
        progress=reporter.start if reporter is not None else lambda _: NoProgress(),
    )


def _read_manifest(workspace: Workspace, appliance: str, build: str) -> dict[str, Any]:
    from pipeline import manifest

    found = manifest.read_manifest(workspace.folder(appliance), build)
    if found is None:
        raise UsageError(
            f"there is no build {build!r} of {appliance!r}",
            todo="`phantom-image list` lists the builds, `phantom-image image` makes one",
        )
    return found


def _summary(produced: Produced) -> dict[str, Any]:
    return {
        "appliance": produced.appliance,
        "build": produced.build,
        "manifest": str(produced.manifest_path),
        "stages": [
            {"stage": title, "reused": reused, "seconds": round(seconds, 3)}
            for title, reused, seconds in produced.stages
        ],
        "images": produced.manifest["images"],
        "publications": produced.manifest["publications"],
    }


def _print_summary(produced: Produced, seconds: float) -> None:
    from pipeline.model import format_size

    print(
        f"{produced.appliance} {produced.manifest['appliance']['version']}, build {produced.build}"
    )
    for title, reused, took in produced.stages:
        print(f"  {title:28} {'reused' if reused else f'{took:.1f} s'}")
    for image in produced.manifest["images"]:
        print(f"  {image['file']}")
        print(f"    {format_size(image['bytes'])}, sha256 {image['sha256']}")
        if image["compression"] is not None:
            unpacked = format_size(image["disk_bytes"])
            print(f"    unpacked {unpacked}, sha256 {image['disk_sha256']}")
    for each in produced.manifest["publications"]:
        sandbox = " (a sandbox: a local server that has ended)" if each["sandbox"] else ""
        print(f"  published at {_place(each)} as {each['image_id']}{sandbox}")
    print(f"  manifest {_relative(produced.manifest_path)}")
    print(f"done in {seconds:.1f} s")


def _print_table(rows: Sequence[dict[str, Any]]) -> None:
    if not rows:
        print("nothing to list")
        return
    texts = [
        [
            ", ".join(v)
            if isinstance(v, list)
            else ("*" if v is True else "" if v is False else str(v))
            for v in row.values()
        ]
        for row in rows
    ]
    table = [list(rows[0]), *texts]
    widths = [max(len(line[column]) for line in table) for column in range(len(table[0]))]
    for line in table:
        print(
            "  ".join(f"{cell:{width}}" for cell, width in zip(line, widths, strict=True)).rstrip()
        )


def _place(publication: Mapping[str, Any]) -> str:
    region = publication["region"]
    return f"{publication['site']} ({region})" if region else str(publication["site"])


def _relative(path: Path) -> str:
    return os.path.relpath(path) if path.is_relative_to(Path.cwd()) else str(path)


def _red(text: str) -> str:
    colours = sys.stderr.isatty() and not os.environ.get("NO_COLOR")
    return f"\x1b[31m{text}\x1b[0m" if colours else text


if __name__ == "__main__":
    sys.exit(main())
