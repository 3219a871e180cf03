"""Our own dialect: jobs, files and upscales under /v1."""
