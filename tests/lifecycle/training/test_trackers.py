"""Trackers of a run's metrics."""

from pathlib import Path

import pytest
from tests.lifecycle.training.lessons import Checkpoints, learn, recipe_for, write_pictures

from safelight.lifecycle.training.events import Updated


@pytest.mark.extras
@pytest.mark.needs("mlflow")
def test_mlflow_gets_the_losses(checkpoint: Checkpoints, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # Its other store on disk warns of its own use of SQLAlchemy.
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", (tmp_path / "mlruns").as_uri())
    news = learn(recipe_for(checkpoint("sd1"), write_pictures(tmp_path / "data"), steps=3, tracker="mlflow"), tmp_path)
    from mlflow import MlflowClient

    client = MlflowClient()
    [run] = client.search_runs([experiment.experiment_id for experiment in client.search_experiments()])
    told = [(metric.step, metric.value) for metric in client.get_metric_history(run.info.run_id, "loss")]
    assert told == [(item.step, pytest.approx(item.loss)) for item in news if isinstance(item, Updated)]
