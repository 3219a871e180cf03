"""A peer of benchmarks/server.py: LitServe around a diffusers pipeline, batching compatible requests.

    python benchmarks/litserve_peer.py PORT

LitServe collects requests that arrive close together. A pipeline can draw them in one call if they agree in sampler,
steps and guidance: such requests are drawn together, the others one after another.
"""

import importlib
import sys
from collections import defaultdict
from io import BytesIO
from typing import Any

import litserve
import torch
from diffusers import StableDiffusionPipeline
from fastapi import Response

from safelight.diffusion.samplers import SAMPLERS
from safelight.models.checkpoints.catalogue import MINI

# LitServe 0.2.19 looks for the package mcp and then uses fastmcp: with only the former it does not start.
litserve.server._MCP_AVAILABLE = False
Request = dict[str, Any]


class Pictures(litserve.LitAPI):
    def setup(self, device: str) -> None:
        self.pipeline = StableDiffusionPipeline.from_pretrained(MINI, torch_dtype=torch.float32)
        self.pipeline.set_progress_bar_config(disable=True)
        self.own = self.pipeline.scheduler.config

    def decode_request(self, request: Request) -> Request:
        return request

    def batch(self, inputs: list[Request]) -> list[Request]:
        return inputs

    def predict(self, x: list[Request]) -> list[bytes]:
        alike: dict[tuple[Any, ...], list[int]] = defaultdict(list)
        for place, request in enumerate(x):
            alike[request["sampler"], request["steps"], request["guidance"]].append(place)
        files: list[bytes] = [b""] * len(x)
        for (sampler_name, steps, guidance), places in alike.items():
            sampler = SAMPLERS[sampler_name]
            kind = getattr(importlib.import_module("diffusers"), sampler.diffusers_class)
            self.pipeline.scheduler = kind.from_config(self.own, **sampler.options)
            images = self.pipeline(
                [x[place]["prompt"] for place in places],
                num_inference_steps=steps,
                guidance_scale=guidance,
                generator=[torch.Generator("cpu").manual_seed(x[place]["seed"]) for place in places],
            ).images
            for place, image in zip(places, images, strict=True):
                file = BytesIO()
                image.save(file, "PNG")
                files[place] = file.getvalue()
        return files

    def unbatch(self, output: list[bytes]) -> list[bytes]:
        return output

    def encode_response(self, output: bytes) -> Response:
        return Response(output, media_type="image/png")


if __name__ == "__main__":
    api = Pictures(max_batch_size=16, batch_timeout=0.05, api_path="/draw")
    server = litserve.LitServer(api, accelerator="cpu", timeout=False, healthcheck_path="/readyz")
    server.run(port=int(sys.argv[1]), generate_client_file=False, log_level="error")
