"""`safelight keys`: made once, listed without the secret, revoked by name."""

import re

from typer.testing import CliRunner

from safelight.cli.main import app

runner = CliRunner()


def test_a_key_is_shown_once_listed_and_revoked() -> None:
    made = runner.invoke(app, ["keys", "create", "joe", "--per-minute", "5"])
    assert made.exit_code == 0, made.output
    assert re.fullmatch(r"sl-[0-9a-f]{8}-[\w-]{43}", made.stdout.strip())
    again = runner.invoke(app, ["keys", "create", "joe"])
    assert again.exit_code == 2
    listed = runner.invoke(app, ["keys", "list"]).stdout
    assert "5 a minute" in listed
    assert made.stdout.strip() not in listed
    unknown = runner.invoke(app, ["keys", "revoke", "jo"])
    assert "did you mean 'joe'?" in unknown.output
    assert runner.invoke(app, ["keys", "revoke", "joe"]).exit_code == 0
    assert runner.invoke(app, ["keys", "create", "joe"]).exit_code == 0, "the name is free again"
