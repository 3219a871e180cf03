"""Loads the parts of a job into memory: the interface between the engine and the files of its machine."""

import asyncio
import contextvars
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from typing import ParamSpec, Protocol, TypeVar

from PIL import Image

from safelight.errors import UnsupportedOption
from safelight.models.adapters.effect import Active, Effect
from safelight.models.backends.packed import packed_bytes
from safelight.models.networks.load import Model
from safelight.models.networks.memory import Allocation, Lease, Memory
from safelight.models.networks.part_cache import PartCache
from safelight.models.networks.pool import ModelPool
from safelight.models.networks.textual_inversion import Embedding, load_embedding, require_fit
from safelight.models.vision.upscalers import Upscalers
from safelight.spec import Denoised, HighresFix, ImageToImage, Refined, TextToImage, Tiles
from safelight.spec.parts import PinnedRefiner

P = ParamSpec("P")
T = TypeVar("T")
LOADERS = 32
"""Number of jobs that may load at once, or wait for another's loading, in their own threads: requests do not wait."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Loaded:
    """The parts of one job, in memory."""

    model: Model
    refiner: Model | None = None
    embeddings: tuple[Embedding, ...] = ()
    effects: Mapping[str, Active] = field(default_factory=dict[str, Active])
    lease: Lease | None = None
    """Reserves the memory; ends with the job."""


class Loader(Protocol):
    async def load(self, spec: Denoised, pictures: Mapping[str, Image.Image]) -> Loaded:
        """Wait until there is memory for the parts of the spec, and load them.

        Raises:
            SafelightError: a file is missing, has changed, is damaged, does not fit, or is larger than the memory.
        """
        ...

    def enlarge(self, image: Image.Image, scale: float, upscaler: str) -> Image.Image:
        """The picture `scale` times as large, as an intermediate result."""
        ...


class LocalLoader:
    """Loads from this machine's files, each file once for all jobs."""

    def __init__(
        self,
        models: ModelPool,
        parts: PartCache,
        upscalers: Upscalers,
        effects: Mapping[str, Effect],
        memory: Memory,
    ) -> None:
        self.models = models
        self.parts = parts
        self.upscalers = upscalers
        self.effects = effects
        self.memory = memory
        self.threads = ThreadPoolExecutor(LOADERS, thread_name_prefix="loading")

    async def load(self, spec: Denoised, pictures: Mapping[str, Image.Image]) -> Loaded:
        """As `Loader.load`."""
        lease = await self.memory.acquire(await asyncio.to_thread(self.allocations, spec))
        try:
            return await self.load_with(lease, spec, pictures)
        except BaseException as error:
            # A caller that disconnects leaves its loading thread running; the lease lasts until that is done.
            lease.end(forget=isinstance(error, Exception))
            raise

    async def load_with(self, lease: Lease, spec: Denoised, pictures: Mapping[str, Image.Image]) -> Loaded:
        async def load(part: Callable[P, T], *args: P.args, **named: P.kwargs) -> T:
            call = partial(contextvars.copy_context().run, lease.during(part), *args, **named)
            return await asyncio.get_running_loop().run_in_executor(self.threads, call)

        model = await load(self.model, spec)
        refiner = await load(self.refiner, spec)
        embeddings = await load(self.embeddings, spec, model) if spec.embeddings else ()
        effects = {
            name: await load(effect.load, spec, model, pictures)
            for name, effect in self.effects.items()
            if effect.used(spec)
        }
        return Loaded(model=model, refiner=refiner, embeddings=embeddings, effects=effects, lease=lease)

    def enlarge(self, image: Image.Image, scale: float, upscaler: str) -> Image.Image:
        return self.upscalers.enlarge(image, scale, self.upscalers.pin(upscaler))

    def allocations(self, spec: Denoised) -> list[Allocation]:
        """The memory for weights that drawing the spec needs, file by file.

        Raises:
            SafelightError: a file is missing, has changed or is damaged, or an effect is unknown.
        """
        if unknown := spec.effects.keys() - self.effects.keys():
            raise UnsupportedOption(f"effects.{min(unknown)}", "no plugin here adds this effect")
        placement = self.models.placement

        def network(name: str, digest: str) -> Allocation:
            return self.models.allocation(name, digest, extra=lambda size: packed_bytes(size.unet, placement))

        found = [network(spec.model, spec.model_digest)]
        found += [network(refiner.model, refiner.digest) for refiner in refiners_of(spec)]
        for name in upscalers_of(spec):
            found += self.upscalers.allocations(self.upscalers.pin(name))
        for effect in self.effects.values():
            if effect.used(spec):
                found += effect.allocations(spec, placement)
        return [*found, *self.parts.allocations(spec, placement)]

    def model(self, spec: Denoised) -> Model:
        """The model, with the autoencoder and text encoders that the spec replaces."""
        return self.parts.with_parts(self.models.get(spec.model, spec.model_digest), spec)

    def refiner(self, spec: Denoised) -> Model | None:
        return next((self.models.get(refiner.model, refiner.digest) for refiner in refiners_of(spec)), None)

    def embeddings(self, spec: Denoised, model: Model) -> tuple[Embedding, ...]:
        found = tuple(load_embedding(self.models.catalogue, pin.name, pin.digest) for pin in spec.embeddings)
        widths = [encoder.width for encoder in model.text_encoders]
        for embedding in found:
            require_fit(embedding.name, embedding.widths, model=model.name, model_widths=widths)
        return found


def refiners_of(spec: Denoised) -> list[PinnedRefiner]:
    """The model that draws the last steps, if there is one."""
    return [spec.refiner] if isinstance(spec, Refined) and spec.refiner else []


def upscalers_of(spec: Denoised) -> list[str]:
    """Upscalers of intermediate pictures; latents are resampled without one."""
    match spec:
        case TextToImage(highres=HighresFix(upscaler=name)) if not name.startswith("latent"):
            return [name]
        case ImageToImage(tiles=Tiles(upscaler=name)):
            return [name]
        case _:
            return []
