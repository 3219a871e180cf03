"""Our own API: jobs, files and upscales under /v1."""
