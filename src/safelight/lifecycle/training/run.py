"""One run: its folder, devices, base model and pictures.

runs/NAME/  recipe.yaml   every field of the recipe; `safelight train KIND --recipe` repeats the run
            report.json   problems found in the data
            state.pt      the checkpoint to resume from
            latents.safetensors, samples/, and the tracker's files
            NAME.safetensors, NAME.diffusers.safetensors
                          the result for other programs; safelight uses the registry's copy
            result.json   the registered version
"""

import fcntl
import importlib.util
import itertools
import json
from collections.abc import Generator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Literal

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedDataParallelKwargs

from safelight.errors import InvalidRequest, SafelightError, StorageFailed, UnsupportedOption, install
from safelight.lifecycle.training.check import DataReport, check, require_good
from safelight.lifecycle.training.dataset import AugmentCaption, Dataset, TrainingPicture, assign_buckets, hold_out
from safelight.lifecycle.training.events import Prepared, TrainingEvent
from safelight.lifecycle.training.latent_cache import prepare_latents
from safelight.lifecycle.training.noising import NoiseLevels
from safelight.lifecycle.training.privacy import require_dp_available
from safelight.lifecycle.training.recipe import (
    AnyRecipe,
    DreamBoothRecipe,
    EmbeddingRecipe,
    FullRecipe,
    changed_fields,
    parse_recipe,
    read_recipe,
)
from safelight.lifecycle.training.sources import find_examples
from safelight.models.checkpoints.digest import digest_model
from safelight.models.checkpoints.families import describe
from safelight.models.networks.load import Model, load_model
from safelight.models.networks.placement import Placement, best_device, fast_dtypes
from safelight.models.registry.registered_models import open_catalogue
from safelight.models.registry.registry import open_registry
from safelight.models.weights.identify import Kind
from safelight.settings import Settings


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    recipe: AnyRecipe
    settings: Settings
    folder: Path
    accelerator: Accelerator
    lock: IO[str]
    """An open file, locked during the run: one process group per folder."""
    version: str
    """Version of the code."""

    @property
    def half(self) -> bool:
        return self.accelerator.mixed_precision == "bf16"


def open_run(recipe: AnyRecipe, settings: Settings, folder: Path | None = None, *, version: str = "") -> Run:
    """Start a run, or resume the one in the folder.

    Raises:
        InvalidRequest: the folder has a run of another recipe, or one that is still running.
        UnsupportedOption: the precision, optimiser, tracker or differential privacy is not available here.
    """
    folder = folder or default_folder(recipe, settings.home / "runs")
    device = best_device() if settings.device == "auto" else settings.device
    require_available(recipe, device)
    accelerator = Accelerator(
        cpu=device == "cpu",
        mixed_precision="bf16" if use_half(recipe.precision, device) else "no",
        log_with=None if recipe.tracker == "none" else recipe.tracker,
        project_dir=str(folder),
        # With clip_skip, the last text-encoder layer gets no gradient.
        kwargs_handlers=[DistributedDataParallelKwargs(find_unused_parameters=True, broadcast_buffers=False)],
    )
    require_dp_available(recipe, processes=accelerator.num_processes)
    if recipe.batch % accelerator.num_processes:
        raise InvalidRequest(f"batch {recipe.batch} is not divisible by {accelerator.num_processes} processes")
    lock = lock_folder(folder, main=accelerator.is_main_process)
    try:
        require_resumable(recipe, settings, folder)
    except SafelightError:
        lock.close()
        raise
    accelerator.wait_for_everyone()
    if accelerator.is_main_process:
        content = f"# safelight train {recipe.kind} --recipe recipe.yaml\n{recipe.to_yaml()}"
        (folder / "recipe.yaml").write_text(content, "utf-8")
    return Run(recipe=recipe, settings=settings, folder=folder, accelerator=accelerator, lock=lock, version=version)


def require_resumable(recipe: AnyRecipe, settings: Settings, folder: Path) -> None:
    """Raises InvalidRequest if the folder has a run of another recipe, or the result's name is taken."""
    if (folder / "state.pt").exists() and (fields := changed_from_run(folder, recipe)):
        raise InvalidRequest(
            f"{folder} has a run with a different {', '.join(fields)}; choose another --name or --out for this one"
        )
    with open_registry(settings) as registry:
        registry.require_free(recipe.name, kind_of_result(recipe))


def default_folder(recipe: AnyRecipe, runs: Path) -> Path:
    """NAME, else NAME-2, NAME-3, ...: skips folders with a finished run of another recipe."""
    for number in itertools.count(1):
        folder = runs / (recipe.name if number == 1 else f"{recipe.name}-{number}")
        if not (folder / "result.json").exists() or not changed_from_run(folder, recipe):
            return folder
    raise AssertionError


def changed_from_run(folder: Path, recipe: AnyRecipe) -> list[str]:
    """The fields in which the recipe differs from that of the folder's run."""
    return changed_fields(parse_recipe(read_recipe(folder / "recipe.yaml")), recipe)


def kind_of_result(recipe: AnyRecipe) -> Kind:
    match recipe:
        case EmbeddingRecipe():
            return "embedding"
        case FullRecipe() | DreamBoothRecipe(whole=True):
            return "checkpoint"
        case _:
            return "lora"


def result_of(run: Run) -> Path:
    """Path of the trained file, or of the model's folder, before it is registered."""
    name = run.recipe.name
    return run.folder / (name if kind_of_result(run.recipe) == "checkpoint" else f"{name}.safetensors")


def lock_folder(folder: Path, *, main: bool) -> IO[str]:
    """Open the folder's lock file; the main process locks it."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = (folder / "lock").open("a")
    except OSError as error:
        raise StorageFailed(f"{folder} cannot be written to: {error.strerror}") from None
    if main:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            lock.close()
            raise InvalidRequest(f"a run is in progress in {folder}; wait for it, or choose another --out") from None
    return lock


def use_half(precision: Literal["auto", "float32", "bfloat16"], device: str) -> bool:
    if precision == "bfloat16" and torch.bfloat16 not in fast_dtypes(device):
        raise UnsupportedOption("precision", f"bfloat16 is many times slower than float32 on this {device}")
    # On a CPU with bfloat16 instructions, small networks train no faster, and less exactly.
    return precision == "bfloat16" or (precision == "auto" and device == "cuda" and torch.cuda.is_bf16_supported())


def require_available(recipe: AnyRecipe, device: str) -> None:
    """Raises UnsupportedOption if the optimiser or the tracker cannot be used here."""
    if recipe.optimizer == "adamw8bit" and (device != "cuda" or importlib.util.find_spec("bitsandbytes") is None):
        raise UnsupportedOption("optimizer", "adamw8bit needs a CUDA device and the package bitsandbytes; use adamw")
    if recipe.tracker != "none" and importlib.util.find_spec(recipe.tracker) is None:
        extra = "train" if recipe.tracker == "tensorboard" else recipe.tracker
        raise UnsupportedOption("tracker", f"{recipe.tracker} is not installed; use none, or {install(extra)}")


def open_base(run: Run, *, frozen: bool) -> Model:
    """Load the base model, in float32 unless its own weights are frozen."""
    catalogue = open_catalogue(run.settings)
    description = describe(catalogue.find(run.recipe.base))
    if description.inpaints_natively or description.takes_guidance:
        raise UnsupportedOption(
            "base", f"{run.recipe.base} takes a mask or a guidance scale as input; train its base model"
        )
    digest = digest_model(description, cache=catalogue.sums)
    placement = Placement(run.accelerator.device, torch.bfloat16 if run.half and frozen else torch.float32)
    model = load_model(description, name=run.recipe.base, digest=digest, placement=placement)
    if run.recipe.gradient_checkpointing:
        model.unet.enable_gradient_checkpointing()
        for encoder in model.text_encoders:
            encoder.network.activation_checkpointing_enable()
    return model


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingData:
    """The data of a run."""

    dataset: Dataset
    held_out: tuple[TrainingPicture, ...]
    levels: NoiseLevels
    report: DataReport


def prepare(
    run: Run,
    model: Model,
    *,
    augment: AugmentCaption,
    needs_captions: bool = True,
    prior_pictures: Sequence[TrainingPicture] = (),
    prior_weight: float = 1.0,
    pictures: Sequence[TrainingPicture] | None = None,
    report: DataReport | None = None,
) -> Generator[TrainingEvent, None, TrainingData]:
    """Check the pictures, crop them to their buckets, and encode them.

    Raises:
        InvalidRequest: an example cannot be trained on and may not be skipped.
    """
    recipe = run.recipe
    report = report or check_data(run, needs_captions=needs_captions)
    pictures = pictures or assign_buckets(report.good, model.description, recipe)
    training, held_out = hold_out(pictures, recipe.holdout, recipe.seed)
    levels = NoiseLevels.of(model.description.scheduler, run.accelerator.device)
    # The main process writes the cache, the others read it.
    with run.accelerator.main_process_first():
        load_latent = yield from prepare_latents(
            [*training, *held_out, *prior_pictures],
            model.vae,
            mask=recipe.mask,
            flip=recipe.flip,
            cache=run.folder / "latents.safetensors" if recipe.cache_latents else None,
            key=f"{report.digest} {model.digest}",
        )
    dataset = Dataset(
        training,
        load_latent,
        recipe,
        augment=augment,
        num_timesteps=len(levels),
        prior_pictures=prior_pictures,
        prior_weight=prior_weight,
    )
    yield Prepared(
        num_pictures=len(training),
        num_held=len(held_out),
        dataset_digest=report.digest,
        buckets={f"{width}x{height}": count for (width, height), count in sorted(dataset.buckets.items())},
        notes=report.lines(),
    )
    return TrainingData(dataset=dataset, held_out=tuple(held_out), levels=levels, report=report)


def check_data(run: Run, *, needs_captions: bool) -> DataReport:
    """Check the recipe's data, write report.json, and raise InvalidRequest for errors that may not be skipped."""
    recipe = run.recipe
    report = check(
        find_examples(recipe.data),
        data=recipe.data,
        min_side=recipe.min_side,
        needs_captions=needs_captions,
        needs_masks=recipe.mask == "file",
    )
    if run.accelerator.is_main_process:
        require_same_pictures(run.folder, report)
        with suppress(OSError):
            report.write(run.folder / "report.json")
    require_good(report, skip_bad=recipe.skip_bad)
    return report


def require_same_pictures(folder: Path, report: DataReport) -> None:
    """Raises InvalidRequest if a run would be resumed with other pictures or captions."""
    if not (folder / "state.pt").exists():
        return
    with suppress(OSError, ValueError, KeyError):
        if json.loads((folder / "report.json").read_text("utf-8"))["digest"] != report.digest:
            raise InvalidRequest(
                f"the pictures or captions differ from those that the run in {folder} started with; "
                "choose another --out to train the next version"
            )


def close_run(run: Run) -> None:
    run.accelerator.end_training()
    run.lock.close()
