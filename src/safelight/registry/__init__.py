"""Versions of models that never change, the names that lead to them, and where they came from."""
