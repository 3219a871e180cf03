"""Strangers and machines ask: an HTTP server of several dialects, over one queue of durable jobs.

mcp             tools for language models
app             every route and every part, opened and closed together
a1111 openai    the dialects that existing clients speak
native          jobs, files and upscales in our own words
http            what every request passes: parts, keys, limits, log, errors
jobs            accepted jobs as rows: queue, worker, webhooks, keys
monitoring      Prometheus, traces
"""
