"""What every request passes, whatever its dialect.

parts readiness    what the routes stand on; whether a job would be drawn now
auth               who is calling
door access log    limits of size and time; one line and one count a request
plain               what no request may hold, whatever its route: NULs, halves of characters, NaN
errors description error bodies, and the OpenAPI document
viewer_route       /docs, which shows that document; the page is in `viewer/`
attend             a request waits for its jobs, and cancels them when its client goes away
fetch              pictures by URL
observe health metrics_route   what operators look at
"""
