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
from safelight.diffusion.samplers import find_sampler
from safelight.engine.backend import Backend
from safelight.engine.local import LocalBackend
from safelight.engine.rehearse import rehearse, require_white
from safelight.errors import InvalidRequest, SafelightError
from safelight.imaging.canvas import fit_to, outpaint_canvas
from safelight.imaging.image_pool import ImagePool, MemoryClaim
from safelight.imaging.open_image import bare_file, open_image, read_bounded, size_in
from safelight.imaging.subject import background_mask
from safelight.models.adapters.control_cache import ControlCache
from safelight.models.adapters.lora_cache import LoraCache
from safelight.models.backends.budget import budget_for
from safelight.models.backends.packed import denoiser_for, packed_bytes
from safelight.models.checkpoints.catalogue import Catalogue
from safelight.models.checkpoints.control_folder import ControlFolder
from safelight.models.checkpoints.families import require_sides, require_successor, text_widths
from safelight.models.checkpoints.part_folder import PartFolder
from safelight.models.checkpoints.sizes import own_area, rounded, same_area
from safelight.models.networks.components import Outline
from safelight.models.networks.memory import Allocation, Lease, Memory
from safelight.models.networks.part_cache import PartCache
from safelight.models.networks.placement import choose_placement
from safelight.models.networks.pool import Found, ModelPool
from safelight.models.networks.size_estimate import budget_bytes, device_bytes
from safelight.models.networks.textual_inversion import load_embedding, pin_embeddings
from safelight.models.registry.registered_models import open_catalogue
from safelight.models.vision.preprocessors import Preprocessors
from safelight.models.vision.upscalers import Upscalers
from safelight.prompts.lora_tags import extract_loras
from safelight.settings import Settings
from safelight.spec import (
    MAX_LORAS,
    ControlRequest,
    Defaults,
    Denoised,
    Draft,
    HighresFix,
    ImageToImage,
    Inpaint,
    PartName,
    PinnedControl,
    PinnedEmbedding,
    PinnedPart,
    PinnedPicturePrompt,
    PinnedRefiner,
    Refined,
    TextToImage,
    Tiles,
    Upscale,
    complete,
)

KEPT_HINTS = 256
PIXEL_BYTES = 4
"""Of a decoded picture, in RGB as in RGBA."""
COPIES = 3
"""Of a picture, that opening and keeping it hold at once."""
MANY_COPIES = 8
"""The same, where it is filled, grown or looked at."""
VISION_THREADS = 2
KEPT_OUTLINES = 4
ImageSource = Image.Image | bytes | str | Path
"""A picture, the bytes of its file, or where its file is."""


@dataclass(slots=True)
class Studio:
    settings: Settings
    models: ModelPool
    backend: Backend
    assets: AssetStore
    loras: LoraCache
    parts: PartCache
    controls: ControlCache
    preprocessors: Preprocessors
    memory: Memory
    upscalers: Upscalers
    image_pool: ImagePool
    """Where pictures are opened, changed and written, which takes memory and little time."""
    vision_pool: ImagePool
    """Where networks look at pictures or enlarge them, which takes time."""
    hints: dict[Hashable, str] = field(default_factory=dict[Hashable, str])
    """Those made lately, by what they were made of: pictures of one request have one hint."""
    making: threading.Lock = field(default_factory=threading.Lock)
    outlines: dict[str, Outline] = field(default_factory=dict[str, Outline])
    """Of checkpoints, by digest."""
    sketching: threading.Lock = field(default_factory=threading.Lock)

    async def complete(self, draft: Draft, *, tenant: str = "") -> Denoised:
        """A spec from a draft: the model found and pinned, its defaults filled in, the canvas grown, a seed chosen.
        `tenant` is in whose turn its pictures are worked on."""
        found = await asyncio.to_thread(self.models.find, draft.model)
        draft = await asyncio.to_thread(self.pin_loras, draft)
        if draft.sampler is not None:
            draft = draft.model_copy(update={"sampler": find_sampler(draft.sampler).name})
        if draft.init is not None and (draft.replace_background or draft.extend is not None):
            turn = await self.turn(draft.init, tenant=tenant, copies=MANY_COPIES)
            grown = self.find_background if draft.replace_background else self.grow_canvas
            draft = await self.image_pool.work(turn, grown, draft, found)
        elif draft.init is not None:
            draft = await asyncio.to_thread(self.fit_canvas, draft, found)
        if draft.controls or draft.picture_prompts:
            turn = await self.turn(*(request.image for request in draft.controls), tenant=tenant, copies=MANY_COPIES)
            async with self.acquire(await asyncio.to_thread(self.needs_of_hints, draft)) as lease:
                draft = await self.vision_pool.work(turn, lease.during(self.pin_controls), draft, found)
        embeddings = await asyncio.to_thread(self.named_embeddings, draft, found)
        parts = await asyncio.to_thread(self.pin_parts, draft)
        refiner = await asyncio.to_thread(self.pin_refiner, draft, found)
        about = found.description
        spec = complete(
            draft,
            about.defaults,
            model_digest=found.digest,
            embeddings=embeddings,
            parts=parts,
            refiner=refiner,
            reads=about.reads,
        )
        require_sides(about, spec.width, spec.height)
        await asyncio.to_thread(self.rehearse, spec, found)
        return spec

    def rehearse(self, spec: Denoised, found: Found) -> None:
        """Raises what drawing would, as far as it shows without the model in memory: whoever asks is told at once."""
        self.needs_of(spec)  # which reads every header
        outline = self.outline(spec.model, found)
        if spec.loras:
            self.loras.require_fit(spec.loras, outline, spec.model_digest)
        for pinned in spec.controls:
            self.controls.require_whole(pinned, outline, spec.model_digest)
        for look in spec.picture_prompts:
            self.controls.require_picture_whole(look, outline, spec.model_digest)
        if spec.vae is not None:
            self.parts.require_fit("vae", spec.vae, outline, spec.model_digest)
        if spec.text_encoder is not None:
            self.parts.require_fit("text_encoder", spec.text_encoder, outline, spec.model_digest)
        refiners = [
            self.outline(pinned.model, self.models.pinned(pinned.model, pinned.digest)) for pinned in refiners_of(spec)
        ]
        embeddings = [load_embedding(self.models.catalogue, pin.name, pin.digest) for pin in spec.embeddings]
        rehearse(spec, outline, embeddings=embeddings, refiner=refiners[0] if refiners else None)
        sizes = {digest: self.size_of(digest) for digest in pictures_of(spec)}
        if isinstance(spec, Inpaint):
            require_white(spec, self.picture(spec.mask), sizes[spec.init])

    def outline(self, name: str, found: Found) -> Outline:
        """Of a checkpoint; those asked for lately are kept."""
        with self.sketching:
            outline = self.outlines.pop(found.digest, None) or Outline(name, found.description)
            self.outlines[found.digest] = outline
            while len(self.outlines) > KEPT_OUTLINES:
                del self.outlines[next(iter(self.outlines))]
            return outline

    def needs_of(self, spec: Denoised) -> list[Allocation]:
        """What it takes of the memory for weights: of every file that it is drawn with.

        Raises:
            SafelightError: one of them is gone, another one by now, or damaged.
        """
        placement = self.models.placement

        def network(name: str, digest: str) -> Allocation:
            return self.models.allocation(name, digest, extra=lambda size: packed_bytes(size.unet, placement))

        networks = [network(spec.model, spec.model_digest)]
        networks += [network(pinned.model, pinned.digest) for pinned in refiners_of(spec)]
        enlarging = [
            allocation
            for name in upscalers_of(spec)
            for allocation in self.upscalers.allocations(self.upscalers.pin(name))
        ]
        active = [self.loras.allocation(pinned, spec.model_digest, placement) for pinned in spec.loras]
        led = self.controls.allocations(spec, placement)
        return [*networks, *enlarging, *active, *led, *self.parts.allocations(spec, placement)]

    def named_embeddings(self, draft: Draft, found: Found) -> tuple[PinnedEmbedding, ...]:
        return pin_embeddings(
            self.models.catalogue,
            (draft.prompt, draft.negative_prompt),
            model=draft.model,
            model_widths=lambda: text_widths(found.description),
        )

    def pin_parts(self, draft: Draft) -> dict[PartName, PinnedPart]:
        """What stands in for parts of the model, with the digests of what these names stand for."""
        wanted: dict[PartName, str | None] = {"vae": draft.vae, "text_encoder": draft.text_encoder}
        return {part: self.parts.folder.pin(part, name) for part, name in wanted.items() if name is not None}

    def pin_refiner(self, draft: Draft, found: Found) -> PinnedRefiner | None:
        """The model that takes over, with its digest.

        Raises:
            UnsupportedOption: it cannot go on with the latents of the first.
        """
        if draft.refiner is None:
            return None
        refiner = self.models.find(draft.refiner)
        names = draft.model, draft.refiner
        require_successor(found.description, refiner.description, names=names, masked=draft.mask is not None)
        said = {} if draft.refiner_switch is None else {"switch": draft.refiner_switch}
        return PinnedRefiner(model=draft.refiner, digest=refiner.digest, **said)

    def pin_loras(self, draft: Draft) -> Draft:
        """Those that the draft names and those in the prompt's tags, each with the digest of its file."""
        prompt, tagged = extract_loras(draft.prompt)
        if extract_loras(draft.negative_prompt)[1]:
            raise InvalidRequest("negative_prompt: <lora:...> belongs in the prompt; it acts on the whole picture")
        wishes = (*draft.loras, *tagged)
        if not wishes:
            return draft
        if len(wishes) > MAX_LORAS:
            raise InvalidRequest(f"at most {MAX_LORAS} LoRAs in one picture, not {len(wishes)}")
        return draft.model_copy(update={"prompt": prompt, "loras": tuple(map(self.loras.pin, wishes))})

    def pin_controls(self, draft: Draft, found: Found) -> Draft:
        """Each with the digest of its network, and with its hint made and stored: the spec does not depend on how."""
        about = found.description
        shelf, name = self.controls, draft.model
        pins = [shelf.pin(request, about, model_name=name) for request in draft.controls]
        hints = [request.hint or self.hint(request, draft, about.defaults) for request in draft.controls]
        looks = [shelf.pin_picture(request, about, model_name=name) for request in draft.picture_prompts]
        for request in draft.picture_prompts:
            self.assets.path_of(request.image)
        return draft.model_copy(
            update={
                "controls": tuple(
                    PinnedControl.model_validate(request.model_dump() | pin | {"hint": hint})
                    for request, pin, hint in zip(draft.controls, pins, hints, strict=True)
                ),
                "picture_prompts": tuple(
                    PinnedPicturePrompt.model_validate(request.model_dump() | pin)
                    for request, pin in zip(draft.picture_prompts, looks, strict=True)
                ),
            }
        )

    def needs_of_hints(self, draft: Draft) -> list[Allocation]:
        """What those that are still to be made take of the memory for weights."""
        return [
            allocation
            for request in draft.controls
            if not request.hint
            for allocation in self.preprocessors.allocations(request.preprocessor)
        ]

    def hint(self, request: ControlRequest, draft: Draft, defaults: Defaults) -> str:
        """What the network will be shown, drawn at the size of the picture; returns its digest."""
        image = self.picture(request.image)
        if request.preprocessor == "none":
            return request.image
        size = draft.width or defaults.width, draft.height or defaults.height
        if draft.init is not None and draft.only_masked:
            size = self.size_of(draft.init)  # the part that is drawn is cut out of it later
        size = within(*size, self.settings.max_output_pixels)
        key = request.image, request.preprocessor, request.thresholds, request.fit, size
        with self.making:
            if key not in self.hints:
                shown = fit_to(image, *size, request.fit)
                made = self.preprocessors.make_hint(request.preprocessor, shown, thresholds=request.thresholds)
                while len(self.hints) >= KEPT_HINTS:
                    del self.hints[next(iter(self.hints))]
                self.hints[key] = self.assets.put_image(made)
            return self.hints[key]

    def grow_canvas(self, draft: Draft, found: Found) -> Draft:
        """Outpainting: a masked draft of the grown picture, which keeps its pixels."""
        assert draft.init is not None
        assert draft.extend is not None
        step = found.description.side_step
        canvas, mask = outpaint_canvas(self.picture(draft.init), draft.extend)
        grown = {
            "init": self.assets.put_image(canvas),
            "mask": self.assets.put_image(mask),
            "extend": None,
            "width": draft.width or rounded(canvas.width, step),
            "height": draft.height or rounded(canvas.height, step),
            "strength": draft.strength or 1.0,
        }
        return Draft.model_validate(draft.model_dump() | grown)

    def fit_canvas(self, draft: Draft, found: Found) -> Draft:
        """Where a start picture decides the size, its proportions are kept."""
        assert draft.init is not None
        (across, down), step = self.size_of(draft.init), found.description.side_step
        if draft.scale is not None:
            width, height = rounded(across * draft.scale, step), rounded(down * draft.scale, step)
            return Draft.model_validate(draft.model_dump() | {"width": width, "height": height, "scale": None})
        if draft.only_masked or (draft.width and draft.height):
            return draft
        width, height = same_area(across / down, own_area(found.description), step)
        if draft.width:
            width, height = draft.width, rounded(draft.width * down / across, step)
        elif draft.height:
            width, height = rounded(draft.height * across / down, step), draft.height
        return Draft.model_validate(draft.model_dump() | {"width": width, "height": height})

    async def upscaled(self, spec: Upscale, image: Image.Image, *, tenant: str = "") -> Image.Image:
        """The picture made larger; what enlarges it counts among the weights in memory."""
        pinned = await asyncio.to_thread(self.upscalers.require, spec.method, spec.method_digest)
        turn = MemoryClaim(tenant=tenant, size_bytes=round(decoded_bytes(*image.size) * spec.scale**2), accepted=True)
        async with self.acquire(self.upscalers.allocations(pinned)) as lease:
            return await self.vision_pool.work(turn, lease.during(self.upscalers.enlarge), image, spec.scale, pinned)

    async def make_hint(
        self, name: str, image: Image.Image, *, thresholds: tuple[float, float] | None = None, tenant: str = ""
    ) -> Image.Image:
        """As a preprocessor makes it; a network that it runs counts among the weights in memory."""
        turn = MemoryClaim(tenant=tenant, size_bytes=MANY_COPIES * decoded_bytes(*image.size))
        async with self.acquire(await asyncio.to_thread(self.preprocessors.allocations, name)) as lease:
            make = lease.during(self.preprocessors.make_hint)
            return await self.vision_pool.work(turn, make, name, image, thresholds=thresholds)

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

    def upscale_spec(self, init: str, scale: float, method: str) -> Upscale:
        """Complete, with the network pinned.

        Raises:
            UnsupportedOption: nothing enlarges pictures by that name here.
            UnsafeFile, CorruptModel: what has that name is no such network.
        """
        pinned = self.upscalers.pin(method)
        self.upscalers.require_whole(pinned)
        return Upscale(init=init, scale=scale, method=method, method_digest=pinned.digest)

    def find_background(self, draft: Draft, found: Found) -> Draft:
        """A masked draft, in which all but the subject is drawn anew at the model's own size and laid behind it."""
        assert draft.init is not None
        image = self.open(self.assets.read(draft.init), mode="RGBA")
        about = found.description
        width, height = same_area(image.width / image.height, own_area(about), about.side_step)
        masked = {
            # Opened in RGB, a picture is laid over white: what is half transparent would bring some of it along.
            "init": self.assets.put_image(image.convert("RGB")),
            "mask": draft.mask or self.assets.put_image(background_mask(image)),
            "replace_background": False,
            "soft_mask": True,
            "only_masked": True,
            "strength": draft.strength or 1.0,
            "width": draft.width or width,
            "height": draft.height or height,
        }
        return Draft.model_validate(draft.model_dump() | masked)

    async def turn(
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
        return await self.image_pool.work(await self.turn(data, tenant=tenant), self.keep, data)

    def keep(self, source: ImageSource, *, mode: str = "RGB") -> str:
        """Store a picture a job starts from; returns the digest that a draft names it by.

        The bytes of a PNG are kept, less all but the picture (`imaging/bare_png.py`). All else is encoded anew.
        """
        if isinstance(source, Image.Image):
            return self.assets.put_image(whole(source) if mode == "RGB" else source.convert(mode))
        most = self.settings
        data = source if isinstance(source, bytes) else read_bounded(Path(source), most.max_file_bytes)
        as_it_is = bare_file(data, max_pixels=most.max_pixels, max_file_bytes=most.max_file_bytes)
        if as_it_is is not None:
            return self.assets.put(as_it_is, ".png").id
        return self.assets.put_image(whole(self.open(data, mode="RGBA")))

    def open(self, source: bytes | Path, *, mode: Literal["RGB", "RGBA"] = "RGB") -> Image.Image:
        limits = self.settings
        return open_image(source, max_pixels=limits.max_pixels, max_file_bytes=limits.max_file_bytes, mode=mode)

    def picture(self, digest: str) -> Image.Image:
        return self.open(self.assets.read(digest))

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
        turn = await self.turn(*named, tenant=tenant, accepted=True)
        return await self.image_pool.work(turn, lambda: {digest: self.picture(digest) for digest in named})

    def see(self, catalogue: Catalogue) -> None:
        """Look for models of every kind there from now on."""
        self.models.catalogue = self.loras.catalogue = self.upscalers.catalogue = catalogue
        self.parts.folder = PartFolder(catalogue)
        self.controls.folder = self.preprocessors.folder = ControlFolder(catalogue)

    def close(self) -> None:
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
    placement = choose_placement(settings.device, settings.dtype)
    memory = Memory(budget_bytes(placement.device, settings.model_memory_gb), max_bytes=device_bytes(placement.device))
    models = ModelPool(catalogue=open_catalogue(settings), placement=placement)
    loras = LoraCache(models.catalogue)
    controls = ControlCache(ControlFolder(models.catalogue))
    parts = PartCache(PartFolder(models.catalogue))
    upscalers = Upscalers(models.catalogue, placement)

    async def acquire(spec: Denoised) -> Lease:
        return await memory.acquire(await asyncio.to_thread(studio.needs_of, spec))

    backend = LocalBackend(
        lambda spec: parts.with_parts(models.get(spec.model, spec.model_digest), spec),
        loras_for=lambda spec, model: loras.load(spec.loras, model),
        led_by=controls.lead,
        acquire=acquire,
        refiner_for=lambda spec: next((models.get(pinned.model, pinned.digest) for pinned in refiners_of(spec)), None),
        embedding_for=lambda pinned: load_embedding(models.catalogue, pinned.name, pinned.digest),
        denoiser_for=denoiser_for,
        enlarge=lambda image, scale, name: upscalers.enlarge(image, scale, upscalers.pin(name)),
        budget_megapixels=lambda model: budget_for(
            model, chosen=settings.budget_megapixels, measured=settings.cache / "budgets.json"
        ),
        preview_every=settings.preview_every,
        cache=settings.cache / "schedules",
    )
    preprocessors = Preprocessors(controls.folder, lambda: models.placement)
    picture_bytes = round(settings.picture_memory_gb * 2**30)
    studio = Studio(
        settings,
        models,
        backend,
        AssetStore(settings.blobs),
        loras,
        parts,
        controls,
        preprocessors,
        memory,
        upscalers,
        ImagePool("pictures", threads=picture_threads(), budget_bytes=picture_bytes),
        ImagePool("vision", threads=VISION_THREADS, budget_bytes=picture_bytes),
    )
    return studio


def picture_threads() -> int:
    """Two at least, so that one key cannot have all of them; more than a few would take time from the engine."""
    return min(4, max(2, os.cpu_count() or 1))


def decoded_bytes(width: int, height: int) -> int:
    return PIXEL_BYTES * width * height


def pictures_of(spec: Denoised | Upscale) -> list[str]:
    named: list[str] = []
    match spec:
        case TextToImage():
            pass
        case Inpaint():
            named += [spec.init, spec.mask]
        case _:
            named.append(spec.init)
    if not isinstance(spec, Upscale):
        named += [control.hint for control in spec.controls]
        named += [prompt.image for prompt in spec.picture_prompts]
    return list(dict.fromkeys(named))


def refiners_of(spec: Denoised) -> list[PinnedRefiner]:
    """The one that takes over, if any does."""
    return [spec.refiner] if isinstance(spec, Refined) and spec.refiner else []


def upscalers_of(spec: Denoised) -> list[str]:
    """What enlarges pictures on the way to this one, beside the latents themselves."""
    match spec:
        case TextToImage(highres=HighresFix(upscaler=name)) if not name.startswith("latent"):
            return [name]
        case ImageToImage(tiles=Tiles(upscaler=name)):
            return [name]
        case _:
            return []


def whole(image: Image.Image) -> Image.Image:
    """With its transparency, if it has any; without, in RGB."""
    if not image.has_transparency_data:
        return image.convert("RGB")
    clear = image if image.mode == "RGBA" else image.convert("RGBA")
    transparent = clear.getchannel("A").getextrema()[0] != 255
    return clear if transparent else image.convert("RGB")


def within(width: int, height: int, pixels: int) -> tuple[int, int]:
    """The same proportions in at most so many pixels: callers name sizes, and edges take their time."""
    scale = min(1.0, (pixels / (width * height)) ** 0.5)
    return max(1, int(width * scale)), max(1, int(height * scale))
