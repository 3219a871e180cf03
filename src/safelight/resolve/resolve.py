"""From a draft to a spec, in order; the CLI, the Python API and the server all resolve here."""

import asyncio
from collections.abc import AsyncGenerator, Sequence

from safelight.diffusion.samplers import find_sampler
from safelight.models.checkpoints.families import require_sides
from safelight.resolve.canvas import find_background, fit_canvas, grow_canvas
from safelight.resolve.check import check
from safelight.resolve.drawable import require_drawable
from safelight.resolve.hints import hint_allocations, make_hints
from safelight.resolve.pins import named_embeddings, pin_effects, pin_parts, pin_refiner
from safelight.resolve.plugins import pin_plugins, pin_upscaler
from safelight.spec import Denoised, Draft, Upscale
from safelight.spec.complete import choose_seed, complete
from safelight.studio import MANY_COPIES, Studio


async def resolve(draft: Draft, studio: Studio, *, tenant: str = "") -> Denoised:
    """Return the spec of a draft: the model found and pinned, its defaults filled in, the canvas grown, a seed chosen.

    `tenant` is charged for the memory that the draft's pictures take meanwhile.

    Raises:
        SafelightError: the draft cannot be drawn; the message says why, and what can.
    """
    await asyncio.to_thread(check, draft, studio.models.catalogue, studio.plugins)
    found = await asyncio.to_thread(studio.models.find, draft.model)
    if draft.sampler is not None:
        draft = draft.model_copy(update={"sampler": find_sampler(draft.sampler).name})
    if draft.init is not None and (draft.replace_background or draft.extend is not None):
        claim = await studio.claim(draft.init, tenant=tenant, copies=MANY_COPIES)
        grown = find_background if draft.replace_background else grow_canvas
        draft = await studio.image_pool.work(claim, grown, draft, studio, found)
    elif draft.init is not None:
        draft = await asyncio.to_thread(fit_canvas, draft, studio, found)
    if draft.controls:
        claim = await studio.claim(*(control.image for control in draft.controls), tenant=tenant, copies=MANY_COPIES)
        async with studio.acquire(await asyncio.to_thread(hint_allocations, draft, studio)) as lease:
            draft = await studio.vision_pool.work(claim, lease.during(make_hints), draft, studio, found)
    draft = await asyncio.to_thread(pin_effects, draft, studio, found)
    description = found.description
    spec = complete(
        draft,
        description.defaults,
        model_digest=found.digest,
        embeddings=await asyncio.to_thread(named_embeddings, draft, studio, found),
        parts=await asyncio.to_thread(pin_parts, draft, studio),
        refiner=await asyncio.to_thread(pin_refiner, draft, studio, found),
        plugins=pin_plugins(draft, studio),
        reads=description.reads,
    )
    require_sides(description, spec.width, spec.height)
    await asyncio.to_thread(require_drawable, spec, studio, found)
    return spec


async def resolve_all(
    drafts: Sequence[Draft | Upscale], studio: Studio, *, tenant: str = ""
) -> AsyncGenerator[Denoised | Upscale, None]:
    """Yield the specs of one request, in order; drafts that differ in nothing but the seed are resolved once."""
    resolved: dict[str, Denoised] = {}
    for draft in drafts:
        if isinstance(draft, Upscale):
            yield draft
            continue
        key = draft.model_dump_json(exclude={"seed"})
        if key not in resolved:
            resolved[key] = await resolve(draft, studio, tenant=tenant)
        seed = choose_seed() if draft.seed is None else draft.seed
        yield resolved[key].model_copy(update={"seed": seed})


def resolve_upscale(init: str, scale: float, method: str, studio: Studio) -> Upscale:
    """Return the spec of an enlargement, with its network pinned.

    Raises:
        UnsupportedOption: no upscaler has that name.
        UnsafeFile, CorruptModel: the file of that name is no upscaler.
    """
    if method not in studio.upscalers.names():
        studio.plugins.require_usable("upscaler", method)
    pinned = studio.upscalers.pin(method)
    studio.upscalers.require_whole(pinned)
    plugins = () if pinned.digest else pin_upscaler(method, studio)
    return Upscale(init=init, scale=scale, method=method, method_digest=pinned.digest, plugins=plugins)
