"""Durable jobs as database rows: no accepted job is lost, and no picture is generated twice.

tables queue    the rows, and the operations of callers on them
attempts        the operations of workers on them, each write behind a fence
holders         which tenant may see which picture
usage           usage and limits of each tenant
loops           background loops that run as long as the server
service         a request -> accepted jobs, or a refusal
worker          claims jobs, runs them, records how they ended
live            progress and previews of this process
training        training runs as jobs
keys            API keys, their limits and their options
redact          error messages for callers, without paths of this machine
webhooks        signed notifications that a job has ended
"""
