"""What the marks of a picture cost beside drawing it, in CPU time of one process, in turn.

    OMP_NUM_THREADS=1 python -m benchmarks.marks

mini's pictures are drawn, and finished with all marks and with none. For Stable Diffusion 1.5, one step with guidance
of a network of its size is timed, with random weights at 512 x 512, and taken twenty times. With more threads, waiting
threads of numpy's BLAS count as CPU time too.
"""

import argparse
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from PIL import Image

from benchmarks.stable_diffusion_15 import random_model
from safelight import api
from safelight.assets.encode import Encoding
from safelight.finish import finish
from safelight.models.backends.denoiser import Conditions
from safelight.resolve.resolve import resolve
from safelight.settings import Settings
from safelight.spec import Draft
from safelight.studio import Studio, open_studio

STEPS = 20


def cpu_s(work: Callable[[], object]) -> float:
    began = time.process_time()
    work()
    return time.process_time() - began


def main(rounds: int) -> None:
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        home = Path(folder)
        off = {"trust_signature": False, "trust_watermark": False, "trust_profiles": "", "trust_ledger": False}
        with (
            open_studio(Settings(home=home / "marked")) as marked,
            open_studio(Settings(home=home / "bare", **off)) as bare,
        ):
            measure("mini, 128 x 128", rounds, marked, bare, side=128, draw=True)
            measure("mini, 256 x 256", rounds, marked, bare, side=256, draw=True)
            marks_s = measure("marks of 512 x 512", rounds, marked, bare, side=512, draw=False)
    step_s = median(cpu_s(sd15_step()) for _ in range(2))
    share = marks_s / (STEPS * step_s)
    print(f"Stable Diffusion 1.5's size, {STEPS} steps with guidance: {STEPS * step_s:.0f} s; marks {share:.2%} of it")


def measure(name: str, rounds: int, marked: Studio, bare: Studio, *, side: int, draw: bool) -> float:
    """Print both, and return the seconds that the marks take."""
    spec = api.run(resolve(Draft(prompt="a red apple", width=side, height=side, seed=1), marked))
    drawing: list[float] = []
    plain: list[float] = []
    full: list[float] = []
    for seed in range(rounds + 1):
        fields: dict[str, Any] = {"prompt": "a red apple", "width": side, "height": side, "seed": seed}
        if draw:
            seconds = cpu_s(lambda fields=fields: api.generate(**fields, studio=bare))
            image = api.generate(**fields, studio=bare)[0].image
        else:
            seconds, image = 0.0, picture(side, seed)
        each = spec.model_copy(update={"seed": seed})
        if seed:  # the first is warming up
            drawing.append(seconds)
            plain.append(cpu_s(lambda image=image, each=each: finish(image, each, bare, Encoding())))
            full.append(cpu_s(lambda image=image, each=each: finish(image, each, marked, Encoding())))
        else:
            finish(image, each, bare, Encoding())
            finish(image, each, marked, Encoding())
    marks_s = median(full) - median(plain)
    share = f"; {marks_s / median(drawing):.1%} of drawing, {median(drawing):.3f} s" if draw else ""
    print(f"{name}: {median(plain):.4f} s without marks, {median(full):.4f} s with{share}")
    return marks_s


def picture(side: int, seed: int) -> Image.Image:
    """Smooth colours with texture, as pictures have."""
    noise = np.random.default_rng(seed)
    small = Image.fromarray(noise.integers(0, 256, (side // 16, side // 16, 3), dtype=np.uint8))
    pixels = np.asarray(small.resize((side, side), Image.Resampling.BICUBIC)).astype(np.float32)
    return Image.fromarray((pixels + noise.normal(0, 4, pixels.shape)).clip(0, 255).astype(np.uint8))


def sd15_step() -> Callable[[], object]:
    """One network call with guidance: two rows."""
    _, denoise = random_model()
    latents, context = torch.randn(2, 4, 64, 64), torch.randn(2, 77, 768)
    conditions = Conditions(context=context, mask=None, pooled=None, time_ids=None, guidance=None)

    def step() -> object:
        with torch.inference_mode():
            return denoise(latents, torch.full((2,), 500.0), conditions)

    return step


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=9)
    main(parser.parse_args().rounds)
