"""The loop that every recipe shares: a batch, a loss, an update; and what is done every so many steps.

    batch(number) -> loss -> gradients -> update -> Trained
    every so often: Validated, Sampled, Saved

What a step draws follows from (seed, step), so that a run that was killed goes on as if it had not been.
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
from safelight.lifecycle.training.dataset import Ready, TrainingBatch, assemble, placed
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

HELD_ROWS = 32
"""Noise levels that the pictures kept aside are measured at, together."""


REMEMBERED = ("step", "seconds", "best", "best_weights", "waited", "losses", "spent")
"""Of the state, as it is."""


class Learner(nn.Module):
    """The networks as one module, for several devices to share: a batch in, its loss out."""

    def __init__(self, model: Model, reader: CaptionEncoder, levels: NoiseLevels, *, snr_gamma: float | None) -> None:
        super().__init__()
        self.unet: Any = model.unet
        self.reader = reader
        self.levels = levels
        self.snr_gamma = snr_gamma
        self.dtype = model.placement.dtype
        self.told_sizes = model.description.unet.get("addition_embed_type") == "text_time"

    def forward(self, batch: TrainingBatch) -> Tensor:
        weights = self.levels.weights(batch.timesteps, self.snr_gamma)
        return batch.loss(weights * self.errors(batch))

    def errors(self, batch: TrainingBatch) -> Tensor:
        """Of each picture."""
        context, pooled = self.reader(batch.captions)
        noisy = self.levels.noisy(batch.latents, batch.noise, batch.timesteps)
        added = {"text_embeds": pooled, "time_ids": batch.time_ids} if self.told_sizes else None
        outputs = self.unet(
            noisy.to(self.dtype), batch.timesteps, context.to(self.dtype), added_cond_kwargs=added
        ).sample
        return errors(outputs, self.levels.target(batch.latents, batch.noise, batch.timesteps), batch.masks)


@dataclass(slots=True, kw_only=True)
class TrainingState:
    """What changes while a run goes on; saved and restored as a whole."""

    params: Mapping[str, nn.Parameter]
    """What is learnt, by name."""
    optimizer: Optimizer
    average: Average | None = None
    step: int = 0
    seconds: float = 0.0
    best: float = math.inf
    """Least error on the pictures kept aside."""
    best_weights: list[Tensor] = field(default_factory=list[Tensor])
    waited: int = 0
    """Measurements since it got better."""
    losses: list[float] = field(default_factory=list[float])
    """Of each step."""
    spent: list[Spent] = field(default_factory=list[Spent])
    """By the steps of a private run."""
    saved: int = 0
    """The step of the last checkpoint."""

    def as_dict(self) -> dict[str, Any]:
        return {
            "weights": {name: param.detach() for name, param in self.params.items()},
            "optimizer": self.optimizer.state_dict(),
            "average": self.average.state_dict() if self.average else None,
            **{name: getattr(self, name) for name in REMEMBERED},
        }

    @torch.no_grad()
    def restore(self, kept: Mapping[str, Any]) -> None:
        for name, param in self.params.items():
            param.copy_(kept["weights"][name])
        self.optimizer.load_state_dict(kept["optimizer"])
        if self.average and kept["average"]:
            self.average.load_state_dict(kept["average"])
        for name in REMEMBERED:
            setattr(self, name, kept.get(name, []) if name == "spent" else kept[name])
        self.saved = self.step

    @torch.no_grad()
    def settle(self, *, stopped_early: bool) -> None:
        """The weights that the run is remembered by: the best, the average, or the last."""
        chosen = self.best_weights if stopped_early else self.average.shadow if self.average else []
        for param, weight in zip(self.params.values(), chosen, strict=bool(chosen)):
            param.copy_(weight)


@dataclass(frozen=True, slots=True)
class FitResult:
    step: int
    stopped_early: bool
    losses: Sequence[float]
    """Of each step."""
    held_loss: float | None
    """The least on the pictures kept aside, if any were."""
    seconds: float
    spent: Sequence[Spent]


def new_state(
    recipe: Recipe,
    groups: Mapping[str, Mapping[str, nn.Parameter]],
    *,
    rate: float | None = None,
    ema: float | None = None,
) -> TrainingState:
    """AdamW over parameters by part, `unet` and others; the text encoders have a rate of their own."""
    rate = rate or recipe.rate
    described = [
        {"params": list(params.values()), "lr": rate if part == "unet" else recipe.text_rate or rate}
        for part, params in groups.items()
        if params
    ]
    optimizer = make_optimizer(recipe, described)
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
"""Sample pictures after so many steps."""


def fit(
    run: Run,
    learner: Learner,
    state: TrainingState,
    data: TrainingData,
    *,
    draw: Draw,
    privacy: Privacy | None = None,
) -> Generator[TrainingEvent, None, FitResult]:
    """Train to the recipe's last step, from wherever the run's folder has got to.

    Closing the generator, or Ctrl-C, leaves a checkpoint of the last whole step.

    Raises:
        InvalidRequest: the folder has a private run whose noise could be guessed.
        JobFailed: the loss or the gradients are no numbers any more; the checkpoint is of the step before.
        StorageFailed: a checkpoint could not be written; the one before it is whole.
    """
    recipe, accelerator = run.recipe, run.accelerator
    path = run.folder / "state.pt"
    if kept := load_checkpoint(path):
        state.restore(kept)
        if privacy and not state.spent:
            raise InvalidRequest(
                f"{run.folder} holds a private run of an older version, whose noise had only 32 bits of secret; "
                "begin again with an --out of its own"
            )
    accelerator.init_trackers("curves")
    model = accelerator.prepare(learner)
    held = held_batches(data.held, data.dataset.latent, recipe, levels=data.levels, device=accelerator.device)
    began = time.monotonic() - state.seconds

    def save() -> Saved:
        state.seconds = time.monotonic() - began
        if accelerator.is_main_process:
            try:
                save_checkpoint(path, state.as_dict())
            except (OSError, RuntimeError) as error:  # torch reports a full disk as a RuntimeError
                path.with_suffix(".partial").unlink(missing_ok=True)
                kept = f"the checkpoint of step {state.saved} is whole" if state.saved else "there is none yet"
                raise StorageFailed(
                    f"no checkpoint of step {state.step} could be written to {path}: {error}; {kept}"
                ) from None
        state.saved = state.step
        return Saved(step=state.step, path=path)

    def give_up(what: str) -> JobFailed:
        """The weights are still those of the last good step."""
        with suppress(StorageFailed):
            save()
        return JobFailed(
            f"the {what} is not a number at step {state.step + 1}; the weights of step {state.saved} are in {path}. "
            f"--steps {max(1, state.saved)} ends the run with them; another may take a --rate below {recipe.rate:g}"
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
                seen = private_gradients(model, params, data.dataset, privacy, device=accelerator.device)
                # Without a picture, the loss before stands for it.
                loss = seen if seen is not None else (state.losses or [0.0])[-1]
            else:
                loss = gradients(run, model, data, state.step)
            if not math.isfinite(loss):
                raise give_up("loss")
            # A private gradient is mostly noise, whose length says nothing.
            longest = math.inf if privacy else recipe.max_grad_norm
            norm = accelerator.clip_grad_norm_(list(state.params.values()), longest)
            if norm is not None and not math.isfinite(norm):
                raise give_up("gradient")
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
                if held and (done or state.step % recipe.validate_every == 0):
                    numbers["held"] = measured = measure(learner, held, state)
                    stopped = agreed(remember(state, measured, recipe.patience))
                    events.append(Validated(step=state.step, loss=measured, best=state.best))
            accelerator.log(numbers, step=state.step)
            yield from events
            if recipe.prompts and (done or state.step % recipe.sample_every == 0):
                with applied(state):
                    yield from draw(state.step)
            if done or stopped or state.step % recipe.save_every == 0:
                yield save()
    except (KeyboardInterrupt, GeneratorExit):
        save()
        raise
    held_loss = state.best if math.isfinite(state.best) else None
    return FitResult(state.step, stopped, state.losses, held_loss, state.seconds, state.spent)


def gradients(run: Run, model: nn.Module, data: TrainingData, step: int) -> float:
    """Leave the step's gradients in the parameters; returns its loss."""
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


def held_batches(
    held: Sequence[Ready],
    latent: Callable[[Ready, bool], Any],
    recipe: Recipe,
    *,
    levels: NoiseLevels,
    device: torch.device,
) -> list[TrainingBatch]:
    """Each picture kept aside at several noise levels, spread evenly; the same noise each time they are measured."""
    if not held:
        return []
    rows = [held[row % len(held)] for row in range(max(HELD_ROWS, len(held)))]
    places = torch.randperm(len(rows), generator=torch.Generator().manual_seed(seed_of(recipe.seed, 6)))
    batches: list[TrainingBatch] = []
    for row, one in enumerate(rows):
        batch = assemble(
            [one],
            [one.example.caption or ""],
            [latent(one, False)],
            seed=seed_of(recipe.seed, 7, row),
            num_timesteps=len(levels),
        )
        batch.timesteps.fill_(int(places[row]) * len(levels) // len(rows))
        batches.append(placed(batch, device))
    return batches


@torch.no_grad()
def measure(learner: Learner, held: Sequence[TrainingBatch], state: TrainingState) -> float:
    """The unweighted error on the pictures kept aside."""
    with applied(state):
        return sum(float(learner.errors(batch).mean()) for batch in held) / len(held)


def applied(state: TrainingState) -> Any:
    return state.average.applied() if state.average else nullcontext()


def remember(state: TrainingState, measured: float, patience: int | None) -> bool:
    """Whether it is time to stop."""
    if measured < state.best:
        state.best, state.waited = measured, 0
        if patience is not None:
            weights = state.average.shadow if state.average else state.params.values()
            state.best_weights = [weight.detach().clone() for weight in weights]
    else:
        state.waited += 1
    return patience is not None and state.waited >= patience


def agreed(stop: bool) -> bool:
    """The main process's view: all must stop at the same step."""
    return bool(broadcast(torch.tensor([int(stop)])).item())  # pyright: ignore[reportAttributeAccessIssue]
