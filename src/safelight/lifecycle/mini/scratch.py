"""Train the embedded model from scratch, in stages; each can be resumed.

    artwork -> tokenizer -> autoencoder -> denoiser -> styling -> decoder -> export -> image encoder

`safelight train scratch` runs them. All results of a run are in one folder, outside git. To train the shipped weights
further: run artwork, then `adopt`, then `denoiser` with those weights.
"""

import json
import os
import shutil
import subprocess
import sys
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import torch
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion import StableDiffusionPipeline

from safelight.errors import InvalidRequest
from safelight.lifecycle.mini.artwork import build_artwork
from safelight.lifecycle.mini.autoencoder import BACKGROUNDS, encode_pictures
from safelight.lifecycle.mini.autoencoder import train_autoencoder as run_autoencoder
from safelight.lifecycle.mini.captions import COLOURS, FILLERS, OPENINGS, STYLE_WORDS, names_of, read_aliases
from safelight.lifecycle.mini.decoder import train_decoder as run_decoder
from safelight.lifecycle.mini.denoiser import STYLED, load_averaged, new_denoiser
from safelight.lifecycle.mini.denoiser import train_denoiser as run_denoiser
from safelight.lifecycle.mini.export import export as export_folder
from safelight.lifecycle.mini.image_encoder import train_image_encoder as run_image_encoder
from safelight.lifecycle.mini.metrics_csv import draw_curve, read
from safelight.lifecycle.mini.mini import MINI
from safelight.lifecycle.mini.sampling import draw_grid
from safelight.lifecycle.mini.tokenizer import tokenizer_texts, train_tokenizer
from safelight.lifecycle.training.rates import Until

Stage = Literal["artwork", "autoencoder", "denoiser", "styling", "decoder", "export", "image-encoder", "adopt"]
ALL: tuple[Stage, ...] = ("artwork", "autoencoder", "denoiser", "styling", "decoder", "export", "image-encoder")
"""The stages of a whole run, in order."""
SHARED: tuple[Stage, ...] = ("autoencoder", "denoiser", "styling", "decoder", "image-encoder")
"""Stages whose work several processes share."""
AUTOENCODER_MINUTES = 60.0
"""Colours are learnt last: after a third of this time, the decoder still draws every yellow as orange."""
LAST_MINUTES: dict[Stage, float] = {"styling": 90, "decoder": 35, "image-encoder": 12}
RESULTS = {"artwork": "tokenizer/vocab.json", "autoencoder": "views.json"}
"""The last file that a stage writes: if it exists, a whole run skips the stage. Other stages leave a file in `done`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ScratchOptions:
    """Options of a run."""

    out: Path
    """The folder of the run: data, checkpoints, logs."""
    minutes: float | None = None
    """Minutes after which a stage stops; its learning rates have fallen to zero by then. None: it never stops."""
    steps: int | None = None
    weights: Path | None = None
    """Start from the weights in this diffusers folder."""
    folder: Path | None = None
    """The model folder that `export` writes, `image-encoder` adds to and `adopt` reads."""
    grid: Path | None = None
    """The file to which `export` writes its sample grid."""
    curve: Path | None = None
    """The file to which `export` plots the errors of the run, as SVG."""
    moment: float | None = None
    """Stop at this time, in seconds since the epoch: the same for every process of a stage."""

    @property
    def until(self) -> Until:
        return Until(steps=self.steps, moment=self.moment or (self.minutes and time.time() + 60 * self.minutes))


def train_all(orders: ScratchOptions, *, processes: int) -> None:
    """Run every stage that is not done; a run that was killed resumes."""
    left: list[Stage] = [stage for stage in ALL if not result_of(stage, orders.out).exists()]
    for stage in left:
        own = orders
        if stage == "autoencoder":
            own = replace(orders, minutes=AUTOENCODER_MINUTES)
        elif stage in LAST_MINUTES:
            own = replace(orders, minutes=LAST_MINUTES[stage], steps=None, weights=None)
        train_stage(stage, own, processes=processes)
        if stage not in RESULTS:
            done = result_of(stage, orders.out)
            done.parent.mkdir(parents=True, exist_ok=True)
            done.touch()
    if not left:
        print(f"{orders.out} is a finished run; to continue one of its stages, name the stage")


def result_of(stage: Stage, out: Path) -> Path:
    """The file that marks the stage as done."""
    return out / RESULTS.get(stage, f"done/{stage}")


def train_stage(stage: Stage, orders: ScratchOptions, *, processes: int) -> None:
    """Run one stage, in this process or in several processes of one thread each."""
    if processes > 1 and stage in SHARED and "RANK" not in os.environ:
        spread(stage, orders, processes=processes)
        return
    if "RANK" in os.environ:
        torch.set_num_threads(1)
    match stage:
        case "artwork":
            train_artwork(orders.out)
        case "autoencoder":
            train_autoencoder(orders.out, until=orders.until, start=orders.weights)
        case "styling":
            train_styling(orders.out, until=orders.until, start=orders.weights)
        case "decoder":
            train_decoder(orders.out, until=orders.until, start=orders.weights)
        case "adopt":
            adopt(orders.out, needed(orders.folder, stage))
        case "denoiser":
            train_denoiser(orders.out, until=orders.until, start=orders.weights)
        case "export":
            export(orders.out, needed(orders.folder, stage), grid=orders.grid, curve=orders.curve)
        case "image-encoder":
            train_image_encoder(orders.out, needed(orders.folder, stage), until=orders.until, start=orders.weights)


def needed(folder: Path | None, stage: Stage) -> Path:
    if folder is None:
        raise InvalidRequest(
            f"{stage} needs --folder: the model folder that it {'reads' if stage == 'adopt' else 'writes'}"
        )
    return folder


def train_artwork(out: Path) -> None:
    """Fetch and render the pictures, then build the vocabulary of their captions."""
    build_artwork(MINI.artwork, out / "artwork")
    aliases = read_aliases()
    concepts = json.loads((out / "artwork/concepts.json").read_text("utf-8"))
    names = [name for concept in concepts for name in names_of(concept["label"], aliases)]
    frame = [*OPENINGS, *FILLERS, *COLOURS, *(f"on a {colour} background" for colour in BACKGROUNDS)]
    frame += [word for words in STYLE_WORDS.values() for word in words]
    keywords = [keyword for concept in concepts for keyword in concept["keywords"]]
    train_tokenizer(tokenizer_texts([*names, *frame * 20], keywords), MINI.text, out / "tokenizer")


def train_autoencoder(out: Path, *, until: Until, start: Path | None = None) -> None:
    """Train the autoencoder and cache every picture's latents."""
    weights = AutoencoderKL.from_pretrained(start / "vae", torch_dtype=torch.float32) if start else None
    run_autoencoder(MINI, out / "artwork", out, until=until, start=weights)
    encode_pictures(MINI, out / "artwork", out)


def train_decoder(out: Path, *, until: Until, start: Path | None = None) -> None:
    """Train the autoencoder's decoder on latents from the run's denoiser, or from the one in `start`."""
    denoiser = new_denoiser(MINI, start) if start else load_averaged(MINI, out)[0]
    run_decoder(MINI, out / "artwork", out, denoiser, until=until)


def adopt(out: Path, folder: Path) -> None:
    """Copy tokenizer and autoencoder from a model folder and cache the latents, if the run folder was lost."""
    shutil.copytree(folder / "tokenizer", out / "tokenizer", dirs_exist_ok=True)
    AutoencoderKL.from_pretrained(folder / "vae", torch_dtype=torch.float32).save_pretrained(out / "vae")
    encode_pictures(MINI, out / "artwork", out)


def train_denoiser(out: Path, *, until: Until, start: Path | None = None) -> None:
    """Train text encoder and UNet on the cached latents."""
    run_denoiser(MINI, out / "artwork", out, until=until, start=new_denoiser(MINI, start))


def train_styling(out: Path, *, until: Until, start: Path | None = None) -> None:
    """Train the UNet alone, the run's or the one in `start`, to tell styles apart."""
    recipe = replace(MINI, denoiser=MINI.styling, captions=MINI.styled_captions)
    denoiser = new_denoiser(MINI, start) if start else load_averaged(MINI, out)[0].train()
    run_denoiser(recipe, out / "artwork", out, until=until, start=denoiser, state=STYLED)


def export(out: Path, folder: Path, *, grid: Path | None, curve: Path | None) -> None:
    """Write the averaged weights of the run in `out` as a diffusers folder, and draw the fixed grid from it."""
    network, step = load_averaged(MINI, out)
    export_folder(
        folder,
        autoencoder=AutoencoderKL.from_pretrained(out / "vae"),
        text_encoder=network.text_encoder,
        unet=network.unet,
        tokenizer=out / "tokenizer",
    )
    print(f"exported step {step} to {folder}")
    if grid:
        draw_grid(StableDiffusionPipeline.from_pretrained(folder)).save(grid)
    if curve:
        drawn = draw_curve(read(out / "curve.csv"), across="cpu_hours", names=("known", "held"))
        curve.write_text(drawn, "utf-8")


def train_image_encoder(out: Path, folder: Path, *, until: Until, start: Path | None = None) -> None:
    """Train an image encoder for the text encoder in `folder`, and write it into the folder."""
    run_image_encoder(MINI, out / "artwork", out, folder, until=until, start=start)


def spread(stage: Stage, orders: ScratchOptions, *, processes: int) -> None:
    """Run the stage in several one-thread processes that share each batch (gloo)."""
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
    command = [*launcher, "-m", "safelight", "train", "scratch", stage, "--out", str(orders.out)]
    options = {"--steps": orders.steps, "--moment": orders.until.moment, "--weights": orders.weights}
    options |= {"--folder": orders.folder}
    for option, value in options.items():
        if value is not None:
            command += [option, str(value)]
    subprocess.run(command, check=True, env=os.environ | {"OMP_NUM_THREADS": "1"})
