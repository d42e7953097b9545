"""Whether this machine, or every node of a job, can train: what is looked at before a run, in seconds."""
