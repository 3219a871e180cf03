"""Accepted jobs as rows: nothing that was accepted is lost, and nothing is drawn twice.

tables queue    the rows, and what callers do with them
attempts        what workers do with them, each write behind a fence
holders         who may see which picture
usage           what callers have used, and their limits
loops           work that goes on for as long as the server runs
desk            a request -> accepted jobs, or a refusal
worker          claims jobs, draws them, reports
live            progress and previews of this process
training        training runs as jobs
keys            API keys, their limits and their options
webhooks        who is told that a job ended
"""
