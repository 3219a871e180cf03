"""`safelight eval mini` end to end: the embedded model draws, the shipped judge answers."""

import json
from pathlib import Path

from typer.testing import CliRunner

from safelight.cli.main import app
from safelight.evaluation.obedience import MEASURES


def test_a_quick_look(tmp_path: Path) -> None:
    scores = tmp_path / "scores.json"
    command = ["eval", "mini", "--seeds", "1", "--limit", "1", "--steps", "1", "--json", str(scores)]
    result = CliRunner().invoke(app, command)
    assert result.exit_code == 0, result.output
    assert "artwork it has not seen" in result.output
    written = json.loads(scores.read_text())
    assert [row["name"] for row in written["scores"]] == [measure.name for measure in MEASURES]
    assert written["judge"]["concept"] > 0.5
