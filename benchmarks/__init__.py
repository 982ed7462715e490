"""The figures that the project promises. `make bench` measures most as ratios within one run."""
