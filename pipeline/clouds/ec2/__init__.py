"""Amazon EC2: EBS snapshots become images (AMIs) that boot by BIOS and by UEFI."""

from __future__ import annotations

from pipeline.clouds import CloudClasses


def load() -> CloudClasses:
    """The classes of this cloud; importing the package alone imports none of them."""
    from pipeline.clouds.ec2.cloud import Ec2
    from pipeline.clouds.ec2.metadata import Ec2Metadata
    from pipeline.clouds.ec2.sandbox_site import Ec2Sandbox

    return CloudClasses(site=Ec2, sandbox=Ec2Sandbox, metadata=Ec2Metadata)
