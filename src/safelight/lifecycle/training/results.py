"""What a run leaves behind, and what is known of how it was made."""

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
"""kohya's names of the families."""
POINTS = 100
"""Of a curve, in the record of a version."""


def lineage(
    run: Run, model: Model, report: DataReport, ended: FitResult, privacy: Privacy | None = None
) -> dict[str, Any]:
    """From what, by what, with what: enough to make it again.

    A private run keeps the digest of its pictures in its own folder: who guesses the pictures could try them on it.
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
        "steps": ended.step,
        "stopped_early": ended.stopped_early,
        "code_version": run.version,
        "privacy": privacy.told(ended.spent) if privacy else None,
    }


def header(known: dict[str, Any]) -> dict[str, str]:
    """The lineage as programs expect it in a file's header; no times, so that the same run writes the same file."""
    recipe = known["recipe"]
    said = {
        "ss_base_model_version": BASE_VERSIONS[known["family"]],
        "ss_sd_model_name": known["base"],
        "ss_new_sd_model_hash": known["base_digest"],
        "ss_dataset_digest": known["dataset_digest"],
        "ss_num_train_images": known["num_pictures"],
        "ss_steps": known["steps"],
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
        "safelight.privacy": json.dumps(known["privacy"]) if known["privacy"] else None,
        "safelight.version": known["code_version"],
        "safelight.recipe": json.dumps(recipe, sort_keys=True),
    }
    return {name: str(value) for name, value in said.items() if value is not None}


def finish(run: Run, path: Path, known: dict[str, Any], ended: FitResult) -> TrainingFinished:
    """Make a version of what was learnt, and write down beside the run what it came to.

    A run that was killed before this ended is given again, ends at once, and comes to the same version: the same
    contents are never registered twice under one name.
    """
    recipe = run.recipe
    with again_later(), open_registry(run.settings) as registry:
        base = registry.by_digest(known["base_digest"], "checkpoint")
        version = registry.add(
            path,
            name=recipe.name,
            kind=kind_of_result(recipe),
            # What binds who uses the base binds who uses what was made from it.
            licence=base.licence if base else None,
            lineage=Lineage(
                parents=(base.parent() if base else Parent(name=known["base"], digest=known["base_digest"]),),
                dataset_digest=known["dataset_digest"] or "",
                recipe=known["recipe"],
                code_version=known["code_version"],
                metrics=metrics(run, known, ended),
            ),
        )
    if path.is_dir():  # a whole model is large, and no other program looks for it here
        shutil.rmtree(path)
    known = known | {"path": str(version.path), "digest": version.digest, "version": version.reference}
    try:
        (run.folder / "result.json").write_text(json.dumps(known, indent=2) + "\n", "utf-8")
    except OSError as error:
        raise StorageFailed(f"{run.folder / 'result.json'} could not be written: {error.strerror}") from None
    return TrainingFinished(
        name=recipe.name,
        kind=recipe.kind,
        reference=version.reference,
        path=version.path,
        step=ended.step,
        stopped_early=ended.stopped_early,
        lineage=known,
    )


@contextmanager
def again_later() -> Generator[None, None, None]:
    try:
        yield
    except StorageFailed as error:
        raise StorageFailed(f"{error}; then run it again: it ends at once") from None


def metrics(run: Run, known: dict[str, Any], ended: FitResult) -> dict[str, Any]:
    """How the run went, for those who look at the version later.

    The losses of a private run, and how long its chosen pictures took, are its owner's alone.
    """
    samples = sorted((run.folder / "samples").glob("*.png"))
    private = known["privacy"] is not None
    return {
        "num_pictures": known["num_pictures"],
        "steps": ended.step,
        "stopped_early": ended.stopped_early,
        "seconds": None if private else round(ended.seconds, 1),
        "run": str(run.folder),
        "samples": [str(path) for path in samples],
        "privacy": known["privacy"],
        "held_loss": None if private else ended.held_loss,
        "losses": [] if private else thinned(ended.losses),
    }


def thinned(losses: Sequence[float]) -> list[tuple[int, float]]:
    """The curve in at most `POINTS` points: the last step of each part of the run, and the mean loss over it."""
    stride = max(1, math.ceil(len(losses) / POINTS))
    parts = [losses[start : start + stride] for start in range(0, len(losses), stride)]
    return [(min((number + 1) * stride, len(losses)), fmean(part)) for number, part in enumerate(parts)]
