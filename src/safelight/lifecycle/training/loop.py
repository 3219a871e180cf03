"""The training loop that all recipes share: a batch, a loss, an update; validation, samples and checkpoints.

    batch(number) -> loss -> gradients -> update -> Updated
    at intervals: Validated, Sampled, Saved

A step's randomness depends only on (seed, step), so a killed run resumes exactly.
"""

import math
import time
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from contextlib import nullcontext, suppress
from dataclasses import dataclass, field
from typing import Any

import torch
from accelerate.utils import broadcast
from torch import Tensor, nn
from torch.optim import AdamW, Optimizer

from safelight.errors import InvalidRequest, JobFailed, StorageFailed
from safelight.lifecycle.training.accounting import Spent
from safelight.lifecycle.training.averaging import Average
from safelight.lifecycle.training.caption_encoder import CaptionEncoder
from safelight.lifecycle.training.checkpoint import load_checkpoint, save_checkpoint
from safelight.lifecycle.training.dataset import LoadLatent, TrainingBatch, TrainingPicture, make_batch, to_device
from safelight.lifecycle.training.defer_interrupts import defer_interrupts
from safelight.lifecycle.training.events import Saved, TrainingEvent, Updated, Validated
from safelight.lifecycle.training.noising import NoiseLevels, errors
from safelight.lifecycle.training.optimizer import set_rates
from safelight.lifecycle.training.privacy import Privacy, private_gradients
from safelight.lifecycle.training.rates import rate_factor
from safelight.lifecycle.training.recipe import Recipe
from safelight.lifecycle.training.run import Run, TrainingData
from safelight.lifecycle.training.seeds import seed_of
from safelight.models.networks.load import Model

HELD_OUT_ROWS = 32
"""Least number of rows, each at its own noise level, that held-out pictures are measured with."""


SAVED_FIELDS = ("step", "seconds", "best", "best_weights", "waited", "losses", "spent")
"""Fields of the state that a checkpoint stores unchanged."""


class Learner(nn.Module):
    """The networks as one module, from a batch to its loss, so that several devices can train it."""

    def __init__(
        self, model: Model, caption_encoder: CaptionEncoder, levels: NoiseLevels, *, snr_gamma: float | None
    ) -> None:
        super().__init__()
        self.unet: Any = model.unet
        self.caption_encoder = caption_encoder
        self.levels = levels
        self.snr_gamma = snr_gamma
        self.dtype = model.placement.dtype
        self.takes_sizes = model.description.unet.get("addition_embed_type") == "text_time"

    def forward(self, batch: TrainingBatch) -> Tensor:
        """The weighted loss, a scalar."""
        weights = self.levels.weights(batch.timesteps, self.snr_gamma)
        return batch.loss(weights * self.errors(batch))

    def errors(self, batch: TrainingBatch) -> Tensor:
        """(b,) the mean squared error of each picture."""
        context, pooled = self.caption_encoder(batch.captions)
        noisy = self.levels.noisy(batch.latents, batch.noise, batch.timesteps)
        added = {"text_embeds": pooled, "time_ids": batch.time_ids} if self.takes_sizes else None
        outputs = self.unet(
            noisy.to(self.dtype), batch.timesteps, context.to(self.dtype), added_cond_kwargs=added
        ).sample
        return errors(outputs, self.levels.target(batch.latents, batch.noise, batch.timesteps), batch.masks)


@dataclass(slots=True, kw_only=True)
class TrainingState:
    """The mutable state of a run; saved and restored as a whole."""

    params: Mapping[str, nn.Parameter]
    """The trained parameters, by name."""
    optimizer: Optimizer
    average: Average | None = None
    step: int = 0
    seconds: float = 0.0
    best: float = math.inf
    """Lowest error on the held-out pictures."""
    best_weights: list[Tensor] = field(default_factory=list[Tensor])
    waited: int = 0
    """Measurements since the last improvement."""
    losses: list[float] = field(default_factory=list[float])
    """One per step."""
    spent: list[Spent] = field(default_factory=list[Spent])
    """Privacy history of a private run."""
    saved: int = 0
    """The step of the last checkpoint."""

    def as_dict(self) -> dict[str, Any]:
        return {
            "weights": {name: param.detach() for name, param in self.params.items()},
            "optimizer": self.optimizer.state_dict(),
            "average": self.average.state_dict() if self.average else None,
            **{name: getattr(self, name) for name in SAVED_FIELDS},
        }

    @torch.no_grad()
    def restore(self, stored: Mapping[str, Any]) -> None:
        for name, param in self.params.items():
            param.copy_(stored["weights"][name])
        self.optimizer.load_state_dict(stored["optimizer"])
        if self.average and stored["average"]:
            self.average.load_state_dict(stored["average"])
        for name in SAVED_FIELDS:
            setattr(self, name, stored.get(name, []) if name == "spent" else stored[name])
        self.saved = self.step

    @torch.no_grad()
    def load_final_weights(self, *, stopped_early: bool) -> None:
        """Set the parameters to the weights to save: the best if stopped early, else the average, else the last."""
        chosen = self.best_weights if stopped_early else self.average.shadow if self.average else []
        for param, weight in zip(self.params.values(), chosen, strict=bool(chosen)):
            param.copy_(weight)


@dataclass(frozen=True, slots=True)
class FitResult:
    step: int
    stopped_early: bool
    losses: Sequence[float]
    """One per step."""
    held_loss: float | None
    """The lowest on the held-out pictures, if there are any."""
    seconds: float
    spent: Sequence[Spent]


def new_state(
    recipe: Recipe,
    groups: Mapping[str, Mapping[str, nn.Parameter]],
    *,
    rate: float | None = None,
    ema: float | None = None,
) -> TrainingState:
    """AdamW over parameters by part; parts other than `unet` are text encoders and use the recipe's `text_rate`."""
    rate = rate or recipe.rate
    param_groups = [
        {"params": list(params.values()), "lr": rate if part == "unet" else recipe.text_rate or rate}
        for part, params in groups.items()
        if params
    ]
    optimizer = make_optimizer(recipe, param_groups)
    for group in optimizer.param_groups:
        group["full_rate"] = group["lr"]
    params = {f"{part}.{name}": param for part, inside in groups.items() for name, param in inside.items()}
    average = Average(nn.ParameterList(params.values()), ema) if ema else None
    return TrainingState(params=params, optimizer=optimizer, average=average)


def make_optimizer(recipe: Recipe, groups: Iterable[dict[str, Any]]) -> Optimizer:
    if recipe.optimizer == "adamw8bit":
        from bitsandbytes.optim import AdamW8bit  # pyright: ignore[reportMissingImports]

        return AdamW8bit(list(groups), weight_decay=recipe.weight_decay)
    return AdamW(list(groups), weight_decay=recipe.weight_decay)


Draw = Callable[[int], Generator[TrainingEvent, None, None]]
"""Draws sample pictures after the given step."""


def fit(
    run: Run,
    learner: Learner,
    state: TrainingState,
    data: TrainingData,
    *,
    draw: Draw,
    privacy: Privacy | None = None,
) -> Generator[TrainingEvent, None, FitResult]:
    """Train to the recipe's last step, from the checkpoint in the run's folder if there is one.

    Closing the generator, or Ctrl-C, saves a checkpoint of the last complete step.

    Raises:
        InvalidRequest: the folder has a private run whose noise could be guessed.
        JobFailed: the loss or the gradients are not finite; the checkpoint is of the step before.
        StorageFailed: a checkpoint could not be written; the previous one is intact.
    """
    recipe, accelerator = run.recipe, run.accelerator
    path = run.folder / "state.pt"
    if stored := load_checkpoint(path):
        state.restore(stored)
        if privacy and not state.spent:
            raise InvalidRequest(
                f"{run.folder} has a private run of an older version, whose noise had only 32 secret bits; "
                "start a new run with another --out"
            )
    accelerator.init_trackers("curves")
    model = accelerator.prepare(learner)
    held_out = held_out_batches(
        data.held_out, data.dataset.load_latent, recipe, levels=data.levels, device=accelerator.device
    )
    started = time.monotonic() - state.seconds

    def save() -> Saved:
        state.seconds = time.monotonic() - started
        if accelerator.is_main_process:
            try:
                save_checkpoint(path, state.as_dict())
            except (OSError, RuntimeError) as error:  # torch reports a full disk as a RuntimeError
                path.with_suffix(".partial").unlink(missing_ok=True)
                previous = f"the checkpoint of step {state.saved} is intact" if state.saved else "there is none yet"
                raise StorageFailed(
                    f"the checkpoint of step {state.step} could not be written to {path}: {error}; {previous}"
                ) from None
        state.saved = state.step
        return Saved(step=state.step, path=path)

    def not_finite(quantity: str) -> JobFailed:
        """Save the weights, which are still those of the last good step."""
        with suppress(StorageFailed):
            save()
        return JobFailed(
            f"the {quantity} is not a number at step {state.step + 1}; the weights of step {state.saved} are in "
            f"{path}. --steps {max(1, state.saved)} ends the run with them; or start a new run with a --rate below "
            f"{recipe.rate:g}"
        )

    stopped = recipe.patience is not None and state.waited >= recipe.patience
    try:
        while state.step < recipe.steps and not stopped:
            factor = rate_factor(
                state.step,
                warmup=max(1, recipe.warmup),
                progress=state.step / recipe.steps,
                cooldown=recipe.cooldown,
            )
            set_rates([state.optimizer], factor)
            if privacy:
                params = list(state.params.values())
                mean_loss = private_gradients(model, params, data.dataset, privacy, device=accelerator.device)
                # A step without a picture repeats the previous loss.
                loss = mean_loss if mean_loss is not None else (state.losses or [0.0])[-1]
            else:
                loss = gradients(run, model, data, state.step)
            if not math.isfinite(loss):
                raise not_finite("loss")
            # A private gradient is already clipped by picture, and mostly noise.
            max_norm = math.inf if privacy else recipe.max_grad_norm
            norm = accelerator.clip_grad_norm_(list(state.params.values()), max_norm)
            if norm is not None and not math.isfinite(norm):
                raise not_finite("gradient")
            with defer_interrupts():
                state.optimizer.step()
                state.optimizer.zero_grad()
                if state.average:
                    state.average.update()
                state.step += 1
                state.losses.append(loss)
                state.spent = privacy.spend(state.spent) if privacy else []
                done = state.step == recipe.steps
                numbers = {"loss": loss, "rate": recipe.rate * factor, "gradient": float(norm or 0)}
                events: list[TrainingEvent] = [
                    Updated(step=state.step, total_steps=recipe.steps, loss=loss, rate=numbers["rate"])
                ]
                if held_out and (done or state.step % recipe.validate_every == 0):
                    numbers["held"] = measured = measure(learner, held_out, state)
                    stopped = agree_to_stop(update_best(state, measured, recipe.patience))
                    events.append(Validated(step=state.step, loss=measured, best=state.best))
            accelerator.log(numbers, step=state.step)
            yield from events
            if recipe.prompts and (done or state.step % recipe.sample_every == 0):
                with average_applied(state):
                    yield from draw(state.step)
            if done or stopped or state.step % recipe.save_every == 0:
                yield save()
    except (KeyboardInterrupt, GeneratorExit):
        save()
        raise
    held_loss = state.best if math.isfinite(state.best) else None
    return FitResult(state.step, stopped, state.losses, held_loss, state.seconds, state.spent)


def gradients(run: Run, model: nn.Module, data: TrainingData, step: int) -> float:
    """Accumulate the step's gradients in the parameters; returns its loss."""
    accelerator, passes = run.accelerator, run.recipe.accumulate
    loss = torch.zeros((), device=accelerator.device)
    for number in range(passes):
        batch = data.dataset.batch(
            step * passes + number,
            process=accelerator.process_index,
            of=accelerator.num_processes,
            device=accelerator.device,
        )
        with nullcontext() if number == passes - 1 else accelerator.no_sync(model):
            part = model(batch) / passes
            accelerator.backward(part)
        loss += part.detach()
    return float(accelerator.reduce(loss, "mean"))  # pyright: ignore[reportArgumentType]


def held_out_batches(
    pictures: Sequence[TrainingPicture],
    load_latent: LoadLatent,
    recipe: Recipe,
    *,
    levels: NoiseLevels,
    device: torch.device,
) -> list[TrainingBatch]:
    """The held-out pictures at evenly spread noise levels, with the same noise in each measurement."""
    if not pictures:
        return []
    rows = [pictures[row % len(pictures)] for row in range(max(HELD_OUT_ROWS, len(pictures)))]
    level_indices = torch.randperm(len(rows), generator=torch.Generator().manual_seed(seed_of(recipe.seed, 6)))
    batches: list[TrainingBatch] = []
    for row, picture in enumerate(rows):
        batch = make_batch(
            [picture],
            [picture.example.caption or ""],
            [load_latent(picture, False)],
            seed=seed_of(recipe.seed, 7, row),
            num_timesteps=len(levels),
        )
        batch.timesteps.fill_(int(level_indices[row]) * len(levels) // len(rows))
        batches.append(to_device(batch, device))
    return batches


@torch.no_grad()
def measure(learner: Learner, held_out: Sequence[TrainingBatch], state: TrainingState) -> float:
    """The unweighted mean error on the held-out pictures."""
    with average_applied(state):
        return sum(float(learner.errors(batch).mean()) for batch in held_out) / len(held_out)


def average_applied(state: TrainingState) -> Any:
    """A context in which the networks hold the averaged weights, if the run averages them."""
    return state.average.applied() if state.average else nullcontext()


def update_best(state: TrainingState, measured: float, patience: int | None) -> bool:
    """Record the best measurement and its weights; returns whether to stop early."""
    if measured < state.best:
        state.best, state.waited = measured, 0
        if patience is not None:
            weights = state.average.shadow if state.average else state.params.values()
            state.best_weights = [weight.detach().clone() for weight in weights]
    else:
        state.waited += 1
    return patience is not None and state.waited >= patience


def agree_to_stop(stop: bool) -> bool:
    """The main process's decision, on every process: all must stop at the same step."""
    return bool(broadcast(torch.tensor([int(stop)])).item())  # pyright: ignore[reportAttributeAccessIssue]
