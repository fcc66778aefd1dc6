"""Start training jobs under Slurm, and start them again; no torch."""
