"""Register the result of a run as a version, with its lineage and metrics."""

import json
import math
import shutil
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from pathlib import Path
from statistics import fmean
from typing import Any

from safelight.errors import StorageFailed
from safelight.lifecycle.training.check import DataReport
from safelight.lifecycle.training.events import TrainingFinished
from safelight.lifecycle.training.loop import FitResult
from safelight.lifecycle.training.privacy import Privacy
from safelight.lifecycle.training.run import Run, kind_of_result
from safelight.models.networks.load import Model
from safelight.models.registry.registry import open_registry
from safelight.models.registry.version import Lineage, Parent

BASE_VERSIONS = {"sd1": "sd_v1", "sd2": "sd_v2", "sdxl": "sdxl_base_v1-0"}
"""kohya's names of the model families."""
POINTS = 100
"""Most points of a loss curve in a version's metrics."""


def lineage(
    run: Run, model: Model, report: DataReport, result: FitResult, privacy: Privacy | None = None
) -> dict[str, Any]:
    """Base model, data, recipe and code: enough to repeat the run.

    A private run's dataset digest stays in its own folder, because it could confirm a guess of the pictures.
    """
    return {
        "base": model.name,
        "base_digest": model.digest,
        "family": model.description.family.name,
        "data": run.recipe.data,
        "dataset_digest": None if privacy else report.digest,
        "num_pictures": len(report.good),
        "recipe": run.recipe.model_dump(mode="json"),
        "recipe_digest": run.recipe.digest(),
        "steps": result.step,
        "stopped_early": result.stopped_early,
        "code_version": run.version,
        "privacy": privacy.guarantee(result.spent) if privacy else None,
    }


def header(record: dict[str, Any]) -> dict[str, str]:
    """The lineage in the header format of other programs; no times, so that the same run writes the same file."""
    recipe = record["recipe"]
    fields = {
        "ss_base_model_version": BASE_VERSIONS[record["family"]],
        "ss_sd_model_name": record["base"],
        "ss_new_sd_model_hash": record["base_digest"],
        "ss_dataset_digest": record["dataset_digest"],
        "ss_num_train_images": record["num_pictures"],
        "ss_steps": record["steps"],
        "ss_learning_rate": recipe["rate"],
        "ss_batch_size_per_device": recipe["batch"],
        "ss_seed": recipe["seed"],
        "ss_output_name": recipe["name"],
        "ss_min_snr_gamma": recipe["snr_gamma"],
        "ss_noise_offset": recipe["offset_noise"] or None,
        "ss_network_module": "networks.lora" if "rank" in recipe else None,
        "ss_network_dim": recipe.get("rank"),
        "ss_network_alpha": (recipe.get("alpha") or recipe.get("rank")) if "rank" in recipe else None,
        "modelspec.title": recipe["name"],
        "safelight.privacy": json.dumps(record["privacy"]) if record["privacy"] else None,
        "safelight.version": record["code_version"],
        "safelight.recipe": json.dumps(recipe, sort_keys=True),
    }
    return {name: str(value) for name, value in fields.items() if value is not None}


def finish(run: Run, path: Path, record: dict[str, Any], result: FitResult) -> TrainingFinished:
    """Register the result as a version, and write result.json to the run's folder.

    Repeating a run that was killed in here ends at once with the same version: the same contents are never registered
    twice under one name.
    """
    recipe = run.recipe
    with hint_to_rerun(), open_registry(run.settings) as registry:
        base = registry.by_digest(record["base_digest"], "checkpoint")
        version = registry.add(
            path,
            name=recipe.name,
            kind=kind_of_result(recipe),
            # The base model's licence applies to models made from it.
            licence=base.licence if base else None,
            lineage=Lineage(
                parents=(base.parent() if base else Parent(name=record["base"], digest=record["base_digest"]),),
                dataset_digest=record["dataset_digest"] or "",
                recipe=record["recipe"],
                code_version=record["code_version"],
                metrics=metrics(run, record, result),
            ),
        )
    if path.is_dir():  # a whole model is large, and other programs do not read it here
        shutil.rmtree(path)
    record = record | {"path": str(version.path), "digest": version.digest, "version": version.reference}
    try:
        (run.folder / "result.json").write_text(json.dumps(record, indent=2) + "\n", "utf-8")
    except OSError as error:
        raise StorageFailed(f"{run.folder / 'result.json'} could not be written: {error.strerror}") from None
    return TrainingFinished(
        name=recipe.name,
        kind=recipe.kind,
        reference=version.reference,
        path=version.path,
        step=result.step,
        stopped_early=result.stopped_early,
        lineage=record,
    )


@contextmanager
def hint_to_rerun() -> Generator[None, None, None]:
    """Add to a StorageFailed that repeating the run ends at once."""
    try:
        yield
    except StorageFailed as error:
        raise StorageFailed(f"{error}; then run the command again; the training itself is finished") from None


def metrics(run: Run, record: dict[str, Any], result: FitResult) -> dict[str, Any]:
    """The run's metrics, stored with the version.

    A private run's losses and duration are left out: they depend on the sampled pictures.
    """
    samples = sorted((run.folder / "samples").glob("*.png"))
    private = record["privacy"] is not None
    return {
        "num_pictures": record["num_pictures"],
        "steps": result.step,
        "stopped_early": result.stopped_early,
        "seconds": None if private else round(result.seconds, 1),
        "run": str(run.folder),
        "samples": [str(path) for path in samples],
        "privacy": record["privacy"],
        "held_loss": None if private else result.held_loss,
        "losses": [] if private else thinned(result.losses),
    }


def thinned(losses: Sequence[float]) -> list[tuple[int, float]]:
    """The loss curve in at most `POINTS` points: the last step of each part of the run, and the part's mean loss."""
    stride = max(1, math.ceil(len(losses) / POINTS))
    parts = [losses[start : start + stride] for start in range(0, len(losses), stride)]
    return [(min((number + 1) * stride, len(losses)), fmean(part)) for number, part in enumerate(parts)]
