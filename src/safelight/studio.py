"""Opens every part from settings; the one place where parts meet."""

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Literal, Self

from PIL import Image

from safelight.acceleration.budget import budget_for
from safelight.acceleration.packed import denoiser_for, packed_bytes
from safelight.assets.open_image import open_image
from safelight.assets.store import AssetStore
from safelight.diffusion.canvas import outpaint_canvas
from safelight.diffusion.samplers import find_sampler
from safelight.diffusion.subject import background_mask
from safelight.engine.backend import Backend
from safelight.engine.local import LocalBackend
from safelight.errors import InvalidRequest
from safelight.models.catalogue import Catalogue
from safelight.models.families import text_widths
from safelight.models.lora_folder import LoraFolder
from safelight.models.lora_shelf import LoraShelf
from safelight.models.lora_tags import take_loras
from safelight.models.memory import Lease, Memory, Need
from safelight.models.placement import choose_placement
from safelight.models.pool import Found, ModelPool
from safelight.models.room import budget_bytes, device_bytes
from safelight.models.textual_inversion import load_embedding, pin_embeddings
from safelight.models.upscalers import Upscalers
from safelight.settings import Settings
from safelight.spec import (
    MOST_LORAS,
    Denoised,
    Draft,
    HighresFix,
    ImageToImage,
    Inpaint,
    PinnedEmbedding,
    TextToImage,
    Tiles,
    Upscale,
    complete,
)

ImageSource = Image.Image | bytes | str | Path
"""A picture, the bytes of its file, or where its file is."""


@dataclass(slots=True)
class Studio:
    settings: Settings
    models: ModelPool
    backend: Backend
    assets: AssetStore
    loras: LoraShelf
    memory: Memory
    upscalers: Upscalers

    async def complete(self, draft: Draft) -> Denoised:
        """A spec from a draft: the model found and pinned, its defaults filled in, the canvas grown, a seed chosen."""
        found = await asyncio.to_thread(self.models.find, draft.model)
        draft = await asyncio.to_thread(self.pin_loras, draft)
        if draft.sampler is not None:
            draft = draft.model_copy(update={"sampler": find_sampler(draft.sampler).name})
        if draft.replace_background:
            draft = await asyncio.to_thread(self.find_background, draft, found)
        elif draft.init is not None:
            draft = await asyncio.to_thread(self.fit_canvas, draft, found)
        embeddings = await asyncio.to_thread(self.named_embeddings, draft, found)
        about = found.description
        return complete(draft, about.defaults, model_digest=found.digest, embeddings=embeddings, reads=about.reads)

    def named_embeddings(self, draft: Draft, found: Found) -> tuple[PinnedEmbedding, ...]:
        return pin_embeddings(
            self.settings.embeddings,
            (draft.prompt, draft.negative_prompt),
            model=draft.model,
            model_widths=lambda: text_widths(found.description),
        )

    def pin_loras(self, draft: Draft) -> Draft:
        """Those that the draft names and those in the prompt's tags, each with the digest of its file."""
        prompt, tagged = take_loras(draft.prompt)
        if take_loras(draft.negative_prompt)[1]:
            raise InvalidRequest("negative_prompt: <lora:...> belongs in the prompt; it acts on the whole picture")
        wishes = (*draft.loras, *tagged)
        if not wishes:
            return draft
        if len(wishes) > MOST_LORAS:
            raise InvalidRequest(f"at most {MOST_LORAS} LoRAs in one picture, not {len(wishes)}")
        return draft.model_copy(update={"prompt": prompt, "loras": tuple(map(self.loras.folder.pin, wishes))})

    def fit_canvas(self, draft: Draft, found: Found) -> Draft:
        """Where a start picture decides the size: outpainting keeps its pixels, the rest keep its proportions."""
        assert draft.init is not None
        image = self.picture(draft.init)
        if draft.extend is not None:
            canvas, mask = outpaint_canvas(image, draft.extend)
            grown = {
                "init": self.assets.put_image(canvas),
                "mask": self.assets.put_image(mask),
                "extend": None,
                "width": draft.width or rounded(canvas.width),
                "height": draft.height or rounded(canvas.height),
                "strength": draft.strength or 1.0,
            }
            return Draft.model_validate(draft.model_dump() | grown)
        if draft.scale is not None:
            width, height = rounded(image.width * draft.scale), rounded(image.height * draft.scale)
            return Draft.model_validate(draft.model_dump() | {"width": width, "height": height, "scale": None})
        if draft.only_masked or (draft.width and draft.height):
            return draft
        native = found.description.defaults
        width, height = same_area(image.width / image.height, native.width * native.height)
        if draft.width:
            width, height = draft.width, rounded(draft.width * image.height / image.width)
        elif draft.height:
            width, height = rounded(draft.height * image.width / image.height), draft.height
        return Draft.model_validate(draft.model_dump() | {"width": width, "height": height})

    async def upscaled(self, spec: Upscale, image: Image.Image) -> Image.Image:
        """The picture made larger; what enlarges it counts among the weights in memory."""
        pinned = await asyncio.to_thread(self.upscalers.require, spec.method, spec.method_digest)
        lease = await self.memory.take(self.upscalers.needs(pinned))
        try:
            return await asyncio.to_thread(self.upscalers.enlarge, image, spec.scale, pinned)
        finally:
            lease.end()

    def upscale_spec(self, init: str, scale: float, method: str) -> Upscale:
        """Complete, with the network pinned.

        Raises:
            UnsupportedOption: nothing enlarges pictures by that name here.
        """
        return Upscale(init=init, scale=scale, method=method, method_digest=self.upscalers.pin(method).digest)

    def find_background(self, draft: Draft, found: Found) -> Draft:
        """A masked draft, in which all but the subject is drawn anew at the model's own size and laid behind it."""
        assert draft.init is not None
        image = self.open(self.assets.read(draft.init), mode="RGBA")
        native = found.description.defaults
        width, height = same_area(image.width / image.height, native.width * native.height)
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

    def keep(self, source: ImageSource, *, mode: str = "RGB") -> str:
        """Store a picture a job starts from; returns the digest that a draft names it by."""
        if isinstance(source, Image.Image):
            return self.assets.put_image(whole(source) if mode == "RGB" else source.convert(mode))
        data = source if isinstance(source, bytes) else Path(source)
        return self.assets.put_image(whole(self.open(data, mode="RGBA")))

    def open(self, source: bytes | Path, *, mode: Literal["RGB", "RGBA"] = "RGB") -> Image.Image:
        limits = self.settings
        return open_image(source, max_pixels=limits.max_pixels, max_file_bytes=limits.max_file_bytes, mode=mode)

    def picture(self, digest: str) -> Image.Image:
        return self.open(self.assets.read(digest))

    def pictures(self, spec: Denoised | Upscale) -> Mapping[str, Image.Image]:
        """What the spec starts from, by digest."""
        match spec:
            case TextToImage():
                return {}
            case Inpaint():
                return {spec.init: self.picture(spec.init), spec.mask: self.picture(spec.mask)}
            case _:
                return {spec.init: self.picture(spec.init)}

    def close(self) -> None:
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
    sums = settings.cache / "sums.json"
    memory = Memory(budget_bytes(placement.device, settings.model_memory_gb), most_bytes=device_bytes(placement.device))
    models = ModelPool(catalogue=Catalogue(settings.models), placement=placement, sums=sums)
    loras = LoraShelf(LoraFolder(settings.loras, sums=sums))

    upscalers = Upscalers(settings.models / "upscalers", placement, sums)

    def needs_of(spec: Denoised) -> list[Need]:
        model = models.need(spec.model, extra=lambda size: packed_bytes(size.unet, placement))
        enlarging = [need for name in upscalers_of(spec) for need in upscalers.needs(upscalers.pin(name))]
        return [model, *enlarging, *(loras.need(use, spec.model_digest, placement) for use in spec.loras)]

    async def room_for(spec: Denoised) -> Lease:
        return await memory.take(await asyncio.to_thread(needs_of, spec))

    backend = LocalBackend(
        lambda spec: models.get(spec.model, spec.model_digest),
        loras_for=lambda spec, model: loras.wear(spec.loras, model),
        embedding_for=lambda pinned: load_embedding(settings.embeddings, pinned.name, pinned.digest),
        room_for=room_for,
        denoiser_for=denoiser_for,
        enlarge=lambda image, scale, name: upscalers.enlarge(image, scale, upscalers.pin(name)),
        budget_megapixels=lambda model: budget_for(
            model, chosen=settings.budget_megapixels, measured=settings.cache / "budgets.json"
        ),
        preview_every=settings.preview_every,
        cache=settings.cache / "schedules",
    )
    return Studio(settings, models, backend, AssetStore(settings.blobs), loras, memory, upscalers)


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
    clear = image.convert("RGBA")
    return clear if min(clear.getchannel("A").tobytes()) < 255 else image.convert("RGB")


def same_area(proportion: float, area: float) -> tuple[int, int]:
    """Width and height of about that many pixels in that proportion of width to height."""
    height = (area / proportion) ** 0.5
    return rounded(height * proportion), rounded(height)


def rounded(side: float) -> int:
    """The nearest side that a spec may have."""
    return min(max(64, round(side / 8) * 8), 4096)
