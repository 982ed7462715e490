"""A Slurm cluster whose workers are Phantom's machines."""
