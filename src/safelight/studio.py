"""Opens every part from settings; the one place where parts meet."""

import asyncio
import os
import threading
from collections.abc import AsyncGenerator, Hashable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Literal, Self

from PIL import Image

from safelight.assets.store import AssetStore
from safelight.diffusion.samplers import add_samplers
from safelight.engine.backend import Backend
from safelight.engine.loader import LocalLoader
from safelight.engine.local import LocalBackend
from safelight.engine.upscale_backend import PIXEL_BYTES, UpscaleBackend
from safelight.errors import SafelightError
from safelight.events import Event
from safelight.imaging.image_pool import ImagePool, MemoryClaim
from safelight.imaging.open_image import bare_file, open_image, read_bounded, size_in
from safelight.models.adapters.effect import Effect
from safelight.models.adapters.effects import open_effects
from safelight.models.backends.budget import budget_for
from safelight.models.backends.packed import denoiser_for
from safelight.models.checkpoints.catalogue import Catalogue
from safelight.models.checkpoints.control_folder import ControlFolder
from safelight.models.checkpoints.part_folder import PartFolder
from safelight.models.networks.memory import Allocation, Lease, Memory
from safelight.models.networks.part_cache import PartCache
from safelight.models.networks.placement import Placement, choose_placement
from safelight.models.networks.pool import ModelPool
from safelight.models.networks.size_estimate import budget_bytes, device_bytes
from safelight.models.registry.registered_models import open_catalogue
from safelight.models.vision.enlarger import Enlarger, open_enlargers
from safelight.models.vision.preprocessors import Preprocessors
from safelight.models.vision.upscalers import Upscalers
from safelight.plugins import Plugins
from safelight.settings import Settings
from safelight.spec import Denoised, Spec, Upscale
from safelight.spec.marks import Mark, marked
from safelight.trust.ingredients import Kept
from safelight.trust.ledger import Ledger, open_ledger
from safelight.trust.origins import UNMARKED, Origins, open_origins
from safelight.trust.policy import Policy
from safelight.trust.signer import Signer, open_signer
from safelight.trust.watermark.keys import Keyring

COPIES = 3
"""Of a picture, that opening and keeping it hold at once."""
MANY_COPIES = 8
"""The same, where it is filled, grown or looked at."""
VISION_THREADS = 2
ImageSource = Image.Image | bytes | str | Path
"""A picture, the bytes of its file, or where its file is."""


@dataclass(slots=True)
class Studio:
    settings: Settings
    models: ModelPool
    backend: Backend
    assets: AssetStore
    loader: LocalLoader
    preprocessors: Preprocessors
    memory: Memory
    upscalers: Upscalers
    image_pool: ImagePool
    """Where pictures are opened, changed and written, which takes memory and little time."""
    vision_pool: ImagePool
    """Where networks look at pictures or enlarge them, which takes time."""
    plugins: Plugins
    origins: Origins
    """What pictures that were sent said of themselves."""
    signer: Signer | None
    """Signs finished pictures; None where the policy signs nothing."""
    keyring: Keyring | None
    """Keys of the watermark; None where the policy puts none."""
    ledger: Ledger | None
    """What was drawn; None where the operator keeps none."""
    hints: dict[Hashable, str] = field(default_factory=dict[Hashable, str])
    """Digests of the latest hints, by what they were made of."""
    making_hints: threading.Lock = field(default_factory=threading.Lock)
    policy: Policy = field(default_factory=Policy)
    """Which marks finished pictures carry."""
    upscaling: UpscaleBackend = field(init=False)

    def __post_init__(self) -> None:
        self.upscaling = UpscaleBackend(self.upscalers, self.vision_pool, self.acquire)

    def submit(
        self, spec: Spec, pictures: Mapping[str, Image.Image], *, tenant: str = "", priority: int = 0
    ) -> AsyncGenerator[Event, None]:
        """Hand the spec to the backend of its kind."""
        if isinstance(spec, Upscale):
            return self.upscaling.submit(spec, pictures, tenant=tenant, priority=priority)
        return self.backend.submit(spec, pictures, tenant=tenant, priority=priority)

    async def make_hint(
        self, name: str, image: Image.Image, *, thresholds: tuple[float, float] | None = None, tenant: str = ""
    ) -> Image.Image:
        """As a preprocessor makes it; a network that it runs counts among the weights in memory."""
        claim = MemoryClaim(tenant=tenant, size_bytes=MANY_COPIES * decoded_bytes(*image.size))
        async with self.acquire(await asyncio.to_thread(self.preprocessors.allocations, name)) as lease:
            make = lease.during(self.preprocessors.make_hint)
            return await self.vision_pool.work(claim, make, name, image, thresholds=thresholds)

    @asynccontextmanager
    async def acquire(self, allocations: Sequence[Allocation]) -> AsyncGenerator[Lease]:
        """Inside of the block, and `during` work that began in it, what is needed may be in memory."""
        if not allocations:  # or it would stand in line with those who wait for room
            yield Lease(self.memory, ())
            return
        lease = await self.memory.acquire(allocations)
        try:
            yield lease
        except SafelightError:
            lease.end(forget=True)
            raise
        finally:
            lease.end()

    async def claim(
        self, *pictures: bytes | str | Image.Image, tenant: str = "", copies: int = COPIES, accepted: bool = False
    ) -> MemoryClaim:
        """For work on these: files, digests of stored ones, or pictures as they are. Headers say how much memory it
        will take, before anything is decoded."""
        files = sum(len(picture) for picture in pictures if isinstance(picture, bytes))
        measuring = MemoryClaim(tenant=tenant, size_bytes=files, accepted=accepted)
        sizes = await self.image_pool.work(measuring, lambda: [self.size_of(picture) for picture in pictures])
        decoded = copies * sum(decoded_bytes(*size) for size in sizes)
        return MemoryClaim(tenant=tenant, size_bytes=files + decoded, accepted=accepted)

    async def take(self, data: bytes, *, tenant: str) -> str:
        """Store a picture that a caller sent, in its turn."""
        return await self.image_pool.work(await self.claim(data, tenant=tenant), self.keep, data)

    def keep(self, source: ImageSource, *, mode: str = "RGB", file: bytes | None = None) -> str:
        """Store a picture a job starts from; returns the digest that a draft names it by.

        The bytes of a PNG are kept, less all but the picture (`imaging/bare_png.py`). All else is encoded anew. What
        the file says of itself is kept beside it.

        Args:
            file: the file that a picture in memory was made of.
        """
        most = self.settings
        if isinstance(source, Image.Image):
            digest = self.assets.put_image(whole(source) if mode == "RGB" else source.convert(mode))
        else:
            file = source if isinstance(source, bytes) else read_bounded(Path(source), most.max_file_bytes)
            as_it_is = bare_file(file, max_pixels=most.max_pixels, max_file_bytes=most.max_file_bytes)
            if as_it_is is None:
                digest = self.assets.put_image(whole(self.open(file, mode="RGBA")))
            else:
                digest = self.assets.put(as_it_is, ".png").id
        if file is not None:
            self.origins.note(file, digest)
        return digest

    def keep_made(self, image: Image.Image, *, of: str) -> str:
        """Store a picture that was made of a stored one, with what is known of that one; returns its digest."""
        digest = self.assets.put_image(image)
        self.origins.carry(of, self.assets.read(of), digest)
        return digest

    def origin(self, digest: str) -> Kept:
        """What a stored picture says of itself, or said when it was sent."""
        known = self.origins.of(digest)
        return self.origins.read(self.assets.read(digest)) if known == UNMARKED else known

    def open(self, source: bytes | Path, *, mode: Literal["RGB", "RGBA"] = "RGB", trusted: bool = False) -> Image.Image:
        most = self.settings
        return open_image(
            source, max_pixels=most.max_pixels, max_file_bytes=most.max_file_bytes, mode=mode, trusted=trusted
        )

    def picture(self, digest: str, *, mode: Literal["RGB", "RGBA"] = "RGB") -> Image.Image:
        """A stored picture: drawn here, or encoded anew when it was sent."""
        return self.open(self.assets.read(digest), mode=mode, trusted=True)

    def finished(self, asset_id: str) -> Image.Image:
        """A finished picture as it leaves, with its watermark, and its transparency if it has any."""
        return whole(self.picture(asset_id, mode="RGBA"))

    def size_of(self, picture: bytes | str | Image.Image) -> tuple[int, int]:
        """Width and height of a file, or of a stored picture by its digest; nothing is decoded."""
        if isinstance(picture, Image.Image):
            return picture.size
        source = picture if isinstance(picture, bytes) else self.assets.path_of(picture)
        return size_in(source, max_pixels=self.settings.max_pixels, max_file_bytes=self.settings.max_file_bytes)

    async def pictures(self, spec: Denoised | Upscale, *, tenant: str = "") -> Mapping[str, Image.Image]:
        """What an accepted spec starts from, by digest."""
        named = pictures_of(spec)
        if not named:
            return {}
        claim = await self.claim(*named, tenant=tenant, accepted=True)
        return await self.image_pool.work(claim, lambda: {digest: self.picture(digest) for digest in named})

    def see(self, catalogue: Catalogue) -> None:
        """Look for models of every kind there from now on."""
        self.models.catalogue = self.upscalers.catalogue = catalogue
        self.parts.folder, self.preprocessors.folder = PartFolder(catalogue), ControlFolder(catalogue)
        for effect in self.effects.values():
            effect.see(catalogue)

    @property
    def parts(self) -> PartCache:
        return self.loader.parts

    @property
    def effects(self) -> Mapping[str, Effect]:
        return self.loader.effects

    def close(self) -> None:
        if self.ledger:
            self.ledger.close()
        self.image_pool.close()
        self.vision_pool.close()
        if isinstance(self.backend, LocalBackend):
            self.backend.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()


def open_studio(settings: Settings | None = None) -> Studio:
    """Open the engine, the models and the picture store; close with `with` or `close()`."""
    settings = settings or Settings.from_environment()
    policy = Policy.of(settings)
    placement = choose_placement(settings.device, settings.dtype)
    memory = Memory(budget_bytes(placement.device, settings.model_memory_gb), max_bytes=device_bytes(placement.device))
    models = ModelPool(catalogue=open_catalogue(settings), placement=placement)
    parts = PartCache(PartFolder(models.catalogue))
    plugins, effects, enlargers = load_plugins(settings, models.catalogue, placement)
    plugins.log_failures()
    upscalers = Upscalers(models.catalogue, placement, enlargers)
    loader = LocalLoader(models, parts, upscalers, effects, memory)
    backend = LocalBackend(
        loader,
        denoiser_for=denoiser_for,
        budget_megapixels=lambda model: budget_for(
            model, chosen=settings.budget_megapixels, measured=settings.cache / "budgets.json"
        ),
        preview_every=settings.preview_every,
        cache=settings.cache / "schedules",
    )
    preprocessors = Preprocessors(ControlFolder(models.catalogue), lambda: models.placement)
    picture_bytes = round(settings.picture_memory_gb * 2**30)
    return Studio(
        settings,
        models,
        backend,
        AssetStore(settings.blobs),
        loader,
        preprocessors,
        memory,
        upscalers,
        ImagePool("pictures", threads=picture_threads(), budget_bytes=picture_bytes),
        ImagePool("vision", threads=VISION_THREADS, budget_bytes=picture_bytes),
        plugins,
        open_origins(settings),
        open_signer(settings),
        Keyring.open(settings.watermark_keys) if policy.watermark else None,
        open_ledger(settings),
        policy=policy,
    )


def load_plugins(
    settings: Settings, catalogue: Catalogue, placement: Placement
) -> tuple[Plugins, dict[str, Effect], dict[str, Enlarger]]:
    """The plugins that are installed, what they make of each, and all effects and the plugins' upscalers by name."""
    plugins = Plugins(on=settings.plugins)
    add_samplers(plugins)
    return plugins, open_effects(catalogue, plugins), open_enlargers(plugins, placement)


def picture_threads() -> int:
    """Two at least, so that one key cannot have all of them; more than a few would take time from the engine."""
    return min(4, max(2, os.cpu_count() or 1))


def decoded_bytes(width: int, height: int) -> int:
    return PIXEL_BYTES * width * height


def pictures_of(spec: Denoised | Upscale) -> list[str]:
    """The digests of the pictures that are needed to draw the spec."""
    return list(dict.fromkeys(marked(spec, Mark.PICTURE)))


def whole(image: Image.Image) -> Image.Image:
    """With its transparency, if it has any; without, in RGB."""
    if not image.has_transparency_data:
        return image.convert("RGB")
    clear = image if image.mode == "RGBA" else image.convert("RGBA")
    transparent = clear.getchannel("A").getextrema()[0] != 255
    return clear if transparent else image.convert("RGB")
