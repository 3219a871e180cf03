"""`safelight train`: its error messages; the stages are tested in tests/lifecycle/mini."""

from pathlib import Path

import pytest
from typer.testing import CliRunner

from safelight.cli.main import app
from safelight.cli.tune import promised
from safelight.lifecycle.mini import scratch


def test_a_stage_that_needs_a_model_refuses_to_run_without(tmp_path: Path) -> None:
    result = CliRunner().invoke(app, ["train", "scratch", "adopt", "--out", str(tmp_path)])
    assert result.exit_code == 2
    assert "adopt needs --folder" in result.output


def test_a_machine_without_npm_is_told_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    result = CliRunner().invoke(app, ["train", "scratch", "artwork", "--out", str(tmp_path / "run")])
    assert result.exit_code == 1
    assert "install Node.js" in result.output


def test_a_run_resumes_after_its_finished_stages(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    begun: list[str] = []

    def train(stage: str, _orders: scratch.ScratchOptions, *, processes: int) -> None:
        begun.append(stage)
        if len(begun) == 4:
            raise KeyboardInterrupt

    monkeypatch.setattr(scratch, "train_stage", train)
    (tmp_path / "tokenizer").mkdir()
    (tmp_path / "tokenizer/vocab.json").write_text("{}")
    orders = scratch.ScratchOptions(out=tmp_path)
    with pytest.raises(KeyboardInterrupt):
        scratch.train_all(orders, processes=1)
    (tmp_path / "views.json").write_text("[]")
    scratch.train_all(orders, processes=1)
    assert begun == ["autoencoder", "denoiser", "styling", "decoder", "decoder", "export", "image-encoder"]

    scratch.train_all(orders, processes=1)
    assert len(begun) == 7
    assert "finished run" in capsys.readouterr().out


def test_a_privacy_guarantee_names_its_accountants() -> None:
    said = {"epsilon": 6.641, "accountant": "prv", "epsilon_rdp": 7.994, "delta": 1e-5}
    assert promised(said) == "epsilon 6.64 at delta 1e-05 by prv, 7.99 by rdp"
    assert promised(said | {"epsilon": 7.994, "accountant": "rdp"}) == "epsilon 7.99 at delta 1e-05 by rdp"
