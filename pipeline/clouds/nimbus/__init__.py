"""Nimbus: a Cumulus repository takes images, and nodes boot them after editing them."""

from __future__ import annotations

from pipeline.clouds import CloudClasses


def load() -> CloudClasses:
    """The classes of this cloud; importing the package alone imports none of them."""
    from pipeline.clouds.nimbus.cloud import Nimbus
    from pipeline.clouds.nimbus.metadata import NimbusMetadata
    from pipeline.clouds.nimbus.sandbox_site import NimbusSandbox

    return CloudClasses(site=Nimbus, sandbox=NimbusSandbox, metadata=NimbusMetadata)
