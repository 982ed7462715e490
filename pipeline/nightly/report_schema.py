"""The JSON Schema (draft 2020-12) of report.json. It is strict: no keys but these, so a key that a
later version adds is a new `schema` number."""

from __future__ import annotations

from pipeline.build.schema_terms import (
    BYTES,
    COUNT,
    FLAG,
    SECONDS,
    TEXT,
    TIME,
    Schema,
    a_list,
    an_object,
    by_name,
    closed,
    or_null,
    told,
    whole,
)
from pipeline.nightly.night import NightState, State
from pipeline.nightly.report_json import SCHEMA

_AT_LEAST_ONE: Schema = {"type": "integer", "minimum": 1}
_SOME: Schema = {"type": "integer", "minimum": 0}


def report_schema() -> Schema:
    """The whole schema."""
    schema: Schema = closed(whole("What came of a night: report.json", **_report()))
    return schema


def _report() -> dict[str, Schema]:
    return {
        "schema": {"const": SCHEMA, "description": "The version of this schema."},
        "name": told(TEXT, "The night's folder, after the time when it began."),
        "state": told(
            {"enum": [*NightState]}, "failed: something failed or was skipped; the others went on."
        ),
        "started": TIME,
        "ended": TIME,
        "seconds": told(SECONDS, "0 where the host's clock went backwards."),
        "counts": told(
            an_object(**dict.fromkeys(map(str, State), _SOME)), "Of outcomes, by their state."
        ),
        "could_not_run": told(or_null(TEXT), "Why nothing ran at all."),
        "warnings": a_list(TEXT),
        "outcomes": told(a_list(_outcome()), "One for each appliance and site."),
        "kept": told(
            a_list(
                an_object(
                    appliance=TEXT,
                    build=TEXT,
                    action={"enum": ["removed", "retired", "kept"]},
                    reason=TEXT,
                    bytes=told(BYTES, "That it takes, or took."),
                )
            ),
            "What retention did with builds.",
        ),
        "store_bytes": told(BYTES, "Of the store, at the end."),
        "store_limit": told(or_null(BYTES), "Null where it may grow."),
        "free_bytes": told(BYTES, "Of the store's file system, at the end."),
        "forecast_bytes": told(BYTES, "That the night was expected to need there."),
        "host_cores": _SOME,
        "jobs": told(_SOME, "How many stages could run at the same time."),
        "environment": told(by_name(TEXT), "Of the host: its name, the program's version."),
    }


def _outcome() -> Schema:
    text, size = or_null(TEXT), or_null(BYTES)
    return an_object(
        appliance=TEXT,
        version=TEXT,
        site=TEXT,
        cloud=TEXT,
        state=told(
            {"enum": [*State]},
            "built: something was made. reused: the build is new at this site, and all of it was "
            "in the store. unchanged: the site has what would be built.",
        ),
        build=told(text, "That the site has after the night; null for none."),
        before=told(text, "That it had before."),
        reasons=told(a_list(TEXT), "Why it was built."),
        because=told(text, "Why it was skipped, or since when it is unchanged."),
        stage=told(text, "That failed."),
        message=told(text, "The error's line."),
        todo=told(text, "What the error says to do."),
        error=told(text, "The error's class."),
        exit_status=told(COUNT, "That the error would end a command with."),
        log=told(text, "The path of the failed stage's log."),
        tries=_AT_LEAST_ONE,
        seconds=told(SECONDS, "From the start of its first stage to its publication."),
        stages=told(a_list(an_object(title=TEXT, reused=FLAG, seconds=SECONDS)), "It needed them."),
        image_id=text,
        image_bytes=size,
        root_bytes=told(size, "Of the root file system."),
        boot_seconds=or_null(SECONDS),
        bytes_built=told(BYTES, "Of artifacts that were made."),
        bytes_sent=told(BYTES, "To the site, at most: without what is empty, on EC2."),
        bytes_saved=told(BYTES, "Of artifacts that were reused, and of data that the site had."),
        changes=told(a_list(TEXT), "What differs from the build before."),
        warnings=a_list(TEXT),
        last_success=told(
            or_null(TIME),
            "The end of the last night in which it neither failed nor was skipped; null where no "
            "report says so.",
        ),
    )
