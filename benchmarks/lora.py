"""Eight requests with eight different LoRAs: one batch of the engine against a diffusers pipeline that swaps them.

    python benchmarks/lora.py            prints a table and writes benchmarks/results/lora_*.md
    python benchmarks/lora.py --quick    one round

Both sides draw the same pictures with the embedded model, in turn, each in a process of its own. The pipeline serves
one request after another; for each it loads the LoRA, draws, and unloads it, as a server must if the next request uses
another LoRA. The LoRAs are random, of rank 8, for the attention and feed-forward layers of the UNet.
"""

import argparse
import asyncio
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from report import Report, ratio

NUM_LORAS, RANK, STEPS = 8, 8, 12
ROUND = [{"prompt": "a red apple", "seed": i, "steps": STEPS, "guidance": 4.0} for i in range(NUM_LORAS)]


Seconds = tuple[float, float]
"""Elapsed and CPU seconds; on a shared machine, the second vary less."""


def write_loras(folder: Path) -> None:
    """Write random LoRAs in peft's format, which both sides read."""
    import torch
    from diffusers import UNet2DConditionModel
    from safetensors.torch import save_file

    from safelight.models.checkpoints.catalogue import MINI

    unet = UNet2DConditionModel.from_pretrained(MINI / "unet")
    dice = torch.Generator().manual_seed(0)
    inside = {n: m for n, m in unet.named_modules() if ".transformer_blocks." in n and isinstance(m, torch.nn.Linear)}
    for i in range(NUM_LORAS):
        tensors: dict[str, torch.Tensor] = {}
        for name, layer in inside.items():
            out, into = layer.weight.shape
            tensors[f"unet.{name}.lora_A.weight"] = torch.randn(RANK, into, generator=dice) * into**-0.5
            tensors[f"unet.{name}.lora_B.weight"] = 0.02 * torch.randn(out, RANK, generator=dice)
        save_file(tensors, folder / f"lora{i}.safetensors")


def pipeline(home: Path, *, swap: bool) -> Seconds:
    import torch
    from diffusers import DDIMScheduler, StableDiffusionPipeline

    from safelight.models.checkpoints.catalogue import MINI

    pipe: Any = StableDiffusionPipeline.from_pretrained(MINI, torch_dtype=torch.float32)
    pipe.scheduler = DDIMScheduler.from_config(pipe.scheduler.config)
    pipe.set_progress_bar_config(disable=True)

    def draw(i: int, request: dict[str, Any]) -> None:
        if swap:
            pipe.load_lora_weights(home / "loras", weight_name=f"lora{i}.safetensors")
        pipe(
            request["prompt"],
            num_inference_steps=request["steps"],
            guidance_scale=request["guidance"],
            generator=torch.Generator("cpu").manual_seed(request["seed"]),
        )
        if swap:
            pipe.unload_lora_weights()

    draw(0, ROUND[0])
    return timed(lambda: [draw(i, request) for i, request in enumerate(ROUND)])


def engine(home: Path, *, swap: bool) -> Seconds:
    from safelight.events import Decoded
    from safelight.models.adapters.lora_effect import LoraEffect
    from safelight.resolve.resolve import resolve
    from safelight.settings import Settings
    from safelight.spec import Draft
    from safelight.studio import open_studio

    studio = open_studio(Settings.from_environment(home=home))

    async def draw(i: int, request: dict[str, Any]) -> None:
        loras = [{"name": f"lora{i}"}] if swap else []
        spec = await resolve(Draft(**request, sampler="DDIM", guidance_rescale=0, loras=loras), studio)
        done = [event async for event in studio.backend.submit(spec, {}) if isinstance(event, Decoded)]
        assert done, "no picture came out"

    async def together() -> None:
        await asyncio.gather(*(draw(i, request) for i, request in enumerate(ROUND)))

    def forgetful() -> None:
        """Without cached LoRAs, as the pipeline, which reads its files again for each request."""
        loras = studio.effects["loras"]
        assert isinstance(loras, LoraEffect)
        loras.loaded.clear()
        asyncio.run(together())

    with studio:
        asyncio.run(draw(0, ROUND[0]))
        return timed(forgetful)


SIDES: dict[str, Callable[..., Seconds]] = {"pipeline": pipeline, "engine": engine}


def timed(work: Callable[[], Any]) -> Seconds:
    began = time.perf_counter(), time.process_time()
    work()
    return time.perf_counter() - began[0], time.process_time() - began[1]


def in_child(side: str, home: Path, *, swap: bool) -> Seconds:
    command = [sys.executable, "-W", "ignore", __file__, "--side", side, "--home", str(home), *["--swap"] * swap]
    output = subprocess.run(command, check=True, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True).stdout
    elapsed, processor = json.loads(output.splitlines()[-1])
    return elapsed, processor


def main(*, quick: bool) -> None:
    report = Report("lora", "Eight requests with eight LoRAs: one batch against eight swaps")
    seen: dict[tuple[str, bool], list[Seconds]] = {}
    with tempfile.TemporaryDirectory() as folder:
        home = Path(folder)
        (home / "loras").mkdir()
        write_loras(home / "loras")
        for _ in range(1 if quick else 2):
            for swap in (True, False):
                for side in SIDES:
                    seen.setdefault((side, swap), []).append(in_child(side, home, swap=swap))
    best = {key: tuple(map(min, zip(*seconds, strict=True))) for key, seconds in seen.items()}
    for swap, what, note in (
        (True, f"{NUM_LORAS} requests with {NUM_LORAS} LoRAs, {STEPS} steps", "aim 3x; files are read in each round"),
        (False, "the same requests without LoRA", "for comparison"),
    ):
        for i, kind in enumerate(("s", "s of processor time")):
            theirs, ours = best["pipeline", swap][i], best["engine", swap][i]
            report.row(f"{what}, {kind}", peer=theirs, ours=ours, ratio=ratio(theirs, ours), note=note)
    report.row(
        "what LoRAs add to the processor time",
        peer=best["pipeline", True][1] / best["pipeline", False][1] - 1,
        ours=best["engine", True][1] / best["engine", False][1] - 1,
        note="as a share of the time without",
    )
    report.finish()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--side", choices=SIDES, help=argparse.SUPPRESS)
    parser.add_argument("--home", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--swap", action="store_true", help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.side:
        print(json.dumps(SIDES[asked.side](asked.home, swap=asked.swap)))
    else:
        main(quick=asked.quick)
