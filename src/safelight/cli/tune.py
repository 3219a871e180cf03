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
    "lora": "Teach a model a style or a subject, as a small file that `generate --lora` takes.",
    "dreambooth": "Teach a model one thing from a few pictures, under a rare word.",
    "embedding": "Teach a model a new word, and change nothing else (textual inversion).",
    "full": "Go on training all of a model, and save it as another.",
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
    "What is learnt": ("name", "base", "prompt", "class_prompt", "class_pictures", "prior_weight", "train", "whole",
                       "rank", "alpha", "layers", "vectors", "init", "concept", "use_captions"),
    "Pictures": ("resolution", "buckets", "flip", "mask", "skip_bad", "min_side"),
    "Captions": ("caption_dropout", "shuffle_tags", "keep_tokens", "clip_skip"),
    "Noise": ("snr_gamma", "offset_noise"),
    "Privacy": ("dp", "dp_epsilon", "dp_delta", "dp_clip"),
    "Watching it": ("holdout", "validate_every", "patience", "prompts", "sample_every", "save_every", "tracker"),
    "The machine": ("cache_latents", "cache_text", "gradient_checkpointing", "precision", "optimizer"),
}  # fmt: skip
"""Where `--help` shows a field; the others are about how it is learnt."""


def add_commands(app: typer.Typer) -> None:
    for kind, recipe in KINDS.items():
        app.command(kind, help=HELP[kind], epilog=EXAMPLES[kind])(command_for(kind, recipe))
    app.command("check", epilog=CHECK_EXAMPLES)(check)


def command_for(kind: str, recipe: type[Recipe]) -> Callable[..., None]:
    """A function whose parameters are the recipe's fields, for Typer to read."""

    def run(**said: Any) -> None:
        file, out, device, as_json = (said.pop(name) for name in ("recipe", "out", "device", "as_json"))
        values = read_recipe(file) if file else {}
        if values.setdefault("kind", kind) != kind:
            raise InvalidRequest(f"{file} is a recipe for `train {values['kind']}`, not for `train {kind}`")
        values |= {name: value for name, value in said.items() if value not in (None, [])}
        train(parse_recipe(values), out=out, device=device, as_json=as_json)

    fields = {name: field for name, field in recipe.model_fields.items() if name not in ("kind", "data")}
    flag_names = {name: flag_name(name, {}) for name in fields}
    return with_parameters([
        keyword("data", Annotated[str | None, typer.Argument(help=help_of(recipe.model_fields["data"], {}))]),
        *(parameter(name, field, flag_names) for name, field in fields.items()),
        keyword("recipe", Annotated[Path | None, typer.Option(help="A YAML file with any of these; flags go first.")]),
        keyword("out", Annotated[Path | None, typer.Option("--out", "-o", help="Folder of the run.",
                                                           show_default="SAFELIGHT_HOME/runs/NAME")]),
        keyword("device", options.Device),
        keyword("as_json", options.Json, False),
    ])(run)  # fmt: skip


def parameter(name: str, field: FieldInfo, flag_names: Mapping[str, str]) -> inspect.Parameter:
    """Every flag may be left out: what is then done is the recipe's business, or its file's."""
    default = "needed" if field.is_required() else in_words(field.default)
    panel = next((panel for panel, names in PANELS.items() if name in names), "Learning")
    return option(name, field, Flag(shown=default), panel=panel, flag_names=flag_names)


def in_words(default: Any) -> str:
    if default in (None, ()):
        return ""
    return {True: "yes", False: "no"}[default] if isinstance(default, bool) else str(default)


def train(recipe: AnyRecipe, *, out: Path | None, device: Any, as_json: bool) -> None:
    from safelight.settings import Settings

    with needing("train"):
        from safelight.lifecycle.training.train import train as begin

    settings = Settings.from_environment(device=device)
    with closing(begin(recipe, settings, out, version=__version__)) as events:
        (tell_lines if as_json else watch)(events, recipe)


def tell_lines(events: "Generator[TrainingEvent, None, None]", _recipe: AnyRecipe) -> None:
    """Each piece of news as a line of JSON."""
    from dataclasses import asdict

    for item in events:
        typer.echo(json.dumps({"event": type(item).__name__.lower(), **asdict(item)}, default=str))


def watch(events: "Generator[TrainingEvent, None, None]", recipe: AnyRecipe) -> None:
    """A bar with loss, speed and time left."""
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
                               pace=pace.words(item.step, item.loss))  # fmt: skip
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
    """Loss and speed, smoothed so that they can be read."""

    def __init__(self) -> None:
        import time

        self.clock = time.monotonic
        self.began: tuple[float, int] | None = None
        self.loss: float | None = None

    def words(self, step: int, loss: float) -> str:
        now = self.clock()
        self.loss = loss if self.loss is None else 0.95 * self.loss + 0.05 * loss
        self.began = self.began or (now, step)
        seconds, steps = now - self.began[0], step - self.began[1]
        speed = f", {steps / seconds:.2f} steps/s" if steps and seconds else ""
        return f"step {step}, loss {self.loss:.4f}{speed}"


def prepared(item: Any) -> list[str]:
    sizes = ", ".join(f"{count} of {size}" for size, count in item.buckets.items())
    held = f"; {item.num_held} kept aside" if item.num_held else ""
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
    promise = f", {promised(private)}" if private else ""
    return [f"{item.reference} after {item.step} steps{early}{promise}", "", "Try next:", f"  {command(*words, *more)}"]


def promised(private: Mapping[str, Any]) -> str:
    """`epsilon 6.64 at delta 1e-05 by prv, 7.99 by rdp`, as Opacus calls its accountants."""
    first = f"epsilon {private['epsilon']:.2f} at delta {private['delta']:g} by {private['accountant']}"
    return first if private["accountant"] == "rdp" else f"{first}, {private['epsilon_rdp']:.2f} by rdp"


CHECK_EXAMPLES = """\
[bold]Examples[/]
  safelight train check my-icons
  safelight train check s3://bucket/pictures.tar --report report.json"""


def check(
    data: Annotated[str, typer.Argument(help="Pictures, as the training commands take them.")],
    captions: Annotated[bool, typer.Option(help="Whether they need captions.")] = True,
    mask: Annotated[Literal["none", "file", "alpha"], typer.Option(help="Masks they are trained with.")] = "none",
    min_side: Annotated[int, typer.Option(min=8, help="Pictures with a shorter side are too small.")] = 64,
    report: Annotated[Path | None, typer.Option(help="Write what was found there, as JSON.")] = None,
) -> None:
    """Look at pictures and captions before anything is learnt from them: damaged, tiny, twice there, without words.

    Ends with 1 where something cannot be learnt from.
    """
    from rich.console import Console
    from rich.progress import Progress

    from safelight.lifecycle.training.check import check as look
    from safelight.lifecycle.training.sources import find_examples

    console = Console()
    with Progress(console=console, transient=True) as bar:
        task = bar.add_task("looking", total=None)
        found = look(
            find_examples(data),
            data=data,
            min_side=min_side,
            needs_captions=captions,
            needs_masks=mask == "file",
            tell=lambda done, total: bar.update(task, completed=done, total=total),
        )
    for line in found.lines():
        console.print(line, markup=False, highlight=False, soft_wrap=True)
    console.print(f"{len(found.good)} of {found.num_examples} pictures can be learnt from; dataset {found.digest}")
    if report:
        found.write(report)
    if found.errors:
        raise typer.Exit(1)
