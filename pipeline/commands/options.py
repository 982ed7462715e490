"""Options that commands share, and what they name."""

from __future__ import annotations

import os
import re
import sys
from argparse import ArgumentParser, ArgumentTypeError, Namespace
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

from pipeline import records
from pipeline.attestations.signing import plan_signing
from pipeline.build import manifest, remains
from pipeline.clouds import clouds
from pipeline.commands.output import describe_error, print_error, print_json, print_line
from pipeline.definitions import appliance, phantoms, sites, yaml
from pipeline.definitions.signing import load_signing
from pipeline.errors import ManifestError, PhantomError, UsageError
from pipeline.model import Appliance, NoProgress, ScratchSource, Site
from pipeline.phantom.local import find_local
from pipeline.phantom.named import LOCAL, PhantomService
from pipeline.progress import shown
from pipeline.store import Store
from pipeline.tools import dib_environment
from pipeline.tools.namespace import remove_tree
from pipeline.workspace import STORE, Workspace

DEFAULT_APPLIANCE = "hello-phantom"
_STORE = "PHANTOM_STORE"  # the variable that names the store's folder


def add(parser: ArgumentParser, *names: str) -> None:
    """Adds options that commands share, in this order: appliance or appliances, manifest,
    sites, of, phantom, verbose, json."""
    add = parser.add_argument
    if "appliance" in names:
        text = f"name or definition ({DEFAULT_APPLIANCE})"
        add("appliance", nargs="?", default=DEFAULT_APPLIANCE, help=text)
    if "appliances" in names:
        text = f"names or definitions ({DEFAULT_APPLIANCE})"
        add("appliance", nargs="*", metavar="APPLIANCE", help=text)
        add("--all", action="store_true", help="all appliances that have definitions")
    if "manifest" in names:
        text = "a manifest, a build's folder, or an appliance"
        add("manifest", metavar="MANIFEST", help=text)
    if "sites" in names:
        text = "the sites of this cloud; commas or again"
        add("--cloud", action="append", metavar="CLOUD", help=text)
        add("--site", action="append", metavar="SITE", help="this site; commas or again")
        add("--all-sites", action="store_true", help="the sites of all clouds")
    if "of" in names:
        add("--of", default="latest", metavar="BUILD", help="the build (latest)")
    if "phantom" in names:
        text = f"the Phantom, by its name in sites.yaml; {LOCAL} is that of phantom-sandbox"
        add("--phantom", required=True, metavar="NAME", help=text)
    if "verbose" in names:
        add("-v", "--verbose", action="store_true", help="show what programs print")
    if "json" in names:
        add("--json", action="store_true", help="print JSON")


def hours(text: str) -> float:
    """An option's value in hours. Raises ArgumentTypeError for what is no duration."""
    if not re.fullmatch(r"[0-9]{1,6}(\.[0-9]{1,6})?", text):
        raise ArgumentTypeError(f"{text[:40]!r} is no number of hours from 0 to 999999")
    return float(text)


def port(text: str) -> int:
    """An option's port. Raises ArgumentTypeError."""
    if not (text.isascii() and text.isdigit() and len(text) < 6 and int(text) < 1 << 16):
        raise ArgumentTypeError(f"{text[:40]!r} is no port from 0 to 65535")
    return int(text)


def load_appliance(options: Namespace) -> Appliance:
    """The appliance that the options name. Raises DefinitionError.

    Warns of variables for elements in the command's environment, which have no effect.
    """
    loaded = appliance.load_appliance(options.appliance, options.images)
    if isinstance(loaded.source, ScratchSource):
        for name in dib_environment.ignored(os.environ, loaded.environment):
            print_line(
                f"warning: {name} of the environment has no effect; write it into "
                f"{loaded.positions.file or loaded.definition}, below `environment:`",
                file=sys.stderr,
            )
    return loaded


def run_for_each(options: Namespace, run: Callable[[Namespace], object]) -> int | None:
    """Runs a command for each of the appliances that the options name, one after the other. Of
    several, one that fails does not stop the others: its error is printed, and the exit status is
    that of the first. Raises the error of a single one, and UsageError."""
    names = [*dict.fromkeys(options.appliance)] or [DEFAULT_APPLIANCE]
    if options.all:
        if options.appliance:
            raise UsageError("--all is given beside appliances", todo="leave one out")
        names = [*appliance.list_appliances(options.images)]
        if not names:
            raise UsageError(
                f"there is no definition in {options.images}",
                todo="write one (`phantom-image new`)",
            )
    each = [Namespace(**{**vars(options), "appliance": name}) for name in names]
    if len(each) == 1:
        run(each[0])
        return None
    statuses = []
    for own in each:
        try:
            run(own)
        except PhantomError as error:
            if options.json:
                print_json(describe_error(error))
            print_error(error)
            statuses.append(error.exit_code)
    return statuses[0] if statuses else None


def load_sites(options: Namespace) -> tuple[Site, ...]:
    """The sites that the options name. Raises DefinitionError, UsageError."""
    chosen = _words(getattr(options, "cloud", None)), _words(options.site)
    if any(chosen) and getattr(options, "all_sites", False):
        raise UsageError("--all-sites is given beside --cloud or --site", todo="leave one out")
    return sites.select_sites(load_known_sites(options), *chosen)


def load_sites_to_publish_to(options: Namespace) -> tuple[Site, ...]:
    """As `load_sites`, but where no option selects any, the sites must be of one cloud: nobody
    publishes everywhere by leaving a word out. Raises DefinitionError, UsageError."""
    chosen = load_sites(options)
    found = list(dict.fromkeys(site.cloud for site in chosen))
    selected = _words(options.cloud) or _words(options.site) or options.all_sites
    if len(found) > 1 and not selected:
        names = ", ".join(site.name for site in chosen)
        raise UsageError(
            f"{options.sites} has sites of several clouds ({names}), and none is named",
            todo=f"name some with --cloud ({', '.join(found)}) or --site, or all with --all-sites; "
            "`phantom-image plan` shows what would be sent to each",
        )
    return chosen


def load_site_order(options: Namespace) -> list[str]:
    """The names of all known sites, as sites.yaml has them. Raises DefinitionError."""
    return [site.name for site in load_known_sites(options)]


def load_known_sites(options: Namespace) -> tuple[Site, ...]:
    """All sites of sites.yaml, or those that need no file. Raises DefinitionError."""
    return sites.load_sites(options.sites, clouds())


def _words(values: Sequence[str] | None) -> list[str] | None:
    """The words of an option that can be repeated, and whose values can hold commas."""
    words = [word.strip() for value in values or () for word in value.split(",") if word.strip()]
    return words or None


def open_workspace(options: Namespace) -> Workspace:
    """The folders that the options name; nothing shows the progress of work."""
    store = Store(store_folder(options), remove_tree)
    return Workspace(build=_resolved(options.build), store=store, progress=lambda _: NoProgress())


def with_signing(workspace: Workspace, options: Namespace) -> Workspace:
    """The folders where the key that the settings name signs what is written. The file of sites was
    loaded before. Raises DefinitionError."""
    signing = load_signing(options.sites)
    return replace(workspace, sign=plan_signing(signing), identity=signing.identity)


@contextmanager
def open_shown_workspace(
    options: Namespace,
    *,
    uses_store: bool = True,
    signs: bool = False,
    failed: Path | None = None,
) -> Iterator[Workspace]:
    """The folders that the options name; standard error shows the progress of work. With
    `uses_store`, nothing is evicted from the store meanwhile; with `signs`, it is as `with_signing`
    gives it. The folder `failed` gets what failed stages leave."""
    with shown(sys.stderr, verbose=getattr(options, "verbose", False)) as progress:
        workspace = replace(open_workspace(options), progress=progress, failed=failed)
        workspace = with_signing(workspace, options) if signs else workspace
        with workspace.store.used() if uses_store else nullcontext():
            yield workspace


def failed_folder(options: Namespace, appliance: str) -> Path:
    """Where what failed stages of an appliance leave is kept."""
    return open_workspace(options).folder(appliance) / remains.FOLDER


def store_folder(options: Namespace) -> Path:
    """The store's folder: the environment's choice, or else the build folder's own."""
    return _resolved(os.environ.get(_STORE) or options.build / STORE)


def _resolved(path: str | Path) -> Path:
    return Path(os.path.realpath(path))  # Path.resolve raises an error for a circle of links


def read_manifest(options: Namespace, name: str, workspace: Workspace) -> dict[str, Any]:
    """The manifest of the build that the options name. Raises UsageError where there is none,
    ManifestError where it cannot be used."""
    try:
        if not all(records.FILE_NAME.fullmatch(word) for word in (name, options.of)):
            raise FileNotFoundError
        return manifest.load_manifest(manifest.find_manifest(workspace.folder(name), options.of))
    except (FileNotFoundError, NotADirectoryError) as error:
        raise _no_build(name, options.of) from error
    except OSError as error:
        raise ManifestError(
            f"the manifest cannot be read: {error.strerror}",
            where=str(error.filename),
            todo="see who may read it",
        ) from error


def _no_build(name: str, build: str) -> UsageError:
    return UsageError(
        f"there is no build {build!r} of {name!r}",
        todo="`phantom-image list` lists the builds, `phantom-image image` makes one",
    )


@contextmanager
def reading(path: Path) -> Iterator[Path]:
    """The file that a path leads to. Errors name the path. Raises UsageError where there is none,
    ManifestError where it cannot be read."""
    try:
        yield Path(os.path.realpath(path))
    except ManifestError as error:
        error.where = str(path)
        raise
    except (FileNotFoundError, NotADirectoryError) as error:
        raise UsageError(
            f"there is no file {str(path)!r}",
            todo="`phantom-image list` lists the builds; their folders have the manifests",
        ) from error
    except OSError as error:
        raise ManifestError(
            f"the manifest cannot be read: {error.strerror}",
            where=str(path),
            todo="see who may read it",
        ) from error


def find_named_manifest(options: Namespace) -> Path:
    """Where the manifest is that the option `manifest` names: a file, a build's folder, or an
    appliance, whose build `--of` names. Raises UsageError where an appliance has no such build; a
    file need not be there."""
    path = Path(options.manifest)
    file = path / manifest.FILE if path.is_dir() else path
    if "/" in options.manifest or file.suffix == ".json" or file.is_file():
        return file
    folder = open_workspace(options).folder(options.manifest)
    found = manifest.find_manifest(folder, options.of) if _are_names(options) else None
    if found is None or not found.is_file():
        raise _no_build(options.manifest, options.of)
    return Path(yaml.shown(found))


def _are_names(options: Namespace) -> bool:
    return all(records.FILE_NAME.fullmatch(word) for word in (options.manifest, options.of))


def read_named_manifest(options: Namespace) -> dict[str, Any]:
    """The manifest that the option `manifest` names. Raises UsageError where there is none,
    ManifestError where it cannot be used."""
    with reading(find_named_manifest(options)) as real:
        return manifest.load_manifest(real)


def load_phantom(options: Namespace) -> PhantomService:
    """The Phantom that the option `phantom` names. Raises DefinitionError, UsageError,
    SiteUnreachableError."""
    known = phantoms.load_phantoms(options.sites)
    if options.phantom in known:
        return known[options.phantom]
    if options.phantom == LOCAL:
        return find_local(_resolved(options.build))
    raise phantoms.make_unknown(options.phantom, known)


def choose_sites(options: Namespace, published: Sequence[str]) -> list[str]:
    """The sites that `--site` names, or else all of those that a build is `published` at. Raises
    UsageError for a name that is neither among them nor in sites.yaml."""
    named = _words(options.site)
    known = [*dict.fromkeys((*published, *load_site_order(options)))]
    sites.check_words("site", named or (), known)
    return [*dict.fromkeys(named or published)]
