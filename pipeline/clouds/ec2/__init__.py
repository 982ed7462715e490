"""Amazon EC2: EBS snapshots become images (AMIs) that boot by BIOS and by UEFI."""
