"""How people start machines from an image of a Nimbus repository: by Nimbus's cloud client."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pipeline.clouds.recipes import Recipe, command, option
from pipeline.model import Publication

_NOTE = (
    "In the folder of the cloud client, whose conf/cloud.properties names this site. The machine "
    "runs for 24 hours, and gets no user-data: that comes from Phantom."
)


def make_recipes(publication: Publication, data: Mapping[str, Any]) -> tuple[Recipe, ...]:
    """The recipe of an image, which the repository knows by its name."""
    text = command(
        "bin/cloud-client.sh --run", option("--name", publication.image_id), "--hours 24"
    )
    return (Recipe(title="Nimbus cloud client", text=text, note=_NOTE),)
