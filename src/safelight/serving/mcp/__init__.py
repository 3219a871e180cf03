"""An MCP (Model Context Protocol) server: tools for language models, over the same application."""
