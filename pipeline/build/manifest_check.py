"""Whether a manifest is as its schema says, and says the same in all its places."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from functools import cache
from typing import Any

from pipeline.build import launch
from pipeline.build.manifest_schema import manifest_schema
from pipeline.definitions.messages import label, quote

_Error = Any  # a jsonschema.ValidationError, whose stubs say that any attribute may be unset


def find_faults(manifest: Any) -> list[str]:
    """What is wrong with a manifest of today's schema, one line each; nothing if it is valid."""
    # JSON alone: Python's own values would pass for others.
    told = json.loads(json.dumps(manifest))
    errors = sorted(_validator().iter_errors(told), key=lambda each: label(tuple(each.path)))
    faults = [line for error in errors for line in _describe(error)]
    return list(dict.fromkeys(faults or _contradictions(told)))


@cache
def _validator() -> Any:
    import jsonschema

    def pattern(_: object, wanted: str, instance: object, __: object) -> Iterator[_Error]:
        # Unlike JSON Schema's `$`, Python's also matches before a final line feed.
        if isinstance(instance, str) and not re.search(re.sub(r"\$$", r"\\Z", wanted), instance):
            yield jsonschema.ValidationError("is not as it is written by us")

    extend: Any = jsonschema.validators.extend
    return extend(jsonschema.Draft202012Validator, {"pattern": pattern})(manifest_schema())


def _describe(error: _Error) -> Iterator[str]:
    """An error in words, with the place of the value."""
    phrase = error.schema.get("errorMessage")
    for inner in () if phrase else error.context or ():
        if inner.validator != "type":  # of what may be null too, what is wrong with the value
            yield from _describe(inner)
            return
    at = label(tuple(error.absolute_path))
    where = at or "it"
    if error.validator == "required":
        missing = [key for key in error.validator_value if key not in error.instance]
        yield from (f"{where} has no {key!r}" for key in missing)
    elif error.validator == "additionalProperties":
        known = error.schema["properties"]
        yield from (
            f"{where} has {quote(key)}, which no manifest has"
            for key in error.instance
            if key not in known
        )
    elif error.validator == "propertyNames" or "propertyNames" in error.schema_path:
        yield f"{where} has {quote(error.instance)}, which no definition has"
    else:
        yield f"{where} is {quote(error.instance)}: it {phrase or _rule(error)}"


def _rule(error: _Error) -> str:
    """What a value must be, in words."""
    wanted = error.validator_value
    if error.validator == "pattern":
        return f"must match {wanted}"
    if error.validator == "enum":
        return f"must be one of {', '.join(map(repr, wanted))}"
    if error.validator == "type":
        return f"must be of the type {wanted}"
    if error.validator == "anyOf":
        return f"must be {' or '.join(str(each.get('type')) for each in wanted)}"
    return f"must have the {error.validator} {wanted}"


def _contradictions(manifest: Mapping[str, Any]) -> Iterator[str]:
    """What the schema cannot say."""
    section = manifest["phantom"]
    configuration = section["launch_configuration"]
    if configuration["name"] != manifest["appliance"]["name"]:
        yield "phantom.launch_configuration.name is not the appliance's name"
    has_user_data = configuration["user_data"] is not None
    if has_user_data != (configuration["contextualization_method"] == "user_data"):
        yield (
            "phantom.launch_configuration.contextualization_method contradicts its user_data: it "
            "is 'none' where that is null, and 'user_data' elsewhere"
        )
    if section != launch.complete(configuration, sandbox=section["sandbox"]):
        yield "phantom.auto_scaling does not say what phantom.launch_configuration says"
    published = {(each["site"], each["image_id"]) for each in manifest["publications"]}
    params = configuration["cloud_params"]
    for site, param in params.items():
        if (site, param["image_id"]) not in published:
            yield (
                f"phantom.launch_configuration.cloud_params.{site} has the image "
                f"{quote(param['image_id'])}, which no publication has"
            )
    if len({param["rank"] for param in params.values()}) < len(params):
        yield "phantom.launch_configuration.cloud_params has two sites of one rank"
    places = {(each["site"], each["region"]) for each in manifest["publications"]}
    for template in manifest["launch_templates"]:
        if (template["site"], template["region"]) not in places:
            yield f"launch_templates has one of {template['site']}, where nothing is published"
