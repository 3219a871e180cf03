"""`safelight eval mini` end to end: the embedded model draws, the shipped judge answers."""

import json
from pathlib import Path

import numpy as np
from typer.testing import CliRunner

from safelight.cli.main import app
from safelight.lifecycle.evaluation.nearest import NEAREST
from safelight.lifecycle.evaluation.prompt_adherence import MEASURES, read_prompts


def test_a_quick_evaluation_prints_and_writes_scores(tmp_path: Path) -> None:
    scores = tmp_path / "scores.json"
    command = ["eval", "mini", "--seeds", "1", "--limit", "1", "--steps", "1", "--json", str(scores)]
    result = CliRunner().invoke(app, command)
    assert result.exit_code == 0, result.output
    assert "artwork it has not seen" in result.output
    written = json.loads(scores.read_text())
    assert [row["name"] for row in written["scores"]] == [measure.name for measure in MEASURES]
    assert written["judge"]["concept"] > 0.5


def test_an_evaluation_with_real_artwork_measures_similarity(tmp_path: Path) -> None:
    pictures = np.random.default_rng(0).integers(0, 256, (6, 128, 128, 4), dtype=np.uint8)
    np.save(tmp_path / "pictures.npy", pictures)
    first = read_prompts()["styles"][0][0].partition(",")[0]
    thing = min(dict(read_prompts()["concepts"])[first]["concept"])
    about = [
        {"key": str(row), "own_colour": True, "concept": thing, "style": style}
        for row, style in enumerate(("noto", "flat", "glossy") * 2)
    ]
    (tmp_path / "pictures.json").write_text(json.dumps(about))
    (tmp_path / "holdout.json").write_text(json.dumps(["0", "1", "2"]))
    scores = tmp_path / "scores.json"
    command = ["eval", "mini", "--seeds", "2", "--limit", "1", "--steps", "1", "--artwork", str(tmp_path)]
    result = CliRunner().invoke(app, [*command, "--json", str(scores)])
    assert result.exit_code == 0, result.output
    assert "Kernel distance to held-out artwork" in result.output
    names = [row["name"] for row in json.loads(scores.read_text())["scores"]]
    assert names == [measure.name for measure in (*MEASURES[:4], NEAREST, *MEASURES[4:])]
    assert json.loads(scores.read_text())["likeness"]["copies_by_pixels"] in (0.0, 0.5, 1.0)
