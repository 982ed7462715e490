"""Names of images from their templates, which every cloud has."""

from __future__ import annotations

from string import Formatter

from pipeline.errors import ImageNameError
from pipeline.model import Appliance


def fill_template(appliance: Appliance, build: str, *, cloud: str, title: str, default: str) -> str:
    """An image's name by the appliance's template for a cloud, or by `default`. `title` is what
    people call the cloud.

    Raises ImageNameError for a template that cannot be filled in.
    """
    override = appliance.clouds.get(cloud)
    template = (override and override.image_name) or default
    fields = {"name": appliance.name, "version": appliance.version, "build": build}
    try:
        used = {each for _, each, _, _ in Formatter().parse(template) if each is not None}
        unknown = sorted(used - fields.keys())
        if not unknown:
            return template.format(**fields)
        mistake = f"has no field {', '.join(f'{{{each}}}' for each in unknown)}"
    except ValueError as error:
        mistake = f"cannot be read: {error}"
    except (KeyError, IndexError):
        mistake = "cannot be read: a field stands within another"
    raise ImageNameError(
        f"the template {template!r} of {title} image names {mistake}",
        where=str(appliance.definition),
        todo=f"use {{name}}, {{version}} and {{build}} in `clouds: {cloud}: image_name:`",
    )
