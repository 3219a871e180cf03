"""Packages with entry points, as pip lays them down: a module, and beside it the metadata."""

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from safelight.diffusion import samplers

ROOT = Path(__file__).parents[1]
EXAMPLE = ROOT / "examples" / "plugin"
EFFECT = '''
from pydantic import BaseModel
from safelight.models.adapters.effect import FilelessEffect

class Request(BaseModel):
    strength: float = 0.5

class Glow(FilelessEffect):
    """Bright areas shine."""
    name = "glow"
    request = Request
    def row(self, moment): return None
    def hook(self, network): raise NotImplementedError
'''
SAMPLERS = '''
"""Euler with noise levels of k-diffusion's polyexponential spacing, and its ancestral kin."""
import math

import numpy as np
from diffusers.schedulers.scheduling_euler_ancestral_discrete import EulerAncestralDiscreteScheduler
from diffusers.schedulers.scheduling_euler_discrete import EulerDiscreteScheduler
from safelight.diffusion.samplers import Sampler

class Polyexponential(EulerDiscreteScheduler):
    def set_timesteps(self, num_inference_steps, device=None):
        levels = ((1 - self.alphas_cumprod) / self.alphas_cumprod) ** 0.5
        low, high = math.log(levels[0]), math.log(levels[-1])
        sigmas = np.exp(low + (high - low) * np.linspace(1, 0, num_inference_steps))
        super().set_timesteps(sigmas=[*sigmas, 0.0])

class Ancestral(EulerAncestralDiscreteScheduler):
    pass

POLY = Sampler(name="Euler Poly", diffusers_class=Polyexponential, description="polyexponential", aliases=("e_poly",))
MINE = Sampler(name="Mine a", diffusers_class=Ancestral, description="another ancestral", stochastic=True,
               spacings=("SGM Uniform",))
'''
UPSCALER = '''
from PIL import Image
from safelight.models.vision.enlarger import Enlarger

class Blocks(Enlarger):
    """Squares."""
    size_bytes = 1000
    unloaded = 0
    def enlarge(self, image, scale):
        return image.resize((image.width * 2, image.height * 2), Image.Resampling.NEAREST)
    def unload(self):
        self.unloaded += 1
'''


def install(folder: Path, package: str, code: str, *, version: str = "1.0", **entry_points: dict[str, str]) -> None:
    """Write a package whose module `package` has this code; `effects={"glow": "Glow"}` names objects in it."""
    module = package.replace("-", "_")
    folder.mkdir(exist_ok=True, parents=True)
    (folder / f"{module}.py").write_text(code)
    metadata = folder / f"{module}-{version}.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {package}\nVersion: {version}\n")
    lines = [
        f"[safelight.{kind}]\n" + "".join(f"{name} = {module}:{target}\n" for name, target in points.items())
        for kind, points in entry_points.items()
    ]
    (metadata / "entry_points.txt").write_text("\n".join(lines))


def see(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As if this process had been started with the packages of the folder installed."""
    monkeypatch.syspath_prepend(folder)
    for file in folder.glob("*.py"):
        monkeypatch.delitem(sys.modules, file.stem, raising=False)


@pytest.fixture(autouse=True)
def built_in_samplers() -> Iterator[None]:
    before = dict(samplers.SAMPLERS)
    yield
    samplers.SAMPLERS.clear()
    samplers.SAMPLERS.update(before)


@pytest.fixture
def packages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where a test installs packages."""
    folder = tmp_path / "packages"
    folder.mkdir()
    monkeypatch.syspath_prepend(folder)
    return folder
