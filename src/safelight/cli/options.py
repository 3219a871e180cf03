"""Options that several commands take, so that they mean the same everywhere."""

from pathlib import Path
from typing import Annotated, Literal

import typer

FILES, MACHINE, OUTPUT = "The file", "The machine", "What is shown"

Model = Annotated[
    str,
    typer.Option(
        "--model",
        "-m",
        metavar="NAME|PATH|HUB_ID",
        help="A name of `safelight models list`, a diffusers folder, a .safetensors checkpoint, or "
        "org/name\\[@revision] on the Hugging Face hub.",
    ),
]
Out = Annotated[
    Path,
    typer.Option(
        "--out", "-o", metavar="DIR", help="Folder for the pictures; created if missing.", rich_help_panel=FILES
    ),
]
Format = Annotated[Literal["png", "jpeg", "webp", "avif"], typer.Option("--format", rich_help_panel=FILES)]
Quality = Annotated[
    int, typer.Option(min=1, max=100, help="Quality of JPEG, WebP and AVIF, 1 to 100.", rich_help_panel=FILES)
]
Detail = Annotated[
    Literal["full", "minimal", "none"],
    typer.Option(
        "--metadata",
        help="Metadata in the file: full allows a replay, minimal omits the prompt, none all but the marks.",
        rich_help_panel=FILES,
    ),
]
Device = Annotated[
    Literal["auto", "cpu", "cuda", "mps"] | None,
    typer.Option(
        help="Device to compute on.", show_default="SAFELIGHT_DEVICE, or the best there is", rich_help_panel=MACHINE
    ),
]
Dtype = Annotated[
    Literal["auto", "float32", "float16", "bfloat16"] | None,
    typer.Option(
        help="Number format of the network.",
        show_default="SAFELIGHT_DTYPE, or what is fast here",
        rich_help_panel=MACHINE,
    ),
]
Json = Annotated[
    bool,
    typer.Option("--json", help="Machine-readable output on stdout; errors too, on stderr.", rich_help_panel=OUTPUT),
]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Print only the paths.", rich_help_panel=OUTPUT)]
