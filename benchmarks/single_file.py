"""Loading a single-file checkpoint of Stable Diffusion 1.5's size, against reading its bytes.

    python benchmarks/single_file.py [FOLDER]

Random weights in the original layout, in float32 and in float16. Each measurement is a process of its own: it reads the
whole file into memory, or it loads the model on the CPU, in float32; with the file in the system's cache, and without.
Peak memory is the process's peak (VmHWM) minus its memory before loading, against the bytes of the loaded weights.
Tensors that need no conversion stay memory-mapped; the first network call reads them.
"""

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from report import Report, ratio  # noqa: E402

REPEATS = 2


def read(path: Path) -> dict[str, float]:
    began = time.perf_counter()
    held = path.read_bytes()
    return {"seconds": time.perf_counter() - began, "bytes": len(held)}


def load(path: Path) -> dict[str, float]:
    from safelight.models.checkpoints.families import describe
    from safelight.models.networks.load import load_model
    from safelight.models.networks.networks import network_classes
    from safelight.models.networks.placement import choose_placement

    network_classes()  # import cost, the same for every model
    before = memory("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")
    began = time.perf_counter()
    model = load_model(describe(path), name="random", digest="0" * 64, placement=choose_placement("cpu", "float32"))
    seconds = time.perf_counter() - began
    peak = memory("VmHWM") - before
    networks = (model.unet, model.vae.network, *(encoder.network for encoder in model.text_encoders))
    weights = sum(parameter.nbytes for network in networks for parameter in network.parameters())
    return {"seconds": seconds, "peak_bytes": peak, "weight_bytes": weights}


def memory(name: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(name))


def drop_from_cache(path: Path) -> None:
    with path.open("rb") as file:
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def write(path: Path, dtype_name: str) -> None:
    import torch
    from tests.models.ldm_files import Ldm, checkpoint

    from safelight.models.weights.tensor_file import write_tensors

    about = Ldm(
        channels=(320, 640, 1280, 1280),
        depths=(1, 1, 1, 0),
        context=768,
        layers=2,
        vae=(128, 256, 512, 512),
        clip=("cond_stage_model.transformer.", 768),
        text_layers=12,
    )
    shapes, dtype = dict(checkpoint(about)), getattr(torch, dtype_name)
    noise = torch.randn(2**24)

    def tensors() -> Iterator[tuple[str, torch.Tensor]]:
        for name, shape in shapes.items():
            size = torch.Size(shape).numel()
            yield name, noise.repeat(-(-size // len(noise)))[:size].view(shape)

    write_tensors(path, {name: (dtype, shape) for name, shape in shapes.items()}, tensors(), metadata={})
    with path.open("rb") as file:
        os.fsync(file.fileno())  # pages that are not on disk yet cannot be dropped from the cache


def measure(what: str, path: Path) -> dict[str, float]:
    done = subprocess.run(
        [sys.executable, __file__, what, str(path)], check=True, capture_output=True, text=True, cwd=ROOT
    )
    return json.loads(done.stdout.splitlines()[-1])


def main(folder: Path) -> None:
    report = Report("single_file", "Loading a single-file checkpoint of Stable Diffusion 1.5's size", "reading")
    for dtype in ("float32", "float16"):
        path = folder / f"{dtype}.safetensors"
        write(path, dtype)
        for cached in (True, False):
            times: dict[str, list[float]] = {"read": [], "load": []}
            loaded: dict[str, float] = {}
            for _ in range(REPEATS):
                for what, seconds in times.items():
                    if not cached:
                        drop_from_cache(path)
                    loaded = measure(what, path)
                    seconds.append(loaded["seconds"])
            reading, loading = min(times["read"]), min(times["load"])
            where = "from the system's cache" if cached else "from the disk"
            note = f"{path.stat().st_size / 1e9:.2f} GB, {dtype}, {where}; aim 1.30; the best of {REPEATS}"
            report.row("read, and load, s", peer=reading, ours=loading, ratio=ratio(loading, reading), note=note)
        peak, weights = loaded["peak_bytes"] / 1e9, loaded["weight_bytes"] / 1e9
        note = f"{dtype} file, float32 in memory; aim 1.30"
        report.row("weights, and peak memory, GB", peer=weights, ours=peak, ratio=ratio(peak, weights), note=note)
        path.unlink()
    report.finish()


if __name__ == "__main__":
    match sys.argv[1:]:
        case [("read" | "load") as what, path]:
            print(json.dumps({"read": read, "load": load}[what](Path(path))))
        case [folder]:
            main(Path(folder))
        case _:
            with tempfile.TemporaryDirectory() as folder:
                main(Path(folder))
