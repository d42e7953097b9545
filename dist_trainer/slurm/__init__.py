"""A run as a job of SLURM: asking the cluster, submitting, and what the job does on each node."""
