"""What a run leaves behind, and what is known of how it was made."""

import json
from pathlib import Path
from typing import Any

from safelight.errors import StorageFailed
from safelight.models.digest import file_sum
from safelight.models.load import Model
from safelight.training.check import Report
from safelight.training.loop import Ended
from safelight.training.news import Finished
from safelight.training.privacy import Privacy
from safelight.training.run import Run

BASE_VERSIONS = {"sd1": "sd_v1", "sd2": "sd_v2", "sdxl": "sdxl_base_v1-0"}
"""kohya's names of the families."""


def lineage(run: Run, model: Model, report: Report, ended: Ended, privacy: Privacy | None = None) -> dict[str, Any]:
    """From what, by what, with what: enough to make it again."""
    return {
        "base": model.name,
        "base_digest": model.digest,
        "family": model.description.family.name,
        "data": run.recipe.data,
        "dataset_digest": report.digest,
        "num_pictures": len(report.good),
        "recipe": run.recipe.model_dump(mode="json"),
        "recipe_digest": run.recipe.digest(),
        "steps": ended.step,
        "stopped_early": ended.stopped_early,
        "code_version": run.version,
        "privacy": privacy.spent(ended.step) if privacy else None,
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


def finish(run: Run, path: Path, known: dict[str, Any], ended: Ended) -> Finished:
    """Write down beside the run what it came to."""
    digest = file_sum(path) if path.is_file() else None
    known = known | {"path": str(path), "digest": digest}
    try:
        (run.folder / "result.json").write_text(json.dumps(known, indent=2) + "\n", "utf-8")
    except OSError as error:
        raise StorageFailed(f"{run.folder / 'result.json'} could not be written: {error.strerror}") from None
    return Finished(
        name=run.recipe.name,
        kind=run.recipe.kind,
        path=path,
        step=ended.step,
        stopped_early=ended.stopped_early,
        lineage=known,
    )
