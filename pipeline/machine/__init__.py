"""Virtual machines on this host."""
