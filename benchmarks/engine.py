"""The engine against a diffusers pipeline that serves requests one by one: throughput, latency, overhead, memory.

    python benchmarks/engine.py            everything; prints a table and writes benchmarks/results/engine_*.md
    python benchmarks/engine.py --quick    fewer repeats, without the Stable Diffusion 1.5-sized network

Both sides run the same requests in turn, each in a process of its own, so that other load on the machine affects both
and peak memory is measured separately. Quote the ratios, not the seconds.
"""

import argparse
import asyncio
import json
import random
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from report import Report, ratio

NUM_REQUESTS = 32
LOAD = 0.8
"""Rate of the Poisson arrivals, as a share of the pipeline's throughput."""
WORDS = ("red apple", "blue car", "cat face", "slice of pizza", "yellow star", "green frog", "house", "red heart")
SAMPLERS = ("DDIM", "Euler", "Euler a", "DPM++ 2M", "UniPC", "DPM++ 2M SDE")

Request = dict[str, Any]


def requests() -> list[Request]:
    """Requests that differ in prompt, seed, sampler, steps and guidance; the same list in every run."""
    dice = random.Random(0)
    return [
        {
            "prompt": f"a {dice.choice(WORDS)}",
            "seed": i,
            "sampler": dice.choice(SAMPLERS),
            "steps": dice.choice((15, 20, 25)),
            "guidance": dice.choice((1.0, 3.0, 4.0, 6.0)),
        }
        for i in range(NUM_REQUESTS)
    ]


# One side: a diffusers pipeline behind a queue.


def open_pipeline() -> Callable[[Request], None]:
    import importlib

    import torch
    from diffusers import StableDiffusionPipeline

    from safelight.diffusion.samplers import SAMPLERS as REGISTRY
    from safelight.models.checkpoints.catalogue import MINI

    pipeline = StableDiffusionPipeline.from_pretrained(MINI, torch_dtype=torch.float32)
    pipeline.set_progress_bar_config(disable=True)
    own = pipeline.scheduler.config

    def serve(request: Request) -> None:
        sampler = REGISTRY[request["sampler"]]
        kind = getattr(importlib.import_module("diffusers"), sampler.diffusers_class)
        pipeline.scheduler = kind.from_config(own, **sampler.options)
        pipeline(
            request["prompt"],
            num_inference_steps=request["steps"],
            guidance_scale=request["guidance"],
            generator=torch.Generator("cpu").manual_seed(request["seed"]),
        )

    return serve


def pipeline_all_at_once(repeats: int) -> dict[str, Any]:
    serve, work = open_pipeline(), requests()
    serve(work[0])
    return {"seconds": [timed(lambda: [serve(request) for request in work]) for _ in range(repeats)]}


def pipeline_poisson(arrivals: list[float]) -> dict[str, Any]:
    serve, work = open_pipeline(), requests()
    serve(work[0])
    began, latencies = time.perf_counter(), list[float]()
    for request, arrival in zip(work, arrivals, strict=True):
        time.sleep(max(0.0, began + arrival - time.perf_counter()))
        serve(request)
        latencies.append(time.perf_counter() - began - arrival)
    return {"latencies": latencies}


def pipeline_alone(repeats: int) -> dict[str, Any]:
    serve, request = open_pipeline(), requests()[1] | {"guidance": 4.0, "steps": 20, "sampler": "DDIM"}
    serve(request)
    return {"seconds": [timed(lambda: serve(request)) for _ in range(repeats)]}


# The other side: safelight.


def open_engine() -> tuple[Any, Callable[[Request], Any]]:
    from safelight.engine.local import LocalBackend
    from safelight.events import Decoded
    from safelight.resolve.resolve import resolve
    from safelight.settings import Settings
    from safelight.spec import Draft
    from safelight.studio import open_studio

    studio = open_studio(Settings.from_environment(home=Path(tempfile.mkdtemp())))
    assert isinstance(studio.backend, LocalBackend)

    async def serve(request: Request) -> None:
        spec = await resolve(Draft(**request, guidance_rescale=0), studio)
        done = [event async for event in studio.backend.submit(spec, {}) if isinstance(event, Decoded)]
        assert done, "no picture came out"

    return studio, serve


def engine_all_at_once(repeats: int) -> dict[str, Any]:
    studio, serve = open_engine()

    async def together() -> None:
        await asyncio.gather(*(serve(request) for request in requests()))

    asyncio.run(together())  # compiles the schedules once, as a server has after its first minute
    with studio:
        return {"seconds": [timed(lambda: asyncio.run(together())) for _ in range(repeats)]}


def engine_poisson(arrivals: list[float]) -> dict[str, Any]:
    studio, serve = open_engine()

    async def one(request: Request, arrival: float, began: float) -> float:
        await asyncio.sleep(max(0.0, began + arrival - time.perf_counter()))
        await serve(request)
        return time.perf_counter() - began - arrival

    async def all_of_them() -> list[float]:
        for request in requests():
            await serve(request)
        began = time.perf_counter()
        return await asyncio.gather(*(one(r, a, began) for r, a in zip(requests(), arrivals, strict=True)))

    with studio:
        return {"latencies": asyncio.run(all_of_them())}


def engine_alone(repeats: int) -> dict[str, Any]:
    studio, serve = open_engine()
    request = requests()[1] | {"guidance": 4.0, "steps": 20, "sampler": "DDIM"}
    asyncio.run(serve(request))
    with studio:
        return {"seconds": [timed(lambda: asyncio.run(serve(request))) for _ in range(repeats)]}


# Overhead on a network of Stable Diffusion 1.5's size, in one process: the same calls bare and through the engine.


def overhead(repeats: int) -> dict[str, Any]:
    import torch
    from stable_diffusion_15 import random_model

    from safelight.engine.engine import Engine
    from safelight.engine.job import EncodedPrompts, Job
    from safelight.engine.runner import Runner
    from safelight.engine.scheduler import Scheduler
    from safelight.models.backends.denoiser import Conditions, stack
    from safelight.models.networks.encode import Conditioning

    model, denoise = random_model()
    engine = Engine(Scheduler(lambda _model: 10.0), Runner(lambda _model: denoise), emit=lambda _event: None)
    words = Conditioning(torch.randn(77, 768), None)

    def tell(jobs: Sequence[Job]) -> None:
        for each in jobs:
            steps = (words,) * each.now.schedule.steps
            each.encoded = EncodedPrompts(positive=(steps,), weights=(1.0,), negative=steps)

    engine.conditionings.fill = tell
    job = Job(id="one", spec=random_spec(model, steps=2 * repeats + 4), model=model, pictures={})
    engine.add(job)
    engine.step()

    context, mask, pooled = stack([words, words])
    conditions = Conditions(context=context, mask=mask, pooled=pooled, time_ids=None, guidance=None)
    latents, timesteps = torch.randn(2, 4, 32, 32), torch.full((2,), 500.0)

    def bare() -> None:
        with torch.inference_mode():
            denoise(latents, timesteps, conditions)

    pairs = [(timed(bare), timed(engine.step)) for _ in range(repeats)]
    assert job.step > repeats, "the engine took no steps"
    return {"bare": [pair[0] for pair in pairs], "engine": [pair[1] for pair in pairs]}


def random_spec(model: Any, *, steps: int) -> Any:
    from safelight.spec import Draft
    from safelight.spec.complete import complete

    draft = Draft(prompt="", seed=0, width=256, height=256, sampler="DPM++ 2M Karras", steps=steps, guidance=7)
    return complete(draft, model.description.defaults, model_digest=model.digest)


PARTS: dict[str, Callable[..., dict[str, Any]]] = {
    part.__name__: part
    for part in (
        pipeline_all_at_once,
        engine_all_at_once,
        pipeline_poisson,
        engine_poisson,
        pipeline_alone,
        engine_alone,
        overhead,
    )
}


def timed(work: Callable[[], Any]) -> float:
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def in_child(part: str, argument: Any) -> dict[str, Any]:
    """Run one part in a process of its own; returns its times and its peak memory."""
    command = [sys.executable, "-W", "ignore", __file__, "--part", part, "--argument", json.dumps(argument)]
    output = subprocess.run(command, check=True, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True).stdout
    return json.loads(output.splitlines()[-1])


def p95(values: list[float]) -> float:
    return statistics.quantiles(values, n=20)[-1]


def main(*, quick: bool) -> None:
    report = Report("engine", "The engine against a diffusers pipeline serving one by one")
    repeats = 1 if quick else 2
    together: dict[str, list[float]] = {"pipeline": [], "engine": []}
    memory: dict[str, float] = {}
    for _ in range(repeats):
        for side in together:
            result = in_child(f"{side}_all_at_once", 1)
            together[side] += result["seconds"]
            memory[side] = max(memory.get(side, 0), result["peak_mb"])
    pipeline_s, engine_s = (min(together[side]) for side in ("pipeline", "engine"))
    report.row(
        f"{NUM_REQUESTS} unlike requests at once, pictures/s",
        peer=NUM_REQUESTS / pipeline_s,
        ours=NUM_REQUESTS / engine_s,
        ratio=ratio(pipeline_s, engine_s),
        note=f"peak memory {memory['pipeline']:.0f} / {memory['engine']:.0f} MB; aim 2.3x, at least 1.8x",
    )

    dice, clock, arrivals = random.Random(1), 0.0, list[float]()
    for _ in range(NUM_REQUESTS):
        clock += dice.expovariate(LOAD * NUM_REQUESTS / pipeline_s)
        arrivals.append(clock)
    waits = {side: p95(in_child(f"{side}_poisson", arrivals)["latencies"]) for side in ("pipeline", "engine")}
    report.row(
        f"p95 latency at {LOAD:.0%} of the pipeline's capacity, s",
        peer=waits["pipeline"],
        ours=waits["engine"],
        ratio=ratio(waits["engine"], waits["pipeline"]),
        note="below 1",
    )

    alone: dict[str, list[float]] = {"pipeline": [], "engine": []}
    for _ in range(2 if quick else 3):
        for side in alone:
            alone[side] += in_child(f"{side}_alone", 12)["seconds"]
    lone = {side: statistics.median(times) for side, times in alone.items()}
    report.row(
        "a lone request, 20 steps, s",
        peer=lone["pipeline"],
        ours=lone["engine"],
        ratio=ratio(lone["engine"], lone["pipeline"]),
        note="at most 1; medians of all repeats, 12 in each process",
    )
    if not quick:
        result = in_child("overhead", 6)
        bare, engine = statistics.median(result["bare"]), statistics.median(result["engine"])
        report.row(
            "SD 1.5-sized network at 256x256: bare call / engine step, s",
            peer=bare,
            ours=engine,
            ratio=ratio(engine, bare),
            note=f"at most 1.02; medians of {len(result['bare'])}, in turn; peak memory {result['peak_mb']:.0f} MB",
        )
    report.finish()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--part", choices=PARTS, help=argparse.SUPPRESS)
    parser.add_argument("--argument", type=json.loads, help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.part:
        found = PARTS[asked.part](asked.argument)
        print(json.dumps(found | {"peak_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024}))
    else:
        main(quick=asked.quick)
