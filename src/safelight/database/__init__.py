"""The database for everything that outlives a process: jobs, keys, model versions."""
