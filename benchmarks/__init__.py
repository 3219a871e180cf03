"""Benchmarks, each a program of its own; `make bench` runs them all.

This is a package because Opacus installs one of the same name, which would be imported instead.
"""
