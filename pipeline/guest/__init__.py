"""What is done inside a base image, all of it by libguestfs: nothing of it is mounted or run here.

`appliance.py` launches libguestfs's appliance, `inspection.py` looks, and the others each change
one thing. A launch takes seconds, so all of it is done in one.
"""
