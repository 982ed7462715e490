"""The figures that the project promises: `make bench` measures them, as ratios within one run."""
