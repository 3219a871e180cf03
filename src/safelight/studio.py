"""Opens every part from settings; the one place where parts meet."""

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Literal, Self

from PIL import Image

from safelight.acceleration.budget import budget_for
from safelight.acceleration.packed import denoiser_for
from safelight.assets.open_image import open_image
from safelight.assets.store import AssetStore
from safelight.diffusion.canvas import outpaint_canvas
from safelight.diffusion.samplers import find_sampler
from safelight.engine.backend import Backend
from safelight.engine.local import LocalBackend
from safelight.errors import InvalidRequest
from safelight.models.catalogue import Catalogue
from safelight.models.families import text_widths
from safelight.models.lora_shelf import LoraShelf
from safelight.models.lora_tags import take_loras
from safelight.models.placement import choose_placement
from safelight.models.pool import Found, ModelPool
from safelight.models.textual_inversion import load_embedding, pin_embeddings
from safelight.registry.catalogue import open_catalogue
from safelight.settings import Settings
from safelight.spec import (
    MOST_LORAS,
    Denoised,
    Draft,
    Inpaint,
    PinnedEmbedding,
    TextToImage,
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

    async def complete(self, draft: Draft) -> Denoised:
        """A spec from a draft: the model found and pinned, its defaults filled in, the canvas grown, a seed chosen."""
        found = await asyncio.to_thread(self.models.find, draft.model)
        draft = await asyncio.to_thread(self.pin_loras, draft)
        if draft.sampler is not None:
            draft = draft.model_copy(update={"sampler": find_sampler(draft.sampler).name})
        if draft.init is not None:
            draft = await asyncio.to_thread(self.fit_canvas, draft, found)
        embeddings = await asyncio.to_thread(self.named_embeddings, draft, found)
        return complete(draft, found.description.defaults, model_digest=found.digest, embeddings=embeddings)

    def named_embeddings(self, draft: Draft, found: Found) -> tuple[PinnedEmbedding, ...]:
        return pin_embeddings(
            self.models.catalogue,
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
        return draft.model_copy(update={"prompt": prompt, "loras": tuple(map(self.loras.pin, wishes))})

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
        if draft.only_masked or (draft.width and draft.height):
            return draft
        native = found.description.defaults
        width, height = same_area(image.width / image.height, native.width * native.height)
        if draft.width:
            width, height = draft.width, rounded(draft.width * image.height / image.width)
        elif draft.height:
            width, height = rounded(draft.height * image.width / image.height), draft.height
        return Draft.model_validate(draft.model_dump() | {"width": width, "height": height})

    def keep(self, source: ImageSource, *, mode: str = "RGB") -> str:
        """Store a picture a job starts from; returns the digest that a draft names it by."""
        if isinstance(source, Image.Image):
            return self.assets.put_image(source.convert(mode))
        data = source if isinstance(source, bytes) else Path(source)
        return self.assets.put_image(self.open(data))

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

    def see(self, catalogue: Catalogue) -> None:
        """Look for models of every kind there from now on."""
        self.models.catalogue = self.loras.catalogue = catalogue

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
    models = ModelPool(catalogue=open_catalogue(settings), placement=choose_placement(settings.device, settings.dtype))
    loras = LoraShelf(models.catalogue)
    backend = LocalBackend(
        lambda spec: models.get(spec.model, spec.model_digest),
        loras_for=lambda spec, model: loras.wear(spec.loras, model),
        embedding_for=lambda pinned: load_embedding(models.catalogue, pinned.name, pinned.digest),
        denoiser_for=denoiser_for,
        budget_megapixels=lambda model: budget_for(
            model, chosen=settings.budget_megapixels, measured=settings.cache / "budgets.json"
        ),
        preview_every=settings.preview_every,
        cache=settings.cache / "schedules",
    )
    return Studio(settings, models, backend, AssetStore(settings.blobs), loras)


def same_area(proportion: float, area: float) -> tuple[int, int]:
    """Width and height of about that many pixels in that proportion of width to height."""
    height = (area / proportion) ** 0.5
    return rounded(height * proportion), rounded(height)


def rounded(side: float) -> int:
    """The nearest side that a spec may have."""
    return min(max(64, round(side / 8) * 8), 4096)
