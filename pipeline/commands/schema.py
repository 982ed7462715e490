"""`phantom-image schema`: the JSON Schema of definitions, of sites.yaml, or of an output."""

from __future__ import annotations

from argparse import ArgumentParser, Namespace

from pipeline.build.schemas import output_schemas
from pipeline.catalog.schema import catalog_schemas
from pipeline.clouds import clouds
from pipeline.commands.output import print_json
from pipeline.definitions.appliance import appliance_schema
from pipeline.definitions.sites import sites_schema
from pipeline.nightly.report_schema import report_schema

EXAMPLES = ("phantom-image schema >appliance.schema.json", "phantom-image schema manifest")

_OF = (
    "definition",
    "sites",
    "manifest",
    "plan",
    "image",
    "part",
    "list",
    "validation",
    "verification",
    "vulnerabilities",
    "changes",
    "check",
    "prune",
    "diff",
    "launch-config",
    "domain",
    "report",
    "catalog",
    "appliance",
    "cataloged",
    "launch",
)


def add_arguments(parser: ArgumentParser) -> None:
    """Adds the command's arguments."""
    text = f"{', '.join(_OF[:-1])} or {_OF[-1]} ({_OF[0]})"
    parser.add_argument("of", nargs="?", choices=_OF, default=_OF[0], metavar="OF", help=text)
    parser.add_argument("--sites", dest="of_sites", action="store_true", help="that of sites.yaml")


def run(options: Namespace) -> None:
    """Prints the schema."""
    if options.of_sites or options.of == "sites":
        print_json(sites_schema(clouds()))
    elif options.of == "definition":
        print_json(appliance_schema())
    elif options.of == "report":
        print_json(report_schema())
    else:
        print_json((output_schemas() | catalog_schemas())[options.of])
