"""The HTTP server: dialects that existing clients speak, over one line of jobs."""
