"""Tools for language models: the Model Context Protocol, over the same application."""
