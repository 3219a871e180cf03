"""Shared by all dialects: what every request passes through.

parts readiness             the parts that routes use; whether a new job would run now
auth origin                 who is calling, and from which site
request_limits access_log log    limits of size and time; log lines and counts of requests
plain                       rejects values that cannot be stored: NULs, lone surrogates, NaN
errors description          error bodies, and the OpenAPI document
viewer_route                /docs, which shows that document; the page is in `viewer/`
wait_or_cancel              waits for a request's jobs, and cancels them when its client disconnects
fetch                       pictures by URL
observe health metrics_route    for operators: events to log and metrics, health checks, /metrics
"""
