"""`phantom-image build`: builds and boots an appliance, or makes some of its stages."""

from __future__ import annotations

import sys
import time
from argparse import ArgumentParser, Namespace
from collections.abc import Iterator
from functools import partial
from pathlib import Path

from pipeline.build.partial import Part, build_part, stages_called, stages_without_boot
from pipeline.build.remains import Remains, find_remains, forget_remains
from pipeline.commands import boot, image, shell
from pipeline.commands import options as shared
from pipeline.commands.output import cell, print_error, print_json, print_line, print_table
from pipeline.definitions.yaml import shown
from pipeline.errors import PhantomError, UsageError
from pipeline.store import Artifact

EXAMPLES = (
    "phantom-image build web --cloud ec2",
    "phantom-image build web --stop-after root",
    "phantom-image build web --no-boot --json",
    "phantom-image build web --shell-on-failure",
)
_NOTHING = (("gate", "nothing found"),)


def add_arguments(parser: ArgumentParser) -> None:
    """Adds the command's arguments."""
    image.add_arguments(parser)
    end = parser.add_mutually_exclusive_group()
    end.add_argument(
        "--stop-after",
        metavar="STAGE",
        help="make this stage and what it needs, and no manifest; `plan` lists the stages",
    )
    end.add_argument(
        "--no-boot", action="store_true", help="make the images without booting, and no manifest"
    )
    parser.add_argument(
        "--keep-failed",
        action="store_true",
        help="keep the file system of a stage that fails, for `shell --failed`, or the disk of a "
        "machine, for `boot --failed` too",
    )
    parser.add_argument(
        "--shell-on-failure",
        action="store_true",
        help="keep it, and open a shell there at once: in the tree, or on the machine's console",
    )


def run(options: Namespace) -> int | None:
    """Builds and boots, or makes the stages that the options ask for. Raises UsageError for an
    unknown stage, and what building raises."""
    return shared.run_for_each(options, _run)


def _run(options: Namespace) -> None:
    if options.shell_on_failure and not (sys.stdin.isatty() and sys.stdout.isatty()):
        raise UsageError(
            "a shell needs a terminal as standard input and output",
            todo="run it in a terminal, as by `ssh -t`; without one, `--keep-failed` keeps what "
            "`shell --failed` opens later",
        )
    if not (options.keep_failed or options.shell_on_failure):
        _build(options, None)
        return
    name = shared.load_appliance(options).name
    failed = shared.failed_folder(options, name)
    forget_remains(failed)
    try:
        _build(options, failed)
    except PhantomError as error:
        kept = find_remains(failed)
        for each in kept:
            print_line(_tell(each, options.appliance), file=sys.stderr)
        if kept and options.shell_on_failure:
            print_error(error)
            _open_shell(kept[0], options)
        raise


def _tell(kept: Remains, appliance: str) -> str:
    """Where something is kept, and what opens it."""
    opens = f"`phantom-image shell {appliance} --failed` opens it"
    if kept.site is not None:
        boots = f"boot {appliance} --failed --site {kept.site} --machine {kept.machine}"
        opens += f", `phantom-image {boots}` starts the machine again"
    return f"kept: {shown(kept.file)}; {opens}"


def _open_shell(kept: Remains, options: Namespace) -> None:
    """A shell in a kept tree, or on the console of a machine with a kept disk."""
    if kept.site is None:
        shell.run(Namespace(**vars(options), failed=True, as_defined=False, command=[]))
        return
    own = Namespace(**vars(options))
    own.cloud, own.site, own.all_sites = None, [kept.site], False
    own.machine, own.forward, own.user_data, own.failed = kept.machine, [], None, True
    boot.run(own)


def _build(options: Namespace, failed: Path | None) -> None:
    if options.stop_after is None and not options.no_boot:
        image.produce_image(options, publish=False, failed=failed)
        return
    appliance, sites = shared.load_appliance(options), shared.load_sites(options)
    word = options.stop_after
    ends = stages_without_boot if word is None else partial(stages_called, word=word)
    started = time.monotonic()
    with shared.open_shown_workspace(options, failed=failed) as workspace:
        part = build_part(appliance, sites, workspace, ends)
    if options.json:
        print_json(_describe(appliance.name, part))
    else:
        _print(appliance.name, part, word, time.monotonic() - started)


def _describe(name: str, part: Part) -> dict[str, object]:
    return {
        "appliance": name,
        "stages": [
            {"stage": title, "reused": reused, "seconds": round(seconds, 3)}
            for title, reused, seconds in part.stages
        ],
        "artifacts": [
            {"stage": stage.title, "key": stage.key, "files": _files(built.artifact)}
            for stage, built in part.ends
        ],
        "checks": part.checks,
    }


def _print(name: str, part: Part, word: str | None, seconds: float) -> None:
    stopped = "without booting" if word is None else f"up to stage {word}"
    print_line(f"{name}, built {stopped}")
    rows = [(title, "reused" if reused else f"{took:.1f} s") for title, reused, took in part.stages]
    print_table(rows, indent=2)
    print_line()
    print_table([*_result_rows(part)], indent=2)
    print_line("there is no manifest: a whole build reuses these stages and writes it")
    print_line(f"done in {seconds:.1f} s")


def _result_rows(part: Part) -> Iterator[tuple[str, str]]:
    """What was made, and what the gate found in it."""
    for stage, built in part.ends:
        if files := _files(built.artifact):
            yield stage.title, cell(shown(Path(file)) for file in files)
    if part.checks is not None:
        yield from image.gate_rows(part.checks) if any(part.checks.values()) else _NOTHING


def _files(artifact: Artifact) -> list[str]:
    return [str(artifact.file(name)) for name in sorted(artifact.digests)]
