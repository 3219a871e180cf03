"""Memory growth of a server over 10 000 small pictures that all differ.

    python benchmarks/memory.py                    an hour or so; fails if memory still grows in the second half
    python benchmarks/memory.py --pictures 1500    a shorter run

One real server process, with requests in three APIs over HTTP: different sizes, samplers, prompts and seeds, a LoRA, a
start picture, previews and event streams.
"""

import argparse
import asyncio
import random
import statistics
import sys
import tempfile
import time
from io import BytesIO
from pathlib import Path
from typing import Any

import httpx
import psutil
from PIL import Image
from report import Report
from server import free_port, process

from safelight.diffusion.samplers import SAMPLERS
from safelight.models.checkpoints.catalogue import MINI

PICTURES = 10_000
AT_ONCE = 16
EVERY = 100
"""Pictures between two measurements."""
MAX_MIB_PER_1000 = 10.0
THINGS = ("apple", "car", "cat", "pizza", "star", "frog", "house", "heart")
NAMES = sorted(name for name, sampler in SAMPLERS.items() if sampler.kind == "diffusion")
SIDES = range(64, 136, 8)
Request = dict[str, Any]


def requests(count: int, starts: list[str]) -> list[Request]:
    """The same list in every run; no prompt and no seed occurs twice."""
    dice = random.Random(0)
    listed: list[Request] = []
    for seed in range(count):
        request: Request = {
            "prompt": f"a {dice.choice(THINGS)} and {dice.choice(THINGS)} number {seed}",
            "negative_prompt": dice.choice(("", "blurry", f"not {seed}")),
            "seed": seed,
            "sampler": dice.choice(NAMES),
            "steps": dice.randint(1, 2),
            "guidance": dice.choice((1.0, 3.0, 6.0)),
            "width": dice.choice(SIDES),
            "height": dice.choice(SIDES),
        }
        if dice.random() < 0.3:
            request["loras"] = [{"name": "benchmark", "weight": round(dice.uniform(0.2, 1.0), 2)}]
        if dice.random() < 0.3:
            request |= {"init": dice.choice(starts), "strength": round(dice.uniform(0.7, 1.0), 2), "steps": 3}
        listed.append(request)
    return listed


async def draw(client: httpx.AsyncClient, request: Request) -> None:
    """Draw by a job with its event stream, a job that is polled, or one of the other two APIs."""
    match request["seed"] % 4:
        case 0 if "init" not in request:
            theirs = {"sampler_name": request["sampler"], "cfg_scale": request["guidance"]}
            same = ("prompt", "negative_prompt", "seed", "steps", "width", "height")
            body = theirs | {name: request[name] for name in same}
            answer = await client.post("/sdapi/v1/txt2img", json=body)
            assert answer.is_success, answer.text
        case 1 if "init" not in request:
            body = {name: request[name] for name in ("prompt", "seed", "steps")}
            body |= {"size": f"{request['width']}x{request['height']}", "response_format": "b64_json"}
            (await client.post("/v1/images/generations", json=body)).raise_for_status()
        case 2:
            job = (await client.post("/v1/jobs", json=request)).raise_for_status().json()
            async with client.stream("GET", f"/v1/jobs/{job['id']}/events") as stream:
                told = [line async for line in stream.aiter_lines()]
            assert "event: done" in told, told
        case _:
            job = (await client.post("/v1/jobs", json=request)).raise_for_status().json()
            while job["state"] in ("queued", "running"):
                job = (await client.get(f"/v1/jobs/{job['id']}/wait")).raise_for_status().json()
            assert job["state"] == "done", job
            (await client.get(f"/v1/files/{job['asset_id']}")).raise_for_status()


async def upload_starts(client: httpx.AsyncClient) -> list[str]:
    dice, ids = random.Random(1), list[str]()
    for _ in range(20):
        file, colour = BytesIO(), dice.choice(("red", "green", "blue"))
        Image.new("RGB", (dice.choice(SIDES), dice.choice(SIDES)), colour).save(file, "PNG")
        answer = await client.post("/v1/files", files={"file": ("start.png", file.getvalue(), "image/png")})
        ids.append(answer.raise_for_status().json()["id"])
    return ids


async def measure(url: str, server: psutil.Process, pictures: int) -> list[float]:
    """The size in MiB after every hundred pictures."""
    sizes: list[float] = []
    async with httpx.AsyncClient(base_url=url, timeout=None) as client:
        todo = iter(requests(pictures, await upload_starts(client)))

        async def ask() -> None:
            for request in todo:
                await draw(client, request)
                if request["seed"] % EVERY == EVERY - 1:
                    sizes.append(server.memory_info().rss / 2**20)
                    print(f"{request['seed'] + 1} pictures: {sizes[-1]:.0f} MiB", flush=True)

        await asyncio.gather(*(ask() for _ in range(AT_ONCE)))
    return sizes


def slope(sizes: list[float]) -> float:
    """MiB per thousand pictures, by least squares."""
    return statistics.linear_regression(range(len(sizes)), sizes).slope / EVERY * 1000


def write_lora(path: Path) -> None:
    """Write a LoRA of rank 4 for every attention layer of mini's UNet."""
    import torch
    from diffusers import UNet2DConditionModel
    from safetensors.torch import save_file

    torch.manual_seed(0)
    tensors: dict[str, torch.Tensor] = {}
    for name, layer in UNet2DConditionModel.from_pretrained(MINI, subfolder="unet").named_modules():
        if name.endswith(("to_q", "to_k", "to_v")):
            tensors[f"unet.{name}.lora_A.weight"] = 0.02 * torch.randn(4, layer.in_features)
            tensors[f"unet.{name}.lora_B.weight"] = 0.02 * torch.randn(layer.out_features, 4)
    path.parent.mkdir(parents=True)
    save_file(tensors, path)


def main(*, pictures: int) -> None:
    report = Report("memory", f"A server's memory over {pictures} unlike pictures", peer="at most")
    with tempfile.TemporaryDirectory() as home:
        write_lora(Path(home, "loras", "benchmark.safetensors"))
        port = free_port()
        environment = {"SAFELIGHT_HOME": home, "SAFELIGHT_PREVIEW_EVERY": "1"}
        with process(["-m", "safelight", "serve", "--port", str(port)], port, environment) as server:
            began = time.monotonic()
            sizes = asyncio.run(measure(f"http://127.0.0.1:{port}", server, pictures))
            minutes = (time.monotonic() - began) / 60
    half = len(sizes) // 2
    grown = slope(sizes[half:])
    report.row("MiB after the first hundred", ours=sizes[0])
    report.row("MiB halfway", ours=sizes[half])
    report.row("MiB at the end", ours=sizes[-1], note=f"{pictures} pictures in {minutes:.0f} min")
    report.row("MiB per 1000 pictures, first half", ours=slope(sizes[:half]))
    report.row("MiB per 1000 pictures, second half", peer=MAX_MIB_PER_1000, ours=grown)
    report.finish()
    if pictures >= PICTURES and grown > MAX_MIB_PER_1000:
        sys.exit(f"memory still grows by {grown:.1f} MiB per 1000 pictures")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pictures", type=int, default=PICTURES)
    main(pictures=parser.parse_args().pictures)
