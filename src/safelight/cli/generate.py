"""`safelight generate`: words in, pictures out.

Everything that can be found wrong without a network is found before torch is imported, which takes seconds.
"""

import signal
import sys
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from safelight.cli import hints as next_hints
from safelight.cli import leads, options
from safelight.cli.kept import kept
from safelight.cli.options import OUTPUT
from safelight.cli.out import PictureFolder, require_writable
from safelight.errors import InvalidRequest, JobCancelled

if TYPE_CHECKING:
    from collections.abc import Sequence

    from safelight.assets.encode import Encoding
    from safelight.cli.screen import Screen
    from safelight.models.checkpoints.families import Description
    from safelight.prompts.expand import Expand
    from safelight.settings import Settings
    from safelight.spec import Draft
    from safelight.studio import Studio

STEPS_BETWEEN_PREVIEWS = 2
DRAWING, START, SECOND = "How it is drawn", "Starting from a picture", "A second, larger pass"
LED = "Led by pictures"
CHOICES, PARTS = "Choices in the prompt", "In place of parts of the model"
EXAMPLES = """\
[bold]Examples[/]
  safelight generate "a red apple"
  safelight generate "a red apple" -n 4 --seed 7 --sampler "Euler a" --steps 30
  safelight generate "a red apple" --lora watercolour:0.8
  safelight generate "a green apple" --init pictures/a-red-apple-7.png --strength 0.6
  safelight generate "a worm" --init apple.png --mask hole.png --mask-blur 2
  safelight generate "a house" --control sketch.png:scribble-sd15:scribble:0.8 --model ./stable-diffusion-v1-5
  safelight generate "an orchard" --init apple.png --extend left=64,right=64
  safelight generate "a beach" --init apple.png --replace-background
  echo "a red apple" | safelight generate - --json"""


def generate(
    prompt: Annotated[
        str,
        typer.Argument(
            metavar="PROMPT", help="What to draw; (word:1.2) weighs a word. [bold]-[/] reads it from stdin."
        ),
    ],
    model: options.Model = "mini",
    negative: Annotated[str, typer.Option(help="What not to draw.")] = "",
    n: Annotated[
        int, typer.Option("-n", "--number", min=1, max=1000, help="How many pictures, with seeds SEED, SEED + 1, ...")
    ] = 1,
    seed: Annotated[
        int | None,
        typer.Option("--seed", "-s", help="The same seed, below 2^32, gives the same picture.", show_default="random"),
    ] = None,
    width: Annotated[
        int | None, typer.Option("--width", "-W", help="In pixels, a multiple of 8.", show_default="the model's own")
    ] = None,
    height: Annotated[
        int | None, typer.Option("--height", "-H", help="In pixels, a multiple of 8.", show_default="the model's own")
    ] = None,
    sampler: Annotated[
        str | None,
        typer.Option(
            help="The way from noise to picture; `safelight samplers` lists them.",
            show_default="the model's own",
            rich_help_panel=DRAWING,
        ),
    ] = None,
    steps: Annotated[
        int | None,
        typer.Option(
            help="More are slower and finer, to a point.", show_default="the model's own", rich_help_panel=DRAWING
        ),
    ] = None,
    guidance: Annotated[
        float | None,
        typer.Option(
            "--guidance",
            "-g",
            help="How strictly the prompt is followed (CFG scale), 0 to 100; up to 1 is off, and twice as fast.",
            show_default="the model's own",
            rich_help_panel=DRAWING,
        ),
    ] = None,
    guidance_rescale: Annotated[
        float | None,
        typer.Option(
            help="Against washed-out contrast at high guidance, 0 to 1.",
            show_default="the model's own",
            rich_help_panel=DRAWING,
        ),
    ] = None,
    guidance_interval: Annotated[
        str | None,
        typer.Option(
            metavar="FROM,TO",
            help="The part of the steps in which guidance acts, as fractions: 0.2,0.8.",
            show_default="0,1",
            rich_help_panel=DRAWING,
        ),
    ] = None,
    pag: Annotated[
        float | None,
        typer.Option(
            metavar="SCALE",
            help="Perturbed-attention guidance, 3 say: more structure, for half as much time again.",
            show_default="off",
            rich_help_panel=DRAWING,
        ),
    ] = None,
    pag_layers: Annotated[
        str | None,
        typer.Option(
            metavar="NAME,...",
            help="Where attention is perturbed: down, mid, up, or parts of these such as up_blocks.1.attentions.0.",
            show_default="mid",
            rich_help_panel=DRAWING,
        ),
    ] = None,
    sag: Annotated[
        float | None,
        typer.Option(
            metavar="SCALE",
            help="Self-attention guidance, 0.75 say: more detail, for half as much time again.",
            show_default="off",
            rich_help_panel=DRAWING,
        ),
    ] = None,
    freeu: Annotated[
        str | None,
        typer.Option(
            metavar="B1,B2,S1,S2",
            help="FreeU's factors: 1.5,1.6,0.9,0.2 for Stable Diffusion 1, 1.3,1.4,0.9,0.2 for SDXL.",
            show_default="off",
            rich_help_panel=DRAWING,
        ),
    ] = None,
    refiner: Annotated[
        str | None,
        typer.Option(
            metavar="MODEL",
            help="Another model draws the end: SDXL's refiner, or any with the same latents.",
            show_default="none",
            rich_help_panel=DRAWING,
        ),
    ] = None,
    refiner_switch: Annotated[
        float | None,
        typer.Option(help="From this share of the noise levels on.", show_default="0.8", rich_help_panel=DRAWING),
    ] = None,
    clip_skip: Annotated[
        int | None,
        typer.Option(
            help="2 reads the prompt from the text encoder's last layer but one.",
            show_default="the model's own",
            rich_help_panel=DRAWING,
        ),
    ] = None,
    determinism: Annotated[
        Literal["fast", "strict"],
        typer.Option(help="strict: the same bytes each time, drawn one picture at a time.", rich_help_panel=DRAWING),
    ] = "fast",
    lora: Annotated[
        list[str] | None,
        typer.Option(
            "--lora",
            metavar="NAME[:WEIGHT]",
            help="A LoRA of SAFELIGHT_HOME/loras, or the path of one; may be given again. `safelight lora list`",
            rich_help_panel=DRAWING,
        ),
    ] = None,
    vae: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="Another autoencoder: a file or folder of SAFELIGHT_HOME/vaes, a path, or a model whose it is.",
            show_default="the model's own",
            rich_help_panel=PARTS,
        ),
    ] = None,
    text_encoder: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="Another CLIP or T5 of the same width, likewise, from SAFELIGHT_HOME/text_encoders.",
            show_default="the model's own",
            rich_help_panel=PARTS,
        ),
    ] = None,
    init: Annotated[
        Path | None,
        typer.Option("--init", "-i", metavar="FILE", help="The picture to start from.", rich_help_panel=START),
    ] = None,
    strength: Annotated[
        float | None,
        typer.Option(
            help="How far to depart from it, above 0 and up to 1.",
            show_default="the model's own",
            rich_help_panel=START,
        ),
    ] = None,
    fit: Annotated[
        Literal["crop", "stretch", "pad"], typer.Option(help="How it becomes WIDTH x HEIGHT.", rich_help_panel=START)
    ] = "crop",
    mask: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Draw only where this picture is white.", rich_help_panel=START),
    ] = None,
    mask_blur: Annotated[
        float, typer.Option(help="Softness of the mask's edge, in pixels.", rich_help_panel=START)
    ] = 4.0,
    mask_invert: Annotated[
        bool, typer.Option("--mask-invert", help="Draw where the mask is black.", rich_help_panel=START)
    ] = False,
    only_masked: Annotated[
        bool,
        typer.Option("--only-masked", help="Draw the part around the mask at full size.", rich_help_panel=START),
    ] = False,
    padding: Annotated[
        int, typer.Option(help="Pixels around the mask that --only-masked takes in.", rich_help_panel=START)
    ] = 32,
    replace_background: Annotated[
        bool,
        typer.Option(
            "--replace-background",
            help="Keep the subject to the pixel and draw what is behind it: where the picture is transparent, or of "
            "the even colour of its edges, or where --mask is white.",
            rich_help_panel=START,
        ),
    ] = False,
    image_guidance: Annotated[
        float | None,
        typer.Option(
            help="How strictly models that follow instructions keep to the picture, 1 and up.",
            show_default="the model's own",
            rich_help_panel=START,
        ),
    ] = None,
    extend: Annotated[
        str | None,
        typer.Option(
            metavar="SIDE=PIXELS,...",
            help="Grow the picture: left=64,top=32, or one number for every side. Multiples of 8.",
            rich_help_panel=START,
        ),
    ] = None,
    control: Annotated[
        list[str] | None,
        typer.Option(
            "--control",
            metavar=leads.CONTROL_FORM,
            help="Say with a picture what goes where, through a ControlNet or T2I-Adapter of SAFELIGHT_HOME/models: "
            "sketch.png:canny-sd15:canny:0.8:0-0.6 makes thin lines of it, and shows them to the net at weight 0.8 for "
            "the first 6 of 10 steps. May be given again. `safelight control list` lists nets and preprocessors.",
            rich_help_panel=LED,
        ),
    ] = None,
    ip: Annotated[
        list[str] | None,
        typer.Option(
            "--ip",
            metavar=leads.PICTURE_FORM,
            help="A picture as part of the prompt, through an IP-Adapter: cat.png:ip-adapter_sd15:0.6. "
            "May be given again.",
            rich_help_panel=LED,
        ),
    ] = None,
    highres: Annotated[
        float | None,
        typer.Option(metavar="SCALE", help="Draw again this many times as large.", rich_help_panel=SECOND),
    ] = None,
    highres_strength: Annotated[
        float, typer.Option(help="How far to depart from the first pass.", rich_help_panel=SECOND)
    ] = 0.6,
    highres_steps: Annotated[
        int | None, typer.Option(help="Steps of this pass.", show_default="as the first", rich_help_panel=SECOND)
    ] = None,
    highres_upscaler: Annotated[
        str,
        typer.Option(
            help="What enlarges the first pass: lanczos, latent, latent-bilinear, realesrgan-x4plus, ...",
            rich_help_panel=SECOND,
        ),
    ] = "lanczos",
    wildcards: Annotated[
        bool,
        typer.Option(
            "--wildcards", help="Draw {red|blue} and __colour__ in the prompt by lot.", rich_help_panel=CHOICES
        ),
    ] = False,
    combinatorial: Annotated[
        bool,
        typer.Option("--combinatorial", help="Draw every combination of them, N of each.", rich_help_panel=CHOICES),
    ] = False,
    out: options.Out = Path("pictures"),
    format: options.Format = "png",  # noqa: A002  the option's name
    quality: options.Quality = 90,
    metadata: options.Detail = "full",
    device: options.Device = None,
    dtype: options.Dtype = None,
    as_json: options.Json = False,
    quiet: options.Quiet = False,
    preview: Annotated[
        bool, typer.Option("--preview/--no-preview", help="Show a first look while drawing.", rich_help_panel=OUTPUT)
    ] = True,
    hints: Annotated[
        bool | None,
        typer.Option(
            "--hints/--no-hints", help="Say what to try next.", show_default="on a terminal", rich_help_panel=OUTPUT
        ),
    ] = None,
) -> None:
    """Draw pictures from words, and put them into --out.

    Each picture is named after its prompt and seed, and holds what it takes to draw it again (`safelight replay`).
    """
    from safelight.assets.encode import Encoding
    from safelight.models.registry.registered_models import open_catalogue
    from safelight.prompts.expand import expand_draft
    from safelight.resolve.check import check
    from safelight.settings import Settings
    from safelight.spec import parse_draft

    terminal = sys.stdout.isatty() and not (as_json or quiet)
    preview_every = STEPS_BETWEEN_PREVIEWS if terminal and preview and shows_colours() else None
    settings = Settings.from_environment(device=device, dtype=dtype, preview_every=preview_every)
    from_stdin = prompt == "-"
    wish = {
        "prompt": sys.stdin.read().strip() if from_stdin else prompt,
        "negative_prompt": negative,
        "model": model,
        "seed": seed,
        "width": width,
        "height": height,
        "sampler": sampler,
        "steps": steps,
        "guidance": guidance,
        "guidance_rescale": guidance_rescale,
        "guidance_interval": interval(guidance_interval),
        "refiner": refiner,
        "refiner_switch": refiner_switch,
        "pag_scale": pag,
        "pag_layers": pag_layers and pag_layers.split(","),
        "sag_scale": sag,
        "freeu": factors(freeu),
        "clip_skip": clip_skip,
        "determinism": determinism,
        "loras": [lora_request(text) for text in lora or ()],
        "controls": leads.control_requests(control, fit, settings),
        "picture_prompts": leads.picture_requests(ip, settings),
        "vae": vae,
        "text_encoder": text_encoder,
        "highres": second_pass(highres, strength=highres_strength, steps=highres_steps, upscaler=highres_upscaler),
        "init": kept(init, settings),
        "strength": strength,
        "fit": fit,
        "mask": kept(mask, settings),
        "mask_blur": mask_blur,
        "mask_invert": mask_invert,
        "only_masked": only_masked,
        "padding": padding,
        "replace_background": replace_background,
        "image_guidance": image_guidance,
        "extend": sides(extend),
    }
    draft = parse_draft({name: value for name, value in wish.items() if value is not None})
    model_known = check(draft, open_catalogue(settings))
    if model_known and not quiet:
        say_of_size(draft, model_known)
    drafts = expand_draft(draft, n, expand=expansion(wildcards, combinatorial), folder=settings.wildcards)
    require_writable((settings.blobs, out))

    encoding = Encoding(format=format, quality=quality, metadata=metadata)
    with opened_screen(len(drafts), loading=model) if terminal else nullcontext() as screen:
        album = PictureFolder(out, as_json=as_json, quiet=quiet, say=screen.print if screen else typer.echo)
        draw_into(album, drafts, settings, encoding=encoding, screen=screen)
    if hints or (hints is None and terminal):
        last = album.drawn[-1]
        for line in next_hints.after(last.spec, album.paths[-1], from_stdin=from_stdin):
            typer.echo(line)


def expansion(wildcards: bool, combinatorial: bool) -> "Expand | None":
    if wildcards and combinatorial:
        raise InvalidRequest("--wildcards draws by lot and --combinatorial everything: give one of them")
    return "combinatorial" if combinatorial else "wildcards" if wildcards else None


def interval(text: str | None) -> dict[str, str] | None:
    """`0.2,0.8`; whether these are fractions is the spec's to say."""
    if text is None:
        return None
    start, comma, end = text.partition(",")
    if not comma:
        raise InvalidRequest(
            f"--guidance-interval is two fractions with a comma between, such as 0.2,0.8, not {text!r}"
        )
    return {"start": start, "end": end}


def factors(text: str | None) -> dict[str, str] | None:
    """Four numbers; whether they are in bounds is the spec's to say."""
    if text is None:
        return None
    values = text.split(",")
    if len(values) != 4:
        raise InvalidRequest(f"--freeu is four numbers with commas between, such as 1.5,1.6,0.9,0.2, not {text!r}")
    return dict(zip(("b1", "b2", "s1", "s2"), values, strict=True))


def lora_request(text: str) -> dict[str, str]:
    """`name`, or `name:0.8`; a path may have colons of its own."""
    name, colon, weight = text.rpartition(":")
    if not colon or "/" in weight or "\\" in weight:
        return {"name": text}
    return {"name": name, "weight": weight}


def sides(text: str | None) -> dict[str, str] | None:
    """`left=64,top=32`, or `64` for every side."""
    if text is None:
        return None
    if "=" not in text:
        return dict.fromkeys(("left", "top", "right", "bottom"), text)
    return {side.strip(): pixels for side, _, pixels in (part.partition("=") for part in text.split(","))}


def second_pass(scale: float | None, **fields: Any) -> dict[str, Any] | None:
    return (
        None
        if scale is None
        else {"scale": scale, **{name: value for name, value in fields.items() if value is not None}}
    )


def say_of_size(draft: "Draft", model: "Description") -> None:
    from safelight.models.checkpoints.sizes import size_warning

    if note := size_warning(draft, model):
        typer.echo(f"note: {note}", err=True)


def shows_colours() -> bool:
    from rich.console import Console

    console = Console()
    return console.color_system == "truecolor" and not console.no_color


def opened_screen(pictures: int, *, loading: str) -> "Screen":
    from safelight.cli.screen import Screen

    screen = Screen(pictures)
    screen.wait_for(f"loading {loading}")
    return screen


def draw_into(
    album: PictureFolder,
    drafts: "Sequence[Draft]",
    settings: "Settings",
    *,
    encoding: "Encoding",
    screen: "Screen | None",
) -> None:
    """Draw all together, and put each into the album as it is finished.

    Raises:
        JobCancelled: Ctrl-C; what is finished is in the album. A second one ends the process at once.
    """
    try:
        import asyncio

        from safelight.api import draw, unwrapped
        from safelight.studio import open_studio

        async def draw_one(picture: int, wish: "Draft", studio: "Studio") -> None:
            on_event = partial(screen.on_event, picture) if screen else unheard
            album.put(await draw(wish, studio, encoding=encoding, on_event=on_event), studio.assets)

        async def draw_all(studio: "Studio") -> None:
            try:
                async with asyncio.TaskGroup() as group:
                    for picture, wish in enumerate(drafts):
                        group.create_task(draw_one(picture, wish, studio))
            except asyncio.CancelledError:
                signal.signal(signal.SIGINT, signal.SIG_DFL)
                raise

        with open_studio(settings) as studio:
            unwrapped(draw_all(studio))
    except KeyboardInterrupt:
        finished = f"{len(album.paths)} of {len(drafts)} picture{'s' * (len(drafts) > 1)}"
        which = f"kept: {', '.join(map(str, album.paths))}" if album.paths else "nothing was finished"
        raise JobCancelled(f"Stopped after {finished}; {which}") from None


def unheard(_event: object) -> None:
    pass
