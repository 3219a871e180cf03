"""From nothing to a model that draws: the five stages of the embedded model, each resumable.

    artwork -> tokenizer -> autoencoder -> denoiser -> export

    python -m safelight.training.scratch artwork
    python -m safelight.training.scratch autoencoder --minutes 20 --processes 2
    python -m safelight.training.scratch denoiser --minutes 600 --processes 2
    python -m safelight.training.scratch export --folder src/safelight/models/mini --grid docs/images/mini-grid.png

Everything a run makes lies in `--out`, outside git. To go on from shipped weights alone: artwork, then
`adopt --folder MODEL`, then `denoiser --weights MODEL`.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import torch
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL

from safelight.training.artwork import build_artwork
from safelight.training.autoencoder import BACKGROUNDS, encode_pictures
from safelight.training.autoencoder import train_autoencoder as run_autoencoder
from safelight.training.captions import COLOURS, OPENINGS, STYLE_WORDS, names_of, read_aliases
from safelight.training.denoiser import load_averaged
from safelight.training.denoiser import train_denoiser as run_denoiser
from safelight.training.export import export as export_folder
from safelight.training.mini import MINI
from safelight.training.rates import Until
from safelight.training.sampling import draw_grid
from safelight.training.tokenizer import tokenizer_texts, train_tokenizer


def train_artwork(out: Path) -> None:
    """Fetch and render the pictures, then learn the vocabulary of their captions."""
    build_artwork(MINI.artwork, out / "artwork")
    aliases = read_aliases()
    concepts = json.loads((out / "artwork/concepts.json").read_text("utf-8"))
    names = [name for concept in concepts for name in names_of(concept["label"], aliases)]
    frame = [*OPENINGS, *COLOURS, *(f"on a {colour} background" for colour in BACKGROUNDS)]
    frame += [word for words in STYLE_WORDS.values() for word in words]
    keywords = [keyword for concept in concepts for keyword in concept["keywords"]]
    train_tokenizer(tokenizer_texts([*names, *frame * 20], keywords), MINI.text, out / "tokenizer")


def train_autoencoder(out: Path, *, until: Until, start: Path | None = None) -> None:
    """Train the autoencoder and cache every picture's latents."""
    weights = AutoencoderKL.from_pretrained(start / "vae", torch_dtype=torch.float32) if start else None
    run_autoencoder(MINI, out / "artwork", out, until=until, start=weights)
    encode_pictures(MINI, out / "artwork", out)


def train_decoder(out: Path, *, until: Until) -> None:
    """Train the autoencoder's decoder alone: the latents stay what they were."""
    weights = AutoencoderKL.from_pretrained(out / "vae")
    run_autoencoder(MINI, out / "artwork", out, until=until, start=weights, decoder_only=True)


def adopt(out: Path, folder: Path) -> None:
    """Take over tokenizer and autoencoder from a model folder and cache latents, where the run folder was lost."""
    shutil.copytree(folder / "tokenizer", out / "tokenizer", dirs_exist_ok=True)
    AutoencoderKL.from_pretrained(folder / "vae", torch_dtype=torch.float32).save_pretrained(out / "vae")
    encode_pictures(MINI, out / "artwork", out)


def train_denoiser(out: Path, *, until: Until, start: Path | None = None) -> None:
    """Train text encoder and UNet on the cached latents."""
    run_denoiser(MINI, out / "artwork", out, until=until, start=start)


def export(out: Path, folder: Path, grid: Path | None) -> None:
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
        draw_grid(folder, grid)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("stage", choices=["artwork", "autoencoder", "adopt", "denoiser", "decoder", "export"])
    parser.add_argument("--out", type=Path, default=Path("mini-run"), help="folder of the run: data, checkpoints, logs")
    parser.add_argument("--minutes", type=float, help="stop after so long, rates cooling down before; default: never")
    parser.add_argument("--steps", type=int, help="stop at this step")
    parser.add_argument("--moment", type=float, help="stop at this time, in seconds since the epoch")
    parser.add_argument("--weights", type=Path, help="begin from the weights in this diffusers folder")
    parser.add_argument(
        "--processes", type=int, default=1, help="processes of one thread each; 1: one with all threads"
    )
    parser.add_argument("--folder", type=Path, help="the model folder that export writes and adopt reads")
    parser.add_argument("--grid", type=Path, help="where export draws its sample grid")
    arguments = parser.parse_args()
    moment = time.time() + 60 * arguments.minutes if arguments.minutes else arguments.moment
    if arguments.processes > 1 and "RANK" not in os.environ:
        spread(sys.argv[1:], processes=arguments.processes, moment=moment)
        return
    if "RANK" in os.environ:
        torch.set_num_threads(1)
    until = Until(steps=arguments.steps, moment=moment)
    match arguments.stage:
        case "artwork":
            train_artwork(arguments.out)
        case "autoencoder":
            train_autoencoder(arguments.out, until=until, start=arguments.weights)
        case "decoder":
            train_decoder(arguments.out, until=until)
        case "adopt":
            adopt(arguments.out, arguments.folder)
        case "denoiser":
            train_denoiser(arguments.out, until=until, start=arguments.weights)
        case _:
            export(arguments.out, arguments.folder, arguments.grid)


def spread(arguments: list[str], *, processes: int, moment: float | None) -> None:
    """Run the same command as several one-thread processes that share each batch (gloo)."""
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
    command = [*launcher, "-m", "safelight.training.scratch", *arguments]
    if moment and "--minutes" in arguments:
        where = command.index("--minutes")
        command[where : where + 2] = ["--moment", str(moment)]
    subprocess.run(command, check=True, env=os.environ | {"OMP_NUM_THREADS": "1"})


if __name__ == "__main__":
    main()
