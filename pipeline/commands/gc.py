"""`phantom-image gc`: makes the store smaller."""

from __future__ import annotations

from argparse import ArgumentParser, Namespace

from pipeline.commands import options as shared
from pipeline.commands.output import print_json, print_line
from pipeline.errors import UsageError
from pipeline.model import format_size, parse_size

EXAMPLES = ("phantom-image gc --size 20GB",)


def add_arguments(parser: ArgumentParser) -> None:
    """Adds the command's arguments."""
    shared.add(parser, "json")
    parser.add_argument(
        "--size", default="20GiB", help="how much may stay: 500MiB, 20GB (20GiB); 0B evicts all"
    )


def run(options: Namespace) -> None:
    """Evicts what was used longest ago, and prints how much that was."""
    try:
        limit = parse_size(options.size)
    except ValueError as error:
        raise UsageError(str(error)) from error
    count, freed = shared.open_workspace(options).store.evict(limit)
    if options.json:
        print_json({"removed": count, "freed_bytes": freed})
    else:
        print_line(f"removed {count} entries, freed {format_size(freed)}")
