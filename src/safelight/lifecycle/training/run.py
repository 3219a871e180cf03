"""One run: its folder, its devices, its model, its pictures.

runs/NAME/  recipe.yaml   every number of the run; `safelight train KIND --recipe` repeats it
            report.json   what was found in the data
            state.pt      the checkpoint that a run goes on from
            latents.safetensors, samples/, and the tracker's files
            NAME.safetensors, NAME.diffusers.safetensors
                          what was learnt, as other programs read it; ours take it from the registry
            result.json   the version that it became
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
from safelight.lifecycle.training.dataset import Dataset, Ready, Say, hold_out, make_ready
from safelight.lifecycle.training.events import Prepared, TrainingEvent
from safelight.lifecycle.training.latent_cache import latents_of
from safelight.lifecycle.training.noising import NoiseLevels
from safelight.lifecycle.training.privacy import require_private
from safelight.lifecycle.training.recipe import (
    AnyRecipe,
    DreamBoothRecipe,
    EmbeddingRecipe,
    FullRecipe,
    changed,
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
    """Held open for as long as the run is: one process group a folder."""
    version: str
    """Of the code."""

    @property
    def half(self) -> bool:
        return self.accelerator.mixed_precision == "bf16"


def open_run(recipe: AnyRecipe, settings: Settings, folder: Path | None = None, *, version: str = "") -> Run:
    """Begin a run, or take up the one in the folder.

    Raises:
        InvalidRequest: the folder has a run of another recipe, or one that is going on.
        UnsupportedOption: a precision, an optimiser, a tracker or a privacy that is not to be had here.
    """
    folder = folder or usual_folder(recipe, settings.home / "runs")
    device = best_device() if settings.device == "auto" else settings.device
    require_known(recipe, device)
    accelerator = Accelerator(
        cpu=device == "cpu",
        mixed_precision="bf16" if use_half(recipe.precision, device) else "no",
        log_with=None if recipe.tracker == "none" else recipe.tracker,
        project_dir=str(folder),
        # A text encoder's last layer may not be read at all.
        kwargs_handlers=[DistributedDataParallelKwargs(find_unused_parameters=True, broadcast_buffers=False)],
    )
    require_private(recipe, processes=accelerator.num_processes)
    if recipe.batch % accelerator.num_processes:
        raise InvalidRequest(f"batch {recipe.batch} cannot be shared evenly by {accelerator.num_processes} processes")
    lock = locked(folder, main=accelerator.is_main_process)
    try:
        take_up_or_begin(recipe, settings, folder)
    except SafelightError:
        lock.close()
        raise
    accelerator.wait_for_everyone()
    if accelerator.is_main_process:
        said = f"# safelight train {recipe.kind} --recipe recipe.yaml\n{recipe.to_yaml()}"
        (folder / "recipe.yaml").write_text(said, "utf-8")
    return Run(recipe=recipe, settings=settings, folder=folder, accelerator=accelerator, lock=lock, version=version)


def take_up_or_begin(recipe: AnyRecipe, settings: Settings, folder: Path) -> None:
    """Raises InvalidRequest where there is another run, or where the result could not have its name."""
    if (folder / "state.pt").exists() and (other := differs(folder, recipe)):
        raise InvalidRequest(
            f"{folder} holds a run with another {', '.join(other)}; give this one a --name or an --out of its own"
        )
    with open_registry(settings) as registry:
        registry.require_free(recipe.name, kind_of_result(recipe))


def usual_folder(recipe: AnyRecipe, runs: Path) -> Path:
    """NAME, and NAME-2, NAME-3 for later versions: a folder whose run has ended with another recipe is left alone."""
    for number in itertools.count(1):
        folder = runs / (recipe.name if number == 1 else f"{recipe.name}-{number}")
        if not (folder / "result.json").exists() or not differs(folder, recipe):
            return folder
    raise AssertionError


def differs(folder: Path, recipe: AnyRecipe) -> list[str]:
    """What another recipe than that of the folder's run says."""
    return changed(parse_recipe(read_recipe(folder / "recipe.yaml")), recipe)


def kind_of_result(recipe: AnyRecipe) -> Kind:
    match recipe:
        case EmbeddingRecipe():
            return "embedding"
        case FullRecipe() | DreamBoothRecipe(whole=True):
            return "checkpoint"
        case _:
            return "lora"


def result_of(run: Run) -> Path:
    """The file of what was learnt, or the folder, on its way to the registry."""
    name = run.recipe.name
    return run.folder / (name if kind_of_result(run.recipe) == "checkpoint" else f"{name}.safetensors")


def locked(folder: Path, *, main: bool) -> IO[str]:
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
            raise InvalidRequest(f"a run is going on in {folder}; wait for it, or give another --out") from None
    return lock


def use_half(precision: Literal["auto", "float32", "bfloat16"], device: str) -> bool:
    if precision == "bfloat16" and torch.bfloat16 not in fast_dtypes(device):
        raise UnsupportedOption("precision", f"bfloat16 is many times slower than float32 on this {device}")
    # A CPU that has the instructions trains small networks no faster with them, and less exactly.
    return precision == "bfloat16" or (precision == "auto" and device == "cuda" and torch.cuda.is_bf16_supported())


def require_known(recipe: AnyRecipe, device: str) -> None:
    if recipe.optimizer == "adamw8bit" and (device != "cuda" or importlib.util.find_spec("bitsandbytes") is None):
        raise UnsupportedOption("optimizer", "adamw8bit needs a CUDA device and the package bitsandbytes; adamw runs")
    if recipe.tracker != "none" and importlib.util.find_spec(recipe.tracker) is None:
        extra = "train" if recipe.tracker == "tensorboard" else recipe.tracker
        raise UnsupportedOption("tracker", f"{recipe.tracker} is not installed; take none, or {install(extra)}")


def open_base(run: Run, *, frozen: bool) -> Model:
    """The model to begin with. In half precision only where its own weights stay as they are."""
    catalogue = open_catalogue(run.settings)
    description = describe(catalogue.find(run.recipe.base))
    if description.inpaints_natively or description.takes_guidance:
        raise UnsupportedOption(
            "base", f"{run.recipe.base} also reads a mask or a guidance scale; train its base model"
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
    """What a run learns from."""

    dataset: Dataset
    held: tuple[Ready, ...]
    levels: NoiseLevels
    report: DataReport


def prepare(
    run: Run,
    model: Model,
    *,
    say: Say,
    needs_captions: bool = True,
    of_class: Sequence[Ready] = (),
    prior_weight: float = 1.0,
    ready: Sequence[Ready] | None = None,
    report: DataReport | None = None,
) -> Generator[TrainingEvent, None, TrainingData]:
    """Look at the pictures, cut them to their buckets, send them through the autoencoder.

    Raises:
        InvalidRequest: something cannot be learnt from and may not be left out.
    """
    recipe = run.recipe
    report = report or look_over(run, needs_captions=needs_captions)
    ready = ready or make_ready(report.good, model.description, recipe)
    own, held = hold_out(ready, recipe.holdout, recipe.seed)
    levels = NoiseLevels.of(model.description.scheduler, run.accelerator.device)
    # The main process makes the cache, the others read it.
    with run.accelerator.main_process_first():
        latent = yield from latents_of(
            [*own, *held, *of_class],
            model.vae,
            mask=recipe.mask,
            flip=recipe.flip,
            cache=run.folder / "latents.safetensors" if recipe.cache_latents else None,
            key=f"{report.digest} {model.digest}",
        )
    dataset = Dataset(
        own,
        latent,
        recipe,
        say=say,
        num_timesteps=len(levels),
        of_class=of_class,
        prior_weight=prior_weight,
    )
    yield Prepared(
        num_pictures=len(own),
        num_held=len(held),
        dataset_digest=report.digest,
        buckets={f"{width}x{height}": count for (width, height), count in sorted(dataset.buckets.items())},
        notes=report.lines(),
    )
    return TrainingData(dataset=dataset, held=tuple(held), levels=levels, report=report)


def look_over(run: Run, *, needs_captions: bool) -> DataReport:
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
    """A run that is taken up goes on with what it began with."""
    if not (folder / "state.pt").exists():
        return
    with suppress(OSError, ValueError, KeyError):
        if json.loads((folder / "report.json").read_text("utf-8"))["digest"] != report.digest:
            raise InvalidRequest(
                f"the pictures or captions are others than those that the run in {folder} began with; "
                "give this one an --out of its own, and it becomes the next version"
            )


def close_run(run: Run) -> None:
    run.accelerator.end_training()
    run.lock.close()
