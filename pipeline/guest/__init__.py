"""What is done inside a base image, all by libguestfs: this host mounts and runs nothing of it.

`appliance.py` launches libguestfs's appliance. `inspection.py` finds out what the image is, with
`root_search.py`, `mounting.py`, `release.py` and `tree.py`. `root.py` makes its root file system.
All others change one thing each; they are given an `Image` (`image.py`) and write by `files.py`. A
launch takes seconds, so one launch serves for everything.
"""
