"""What diskimage-builder gets instead of its own program `dib-block-device.py`.

Ours makes no device: the tree becomes a file system without one. diskimage-builder's own takes a
third of a second for each of the many questions that it is asked in a build. The answers are those
of its default configuration, whatever elements bring: a site's layout decides about partitions.
"""

from __future__ import annotations

import sys

ANSWERS = {
    "boot-label": "",
    "image-block-device": "none",
    "image-block-devices": "",
    "image-path": "none",
    "mount-points": "/",
    "root-fstype": "ext4",
    "root-label": "cloudimg-rootfs",
}


def main(words: list[str]) -> None:
    """Answers `getval NAME`. All else would do something to devices, of which there are none."""
    if words[:1] == ["getval"]:
        sys.stdout.write(f"{ANSWERS[words[1]]}\n")


if __name__ == "__main__":
    main(sys.argv[1:])
