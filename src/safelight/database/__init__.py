"""One database for all that outlives a process: jobs, keys, model versions."""
