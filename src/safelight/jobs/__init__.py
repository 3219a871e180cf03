"""Accepted jobs as rows: nothing that was accepted is lost, and nothing is drawn twice."""
