"""SLURM sites and jobs."""
