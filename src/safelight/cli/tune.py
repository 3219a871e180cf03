"""`safelight train lora|dreambooth|embedding|full|check`: a command for each kind of recipe, made from its fields."""

import inspect
import json
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer
from pydantic.fields import FieldInfo

from safelight.cli import options
from safelight.cli.from_fields import Flag, flag_name, help_of, option
from safelight.errors import InvalidRequest, needing
from safelight.lifecycle.training.recipe import KINDS, AnyRecipe, Recipe, parse_recipe, read_recipe
from safelight.spec.interface import keyword, with_parameters
from safelight.version import __version__

if TYPE_CHECKING:
    from safelight.lifecycle.training.events import TrainingEvent, TrainingFinished

HELP = {
    "lora": "Train a LoRA of a style or a subject: a small file for `generate --lora`.",
    "dreambooth": "Teach a model one subject from a few pictures, under a rare word.",
    "embedding": "Train the embedding of a new word, and no network (textual inversion).",
    "full": "Fine-tune all weights of a model, and save a new model.",
}
EXAMPLES = {
    "lora": """\
[bold]Examples[/]
  safelight train lora my-icons --name my-icons --steps 300
  safelight train lora my-icons --name my-icons --prompts "a cat, my-icons style" --holdout 0.1 --patience 5
  safelight generate "a cat, my-icons style" --lora my-icons""",
    "dreambooth": """\
[bold]Examples[/]
  safelight train dreambooth my-mug --name my-mug --prompt "a sks mug" --class-prompt "a mug"
  safelight generate "a sks mug on a blue background" --lora my-mug""",
    "embedding": """\
[bold]Examples[/]
  safelight train embedding my-mug --name my-mug --init mug --vectors 2
  safelight generate "a my-mug on a blue background\"""",
    "full": """\
[bold]Examples[/]
  safelight train full my-icons --name my-model --steps 1000 --ema 0.999
  safelight generate "a cat" --model my-model""",
}
PANELS = {
    "Result": ("name", "base", "prompt", "class_prompt", "class_pictures", "prior_weight", "train", "whole",
                       "rank", "alpha", "layers", "vectors", "init", "concept", "use_captions"),
    "Pictures": ("resolution", "buckets", "flip", "mask", "skip_bad", "min_side"),
    "Captions": ("caption_dropout", "shuffle_tags", "keep_tokens", "clip_skip"),
    "Noise": ("snr_gamma", "offset_noise"),
    "Privacy": ("dp", "dp_epsilon", "dp_delta", "dp_clip"),
    "Monitoring": ("holdout", "validate_every", "patience", "prompts", "sample_every", "save_every", "tracker"),
    "Resources": ("cache_latents", "cache_text", "gradient_checkpointing", "precision", "optimizer"),
}  # fmt: skip
"""The panels of `--help` and their fields; all others are in the panel Learning."""


def add_commands(app: typer.Typer) -> None:
    for kind, recipe in KINDS.items():
        app.command(kind, help=HELP[kind], epilog=EXAMPLES[kind])(command_for(kind, recipe))
    app.command("check", epilog=CHECK_EXAMPLES)(check)


def command_for(kind: str, recipe: type[Recipe]) -> Callable[..., None]:
    """A function whose parameters are the recipe's fields, for Typer to read."""

    def run(**given: Any) -> None:
        file, out, device, as_json = (given.pop(name) for name in ("recipe", "out", "device", "as_json"))
        values = read_recipe(file) if file else {}
        if values.setdefault("kind", kind) != kind:
            raise InvalidRequest(f"{file} is a recipe for `train {values['kind']}`, not for `train {kind}`")
        values |= {name: value for name, value in given.items() if value not in (None, [])}
        train(parse_recipe(values), out=out, device=device, as_json=as_json)

    fields = {name: field for name, field in recipe.model_fields.items() if name not in ("kind", "data")}
    flag_names = {name: flag_name(name, {}) for name in fields}
    return with_parameters([
        keyword("data", Annotated[str | None, typer.Argument(help=help_of(recipe.model_fields["data"], {}))]),
        *(parameter(name, field, flag_names) for name, field in fields.items()),
        keyword("recipe", Annotated[Path | None, typer.Option(help="A YAML file of these fields; flags override it.")]),
        keyword("out", Annotated[Path | None, typer.Option("--out", "-o", help="Folder of the run.",
                                                           show_default="SAFELIGHT_HOME/runs/NAME")]),
        keyword("device", options.Device),
        keyword("as_json", options.Json, False),
    ])(run)  # fmt: skip


def parameter(name: str, field: FieldInfo, flag_names: Mapping[str, str]) -> inspect.Parameter:
    """An optional flag for a recipe's field; without it, the recipe file's value or the default is used."""
    default = "required" if field.is_required() else shown_default(field.default)
    panel = next((panel for panel, names in PANELS.items() if name in names), "Learning")
    return option(name, field, Flag(shown=default), panel=panel, flag_names=flag_names)


def shown_default(default: Any) -> str:
    if default in (None, (), ""):
        return ""
    return {True: "yes", False: "no"}[default] if isinstance(default, bool) else str(default)


def train(recipe: AnyRecipe, *, out: Path | None, device: Any, as_json: bool) -> None:
    from safelight.settings import Settings

    with needing("train"):
        from safelight.lifecycle.training.train import train as begin

    settings = Settings.from_environment(device=device)
    with closing(begin(recipe, settings, out, version=__version__)) as events:
        (print_json_lines if as_json else show_progress)(events, recipe)


def print_json_lines(events: "Generator[TrainingEvent, None, None]", _recipe: AnyRecipe) -> None:
    """Print each event as a line of JSON."""
    from dataclasses import asdict

    from safelight.lifecycle.training.events import EVENT_NAMES

    for item in events:
        typer.echo(json.dumps({"event": EVENT_NAMES[type(item)], **asdict(item)}, default=str))


def show_progress(events: "Generator[TrainingEvent, None, None]", recipe: AnyRecipe) -> None:
    """Show a progress bar with loss, speed and remaining time."""
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

    from safelight.lifecycle.training.events import (
        Prepared,
        Preparing,
        Sampled,
        Saved,
        TrainingFinished,
        Updated,
        Validated,
    )

    console = Console()
    console.print(recipe.to_yaml().rstrip(), style="dim", markup=False, highlight=False)
    columns = TextColumn("{task.description}"), BarColumn(bar_width=None), TextColumn("{task.fields[pace]}")
    bar = Progress(*columns, TimeRemainingColumn(compact=True), console=console, expand=True, transient=True)
    pace, ending = Smoothed(), list[str]()
    with bar:
        task = bar.add_task("opening the model", total=None, pace="")
        for item in events:
            match item:
                case Preparing():
                    bar.update(task, description=item.what, completed=item.done, total=item.total)
                case Prepared():
                    for line in prepared(item):
                        bar.console.print(line, markup=False, highlight=False)
                    bar.update(task, description="training", completed=0, total=None)
                case Updated():
                    bar.update(task, description="training", completed=item.step, total=item.total_steps,
                               pace=pace.text(item.step, item.loss))  # fmt: skip
                case Validated():
                    bar.console.print(f"step {item.step}: held-out loss {item.loss:.4f}, best {item.best:.4f}")
                case Sampled():
                    bar.console.print(f"step {item.step}: samples in {item.path}", soft_wrap=True)
                case Saved():
                    pass
                case TrainingFinished():
                    ending = finished(item)
    for line in ending:
        console.print(line, soft_wrap=True, markup=False, highlight=False)


class Smoothed:
    """Smoothed loss and speed, for the progress bar."""

    def __init__(self) -> None:
        import time

        self.clock = time.monotonic
        self.start: tuple[float, int] | None = None
        self.loss: float | None = None

    def text(self, step: int, loss: float) -> str:
        now = self.clock()
        self.loss = loss if self.loss is None else 0.95 * self.loss + 0.05 * loss
        self.start = self.start or (now, step)
        seconds, steps = now - self.start[0], step - self.start[1]
        speed = f", {steps / seconds:.2f} steps/s" if steps and seconds else ""
        return f"step {step}, loss {self.loss:.4f}{speed}"


def prepared(item: Any) -> list[str]:
    sizes = ", ".join(f"{count} of {size}" for size, count in item.buckets.items())
    held = f"; {item.num_held} held out" if item.num_held else ""
    return [*item.notes, f"{item.num_pictures} pictures ({sizes}){held}, dataset {item.dataset_digest[:10]}"]


def finished(item: "TrainingFinished") -> list[str]:
    from safelight.cli.hints import command

    early = ", stopped early" if item.stopped_early else ""
    use: dict[str, Sequence[object]] = {
        "lora": ("generate", "...", "--lora", item.name),
        "embedding": ("generate", f"... {item.name}"),
        "full": ("generate", "...", "--model", item.name),
    }
    as_model = item.kind == "full" or item.path.is_dir()
    words = use["full" if as_model else "embedding" if item.kind == "embedding" else "lora"]
    base = item.lineage["base"]
    more = [] if as_model or base == "mini" else ["--model", base]
    private = item.lineage["privacy"]
    guarantee = f", {guarantee_text(private)}" if private else ""
    return [
        f"{item.reference} after {item.step} steps{early}{guarantee}",
        "",
        "Try next:",
        f"  {command(*words, *more)}",
    ]


def guarantee_text(private: Mapping[str, Any]) -> str:
    """`epsilon 6.64 at delta 1e-05 by prv, 7.99 by rdp`; the accountants have Opacus' names."""
    first = f"epsilon {private['epsilon']:.2f} at delta {private['delta']:g} by {private['accountant']}"
    return first if private["accountant"] == "rdp" else f"{first}, {private['epsilon_rdp']:.2f} by rdp"


CHECK_EXAMPLES = """\
[bold]Examples[/]
  safelight train check my-icons
  safelight train check s3://bucket/pictures.tar --report report.json"""


def check(
    data: Annotated[str, typer.Argument(help="Pictures, in any form that the training commands accept.")],
    captions: Annotated[bool, typer.Option(help="Require captions.")] = True,
    mask: Annotated[Literal["none", "file", "alpha"], typer.Option(help="Masks to train with.")] = "none",
    min_side: Annotated[int, typer.Option(min=8, help="Pictures with a shorter side are too small.")] = 64,
    report: Annotated[Path | None, typer.Option(help="Write the report to this file, as JSON.")] = None,
) -> None:
    """Check training data: find damaged, tiny and duplicate pictures and missing captions.

    Exits with 1 if an example cannot be trained on.
    """
    from rich.console import Console
    from rich.progress import Progress

    from safelight.lifecycle.training.check import check as check_examples
    from safelight.lifecycle.training.sources import find_examples

    console = Console()
    with Progress(console=console, transient=True) as bar:
        task = bar.add_task("checking", total=None)
        result = check_examples(
            find_examples(data),
            data=data,
            min_side=min_side,
            needs_captions=captions,
            needs_masks=mask == "file",
            on_progress=lambda done, total: bar.update(task, completed=done, total=total),
        )
    for line in result.lines():
        console.print(line, markup=False, highlight=False, soft_wrap=True)
    console.print(f"{len(result.good)} of {result.num_examples} pictures can be trained on; dataset {result.digest}")
    if report:
        result.write(report)
    if result.errors:
        raise typer.Exit(1)
