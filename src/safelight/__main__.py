"""`python -m safelight` is `safelight`."""

from safelight.cli.main import app

app(prog_name="safelight")
