"""The number of this release: in `--version`, in every picture, in the metrics."""

__version__ = "0.1.0"
