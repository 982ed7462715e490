"""One module per external program; `run.py` is the only user of subprocess."""
