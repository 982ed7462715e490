"""One module per source of a root file system."""
