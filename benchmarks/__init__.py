"""Measurements, each a program of its own; `make bench` runs them all.

A package, since one of that name comes with Opacus and would be found in the place of this folder.
"""
