"""The server against the usual solution, FastAPI around a diffusers pipeline with a lock, and against LitServe.

    python benchmarks/server.py                  prints a table and writes benchmarks/results/server_*.md
    python benchmarks/server.py --pictures 2000  the long run for the memory slope (an hour or so on two cores)

All are real processes reached over HTTP, measured in turn with the same mixed requests: steps 8 to 40, several
samplers, three keys. Quote the ratios, not the seconds.
"""

import argparse
import asyncio
import os
import random
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import psutil
from report import Report, ratio

NUM_REQUESTS = 32
LOAD = 0.8
"""Rate of the Poisson arrivals, as a share of the peer's throughput."""
WORDS = ("red apple", "blue car", "cat face", "slice of pizza", "yellow star", "green frog", "house", "red heart")
SAMPLERS = ("DDIM", "Euler", "Euler a", "DPM++ 2M", "UniPC", "DPM++ 2M SDE")
PEER = """
import importlib, threading, sys
import torch, uvicorn
from diffusers import StableDiffusionPipeline
from fastapi import FastAPI, Response
from io import BytesIO
from safelight.diffusion.samplers import SAMPLERS
from safelight.models.checkpoints.catalogue import MINI

pipeline = StableDiffusionPipeline.from_pretrained(MINI, torch_dtype=torch.float32)
pipeline.set_progress_bar_config(disable=True)
own, lock, app = pipeline.scheduler.config, threading.Lock(), FastAPI()

@app.get("/readyz")
def ready():
    return {}

@app.post("/draw")
def draw(request: dict):
    with lock:
        sampler = SAMPLERS[request["sampler"]]
        kind = getattr(importlib.import_module("diffusers"), sampler.diffusers_class)
        pipeline.scheduler = kind.from_config(own, **sampler.options)
        image = pipeline(
            request["prompt"],
            num_inference_steps=request["steps"],
            guidance_scale=request["guidance"],
            generator=torch.Generator("cpu").manual_seed(request["seed"]),
        ).images[0]
    file = BytesIO()
    image.save(file, "PNG")
    return Response(file.getvalue(), media_type="image/png")

uvicorn.run(app, port=int(sys.argv[1]), log_level="error")
"""

Request = dict[str, Any]


def requests(count: int) -> list[Request]:
    """Requests that all differ; the same list in every run."""
    dice = random.Random(0)
    return [
        {
            "prompt": f"a {dice.choice(WORDS)}",
            "seed": i,
            "sampler": dice.choice(SAMPLERS),
            "steps": dice.randint(8, 40),
            "guidance": dice.choice((1.0, 3.0, 4.0, 6.0)),
        }
        for i in range(count)
    ]


@contextmanager
def process(command: list[str], port: int, environment: dict[str, str]) -> Iterator[psutil.Process]:
    child = subprocess.Popen(
        [sys.executable, "-W", "ignore", *command], env=os.environ | environment, stderr=subprocess.DEVNULL
    )
    try:
        while True:
            assert child.poll() is None, "the server did not start"
            try:
                if httpx.get(f"http://127.0.0.1:{port}/readyz").status_code == 200:
                    break
            except httpx.TransportError:
                time.sleep(0.2)
        yield psutil.Process(child.pid)
    finally:
        child.terminate()
        child.wait()


class Peer:
    def __init__(self, name: str, *command: str) -> None:
        self.name = name
        self.command = command
        self.port = free_port()

    def running(self) -> Any:
        return process([*self.command, str(self.port)], self.port, {})

    async def draw(self, client: httpx.AsyncClient, request: Request, key: int) -> None:
        answer = await client.post(f"http://127.0.0.1:{self.port}/draw", json=request)
        answer.raise_for_status()


class Ours:
    name = "safelight"

    def __init__(self) -> None:
        self.port = free_port()
        self.home = tempfile.mkdtemp()
        self.keys: list[str] = []

    def running(self) -> Any:
        environment = {"SAFELIGHT_HOME": self.home, "SAFELIGHT_LONGEST_LINE": "100000"}
        for number in range(len(self.keys), 3):
            command = [sys.executable, "-m", "safelight", "keys", "create", f"key{number}"]
            made = subprocess.run(command, env=os.environ | environment, check=True, capture_output=True, text=True)
            self.keys.append(made.stdout.strip())
        return process(["-m", "safelight", "serve", "--port", str(self.port)], self.port, environment)

    async def draw(self, client: httpx.AsyncClient, request: Request, key: int) -> None:
        headers = {"X-API-Key": self.keys[key % 3]}
        base = f"http://127.0.0.1:{self.port}"
        job = (await client.post(f"{base}/v1/jobs", json=request, headers=headers)).raise_for_status().json()
        done = (await client.get(f"{base}/v1/jobs/{job['id']}/wait?timeout_s=600", headers=headers)).json()
        assert done["state"] == "done", done
        (await client.get(done["url"])).raise_for_status()

    async def first_preview(self, client: httpx.AsyncClient, request: Request) -> float:
        headers = {"X-API-Key": self.keys[0]}
        base = f"http://127.0.0.1:{self.port}"
        began = time.perf_counter()
        job = (await client.post(f"{base}/v1/jobs", json=request, headers=headers)).raise_for_status().json()
        async with client.stream("GET", f"{base}/v1/jobs/{job['id']}/events", headers=headers) as stream:
            async for line in stream.aiter_lines():
                if line == "event: preview":
                    return time.perf_counter() - began
        raise AssertionError("no preview came")


Side = Peer | Ours


async def all_at_once(side: Side, work: list[Request]) -> float:
    async with httpx.AsyncClient(timeout=1200, limits=httpx.Limits(max_connections=200)) as client:
        began = time.perf_counter()
        await asyncio.gather(*(side.draw(client, request, key) for key, request in enumerate(work)))
        return time.perf_counter() - began


async def poisson(side: Side, work: list[Request], arrivals: list[float]) -> list[float]:
    async with httpx.AsyncClient(timeout=1200, limits=httpx.Limits(max_connections=200)) as client:
        began = time.perf_counter()

        async def one(request: Request, arrival: float, key: int) -> float:
            await asyncio.sleep(max(0.0, began + arrival - time.perf_counter()))
            await side.draw(client, request, key)
            return time.perf_counter() - began - arrival

        return await asyncio.gather(*(one(w, a, k) for k, (w, a) in enumerate(zip(work, arrivals, strict=True))))


async def shares_under_flood(side: Ours) -> list[float]:
    """Each key's share of the pictures while all three have queued requests, the first four times as many."""
    done = [0, 0, 0]
    over = asyncio.Event()
    async with httpx.AsyncClient(timeout=1200, limits=httpx.Limits(max_connections=200)) as client:

        async def keep_asking(key: int) -> None:
            for request in requests(1000):
                if over.is_set():
                    return
                await side.draw(client, request | {"steps": 10, "seed": random.getrandbits(31)}, key)
                if not over.is_set():
                    done[key] += 1

        # 48 clients with the first key, 12 with each of the others: each key always has more queued than its share.
        askers = [asyncio.create_task(keep_asking(key)) for key, many in enumerate((48, 12, 12)) for _ in range(many)]
        await asyncio.sleep(45)
        over.set()
        counted = list(done)
        for asker in askers:
            asker.cancel()
        await asyncio.gather(*askers, return_exceptions=True)
    return [count / sum(counted) for count in counted]


async def memory_slope(side: Side, server: psutil.Process, pictures: int) -> tuple[float, float]:
    """Megabytes per thousand pictures, by least squares over the second half, and the size at the end."""
    sizes: list[float] = []
    work = [request | {"steps": 4} for request in requests(pictures)]
    for start in range(0, pictures, 20):
        await all_at_once(side, work[start : start + 20])
        sizes.append(server.memory_info().rss / 2**20)
    half = sizes[len(sizes) // 2 :]
    return statistics.linear_regression(range(len(half)), half).slope / 20 * 1000, sizes[-1]


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


def p95(values: list[float]) -> float:
    return statistics.quantiles(values, n=20)[-1]


def main(*, pictures: int) -> None:
    report = Report("server", "The server against FastAPI around a pipeline with a lock, and LitServe", peer="peer")
    work = requests(NUM_REQUESTS)
    peer, ours = Peer("pipeline and lock", "-c", PEER), Ours()
    framework = Peer("LitServe", str(Path(__file__).with_name("litserve_peer.py")))
    seconds: dict[str, list[float]] = {peer.name: [], framework.name: [], ours.name: []}
    for _ in range(2):
        for side in (peer, framework, ours):
            with side.running():
                asyncio.run(all_at_once(side, work[:3]))
                seconds[side.name].append(asyncio.run(all_at_once(side, work)))
    peer_s, framework_s, our_s = (min(each) for each in seconds.values())
    for name, their_s in ((peer.name, peer_s), (framework.name, framework_s)):
        report.row(
            f"{NUM_REQUESTS} mixed requests at once, pictures/s; peer: {name}",
            peer=NUM_REQUESTS / their_s,
            ours=NUM_REQUESTS / our_s,
            ratio=ratio(their_s, our_s),
            note="aim 2.3x, at least 1.8x",
        )
    dice, clock, arrivals = random.Random(1), 0.0, list[float]()
    for _ in work:
        clock += dice.expovariate(LOAD * NUM_REQUESTS / peer_s)
        arrivals.append(clock)
    waits: dict[str, float] = {}
    for side in (peer, ours):
        with side.running():
            asyncio.run(all_at_once(side, work[:3]))
            waits[side.name] = p95(asyncio.run(poisson(side, work, arrivals)))
    report.row(
        f"p95 latency at {LOAD:.0%} of the peer's capacity, s",
        peer=waits[peer.name],
        ours=waits[ours.name],
        ratio=ratio(waits[ours.name], waits[peer.name]),
        note="at most 0.6x",
    )
    with ours.running() as server:
        asyncio.run(all_at_once(ours, work[:3]))

        async def previewed() -> float:
            async with httpx.AsyncClient(timeout=600) as client:
                return await ours.first_preview(client, work[0] | {"steps": 20, "seed": 99})

        report.row("time to the first preview, alone, s", ours=asyncio.run(previewed()))
        shares = asyncio.run(shares_under_flood(ours))
        report.row(
            "share of each of three keys, the first with four times the requests",
            note=", ".join(f"{share:.1%}" for share in shares) + "; fair is 33.3%, within 15% of that 28.3 to 38.3%",
        )
        slope, end = asyncio.run(memory_slope(ours, server, pictures))
        report.row(
            f"memory over {pictures} pictures, MB per thousand",
            ours=slope,
            note=f"second half; {end:.0f} MB at the end",
        )
    report.finish()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pictures", type=int, default=400, help="of the memory slope")
    main(pictures=parser.parse_args().pictures)
