"""Our own API: jobs, files, upscales and plugins under /v1."""
