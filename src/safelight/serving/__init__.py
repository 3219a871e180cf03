"""The HTTP server: several API dialects over one queue of durable jobs.

mcp             tools for language models
app             the application: all routes and parts, opened and closed together
a1111 openai    the dialects that existing clients speak
native          our own API: jobs, files and upscales
http            shared by all routes: parts, keys, limits, log, errors
jobs            accepted jobs as rows: queue, worker, webhooks, keys
monitoring      Prometheus, traces
"""
